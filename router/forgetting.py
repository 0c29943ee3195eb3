"""Forgetting a user: step by step, each of which may be repeated, so that no crash leaves a user half forgotten.

    refuse -> certain -> leave -> delete -> bury -> scrub

From `certain` on, a start of the router goes on where the last one ended; until `bury` is done the user's requests are
refused. Rows are in `tombstones.py`, the door in `homes.py`, files in `sandbox/remains.py`. No log names the user: a keyed
hash stands for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from moltbot.core.clock import Clock
from moltbot.core.errors import MoltbotError, NotFound, NotRunning, UserForgetting, quote
from moltbot.core.events import Broadcast, PoolEvent, UserForgotten
from moltbot.core.keyed_hash import KeyedHash
from moltbot.core.within import within
from moltbot.router.directory import Directory
from moltbot.router.dispatcher import Dispatcher
from moltbot.router.homes import Homes, being_forgotten
from moltbot.router.tombstones import Tombstones
from moltbot.sandbox.departures import depart, renew
from moltbot.sandbox.policies import CANCEL_GRACE
from moltbot.sandbox.pool import WorkerPool
from moltbot.sandbox.remains import StillFilled, delete_user_files

FORGET_SECONDS = 10.0
_FIRST_DELAY, _MAX_DELAY = 0.2, 30.0
_KILL_SECONDS = 60.0  # for what is drained and killed to end

log = logging.getLogger("moltbot.router")


class Forgetting:
    """One user's. epoch: the pin's; None until it is known to be on disk. buried: the user may come back."""

    def __init__(self, user_id: str, epoch: int | None = None) -> None:
        self.user_id = user_id
        self.epoch = epoch
        self.buried = False
        self.digest = b""
        self.task: asyncio.Task[None] | None = None


class Forgettings:
    """All that are under way in one running router; `on_buried` is told to drop what others have in memory."""

    def __init__(
        self,
        base: Path,
        *,
        tombstones: Tombstones,
        directory: Directory,
        homes: Homes,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        names: KeyedHash,
        events: Broadcast[PoolEvent],
        clock: Clock,
        drain_seconds: float,
        on_begin: Callable[[str], None],
        on_buried: Callable[[str], None],
    ) -> None:
        self._base = base
        self._tombstones = tombstones
        self._directory = directory
        self._homes = homes
        self._dispatcher = dispatcher
        self._pool = pool
        self._names = names
        self._events = events
        self._clock = clock
        self._drain_seconds = drain_seconds
        self._on_begin = on_begin
        self._on_buried = on_buried
        self._under_way: dict[str, Forgetting] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scrubbing = asyncio.Lock()

    # --- what callers do ------------------------------------------------------------------------------

    async def forget(self, user_id: str, seconds: float = FORGET_SECONDS) -> None:
        """Forget a user, or join whoever is doing so; returns when nothing of them is left: files, rows, copies of rows.

        Raises NotFound for a user who is unknown, or whose first pin could not be stored; UserForgetting after `seconds`,
        then the work goes on; NotRunning at a stop, after which the next start goes on with what was certain.
        """
        one = self._under_way.get(user_id)
        if one is None or (one.buried and self._is_known(user_id)):
            if self._is_known(user_id):
                one = self._begin(Forgetting(user_id), STEPS)
            elif await self._tombstones.has_rows(
                user_id
            ):  # they never came, but have a token, or an answer that is kept
                one = self._begin(Forgetting(user_id, self._tombstones.last_epoch(user_id)), WITHOUT_PIN)
            else:
                raise _unknown(user_id)
        task = one.task
        assert task is not None
        late: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, partial(late.set_result, None))
        try:
            await asyncio.wait({task, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if not task.done():
            raise UserForgetting(
                f"the user could not be forgotten within {seconds:g} s, which goes on: ask again later, and see the pool's log",
                retry_after=seconds,
            )
        if task.cancelled():
            raise NotRunning(
                "the gateway is stopping: if the forgetting was certain, the next start goes on with it"
            )
        if task.exception() is not None:
            raise _unknown(user_id)

    def resume(self, unfinished: dict[str, int]) -> None:
        """Go on where the last life of this router ended; what is not yet certain was not begun."""
        for user_id, epoch in unfinished.items():
            self._begin(Forgetting(user_id, epoch), RESUMED)
        if self._tombstones.unscrubbed:
            self._own(self._insist("", "scrub", self._scrub_all))

    async def close(self) -> None:
        """End all work; what is certain is done at the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _is_known(self, user_id: str) -> bool:
        return self._directory.get(user_id) is not None or self._homes.arriving(user_id)

    # --- the runner -----------------------------------------------------------------------------------

    def _begin(self, one: Forgetting, steps: tuple[Step, ...]) -> Forgetting:
        """From this moment the user's requests are refused; those that wait, too, and those that run are cancelled."""
        user_id = one.user_id
        self._under_way[user_id] = one
        self._homes.shut(user_id)
        self._dispatcher.hold(user_id)
        self._dispatcher.refuse_user(user_id, being_forgotten)
        for worker in self._pool.workers.values():
            worker.interrupt(user_id, partial(being_forgotten, ran=True))
        self._on_begin(user_id)
        one.task = self._own(self._run(one, steps))
        return one

    def _own(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(_awaited(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if (
            not task.cancelled()
            and (error := task.exception()) is not None
            and not isinstance(error, NotFound)
        ):
            log.error("a forgetting ended: %s", _told(error))

    async def _run(self, one: Forgetting, steps: tuple[Step, ...]) -> None:
        name = self._names.name(one.user_id)
        try:
            if one.epoch is None:
                pin = await self._homes.settled(one.user_id)
                if pin is None:  # the first pin could not be stored: there is nobody
                    self._open_again(one)
                    raise _unknown(one.user_id)
                one.epoch = pin.epoch
            for step in steps:
                await self._insist(name, step.__name__, partial(step, self, one))
        finally:
            if self._under_way.get(one.user_id) is one:
                del self._under_way[one.user_id]

    async def _insist(self, name: str, step: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do a step until it succeeds, ever less often."""
        delay = _FIRST_DELAY
        while True:
            try:
                return await work()
            except Exception as error:
                log.error(
                    "forgetting %s: %s failed, tried again in %g s: %s", name, step, delay, _told(error)
                )
            await self._clock.sleep(delay)
            delay = min(2 * delay, _MAX_DELAY)

    def _open_again(self, one: Forgetting) -> None:
        one.buried = True
        self._dispatcher.release(one.user_id)
        self._homes.reopen(one.user_id)

    # --- the steps ------------------------------------------------------------------------------------

    async def certain(self, one: Forgetting) -> None:
        """One commit, after which the user will be forgotten whatever happens."""
        pin = self._directory.get(one.user_id)
        assert pin is not None
        now = self._clock.time()
        await self._tombstones.begin(one.user_id, pin.worker_id, pin.epoch, now)
        self._events.publish(UserForgotten(now, one.user_id))

    async def leave(self, one: Forgetting) -> None:
        """Nothing of the user runs, and no process has them in memory."""
        async with within(self._clock, CANCEL_GRACE + self._drain_seconds + _KILL_SECONDS):
            await self._dispatcher.quiet(one.user_id)
        pin = self._directory.get(one.user_id)
        departures = [
            depart(
                worker,
                one.user_id,
                home=pin is None or pin.worker_id == worker_id,
                clock=self._clock,
                seconds=CANCEL_GRACE,
                drain_seconds=self._drain_seconds,
            )
            for worker_id, worker in self._pool.workers.items()
        ]
        # All of them, whatever becomes of one: another try must not find any of this one still at work.
        for outcome in await asyncio.gather(*departures, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def delete(self, one: Forgetting) -> None:
        """No file of the user is left in any worker's directories."""
        try:
            await self._delete_files(one)
        except StillFilled:
            pin = self._directory.get(one.user_id)
            if (
                pin is not None
            ):  # what they left running may hold a directory open and fill it faster than it is emptied
                why = "files of a user who is being forgotten are still written"
                await renew(
                    self._pool[pin.worker_id], why, clock=self._clock, drain_seconds=self._drain_seconds
                )
            await self._delete_files(one)

    async def _delete_files(self, one: Forgetting) -> None:
        tag = self._names.digest(one.user_id.encode(), "trash").hex()[:16]
        await delete_user_files(self._base, one.user_id, tag)

    async def bury(self, one: Forgetting) -> None:
        """One commit, after which the tombstone is all there is; the user may come back."""
        assert one.epoch is not None
        one.digest = await self._tombstones.bury(one.user_id, one.epoch, self._clock.time())
        # Once more, while nobody can come back yet: a task that a handler left running writes by path, and may have made
        # the directory anew.
        await self._delete_files(one)
        self._directory.remove(one.user_id)
        self._on_buried(one.user_id)
        self._open_again(one)

    async def tell(self, one: Forgetting) -> None:
        """Whoever keeps something of the user in memory lets it go."""
        self._events.publish(UserForgotten(self._clock.time(), one.user_id))

    async def scrub(self, one: Forgetting) -> None:
        """Nothing of the rows is left in the database's files; those who wait for this share it."""
        async with self._scrubbing:
            if one.digest in self._tombstones.unscrubbed:
                await self._tombstones.scrub()

    async def _scrub_all(self) -> None:
        async with self._scrubbing:
            if self._tombstones.unscrubbed:
                await self._tombstones.scrub()


Step = Callable[[Forgettings, Forgetting], Awaitable[None]]
RESUMED: tuple[Step, ...] = (Forgettings.leave, Forgettings.delete, Forgettings.bury, Forgettings.scrub)
STEPS: tuple[Step, ...] = (Forgettings.certain, *RESUMED)
WITHOUT_PIN: tuple[Step, ...] = (Forgettings.bury, Forgettings.tell, Forgettings.scrub)


async def _awaited(work: Awaitable[None]) -> None:
    await work


def _told(error: BaseException) -> str:
    """An error for the log, without what could name the user: paths, and parameters of statements."""
    if isinstance(error, MoltbotError):
        return error.message
    return f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__


def _unknown(user_id: str) -> NotFound:
    return NotFound(f"user {quote(user_id)} is not known here: nothing is kept of them")
