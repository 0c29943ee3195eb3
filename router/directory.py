"""Who lives where: every user's pin, in memory to read and in `moltbot.db` to survive.

Covers first pins: durable before anyone sees them, many users in one commit, one placement per user. Does not choose
a worker (`placement.py`), open or check the file (`database_file.py`), run the transactions (`database.py`), or know who
was forgotten (`tombstones.py`). The directory is used from one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from sys import intern
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from moltbot.core.clock import Clock, Timer
from moltbot.core.errors import MoltbotError, NotRunning, TooManyUsers, Unavailable, WorkersMissing, quote
from moltbot.core.service import Service
from moltbot.router.database import WAIT, Database
from moltbot.router.placement import Placement
from moltbot.router.schema import pins
from moltbot.router.tombstones import Tombstones

MAX_PENDING = 10_000  # first pins that may wait for the disk at once

log = logging.getLogger("moltbot.directory")

_INSERT = insert(pins)
_SELECT = select(pins.c.user_id, pins.c.worker_id, pins.c.epoch, pins.c.since, pins.c.why)


class Pin(NamedTuple):
    """A user lives on `worker_id`; `epoch` grows with every change of owner, `since` is seconds since 1970."""

    worker_id: str
    epoch: int
    since: float
    why: str


class _Waiting:
    """A first pin on its way to the disk; `settled` is set once callers may go on, with `error` or without."""

    __slots__ = ("error", "key", "pin", "settled", "stored", "timer", "user_id")

    def __init__(self, user_id: str, key: bytes, pin: Pin) -> None:
        self.user_id = user_id
        self.key = key
        self.pin = pin
        self.settled = asyncio.get_running_loop().create_future()
        self.stored = asyncio.get_running_loop().create_future()  # or not: the disk has answered
        self.error: MoltbotError | None = None
        self.timer: Timer | None = None

    def settle(self, error: MoltbotError | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if not self.settled.done():
            self.error = error
            self.settled.set_result(None)

    async def outcome(self) -> Pin:
        # Unlike awaiting it, this leaves it alone when the caller is cancelled.
        await asyncio.wait([self.settled])
        if self.error is None:
            return self.pin
        # A new one for each caller: an exception that is raised in several places grows a mixed traceback.
        raise type(self.error)(
            f"user {quote(self.user_id)} could not be given a worker: {self.error.message}",
            retryable=self.error.retryable,
            retry_after=self.error.retry_after,
        )


class Directory(Service):
    """All pins. Start the database before it and stop it after it; `wait` is the seconds a caller waits for a pin.

    tombstones: where those who were here before go on with their epochs. max_users: how many pins there may be.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        wait: float = WAIT,
        tombstones: Tombstones | None = None,
        max_users: int | None = None,
    ) -> None:
        super().__init__()
        self.pins: dict[str, Pin] = {}
        """Every durable pin, for reading."""
        self._database = database
        self._clock = clock
        self._wait = wait
        self._tombstones = tombstones
        self._max_users = max_users
        self._counts: Counter[str] = Counter()
        self._loads: Counter[str] = Counter()
        self._pending: dict[str, _Waiting] = {}
        self._batch: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None

    def get(self, user_id: str) -> Pin | None:
        """The user's durable pin; memory only."""
        return self.pins.get(user_id)

    def counts(self) -> dict[str, int]:
        """Users per worker that has any, durable ones only."""
        return dict(self._counts)

    def loads(self) -> dict[str, int]:
        """Users per worker that has any, with those whose pin is still on its way to the disk: what placement counts."""
        return dict(self._loads)

    @property
    def full(self) -> bool:
        """True while there are `max_users`, with those whose pin is on its way."""
        return self._max_users is not None and len(self.pins) + len(self._pending) >= self._max_users

    async def settled(self, user_id: str) -> Pin | None:
        """Wait until no pin of this user is on its way to the disk, however long that takes; returns the durable one."""
        while (waiting := self._pending.get(user_id)) is not None:
            await asyncio.wait([waiting.stored])
        return self.pins.get(user_id)

    def remove(self, user_id: str) -> None:
        """Drop the pin of a user whose row is gone from the file."""
        pin = self.pins.pop(user_id, None)
        if pin is not None:
            for counter in (self._counts, self._loads):
                counter[pin.worker_id] -= 1
                if not counter[pin.worker_id]:
                    del counter[pin.worker_id]

    def users_of(self, worker_id: str) -> list[str]:
        """The users pinned to a worker, as of now; looks at every pin, so it is for moves and drains, not for requests."""
        return [user_id for user_id, pin in self.pins.items() if pin.worker_id == worker_id]

    def check_workers(self, worker_ids: Iterable[str]) -> None:
        """Raise WorkersMissing if users are pinned to workers that are not among `worker_ids`."""
        missing = {worker: self._counts[worker] for worker in self._counts.keys() - set(worker_ids)}
        if not missing:
            return
        names = sorted(missing, key=lambda worker: (len(worker), worker))
        shown = ", ".join(f"{worker} ({_users(missing[worker])})" for worker in names[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise WorkersMissing(
            f"users live on workers that this pool does not have: {shown}{more}; start with all of them: {_needed(names)}",
            details={"workers": missing},
        )

    async def pin(self, user_id: str, choose: Callable[[], Placement]) -> Pin:
        """Return the user's pin; make one first if there is none, durable before this returns. Its epoch is 1, or one more
        than a forgotten user's last.

        `choose` is called only for a user who has none, and at once, so that it sees everybody in `loads()`. Raises
        TooManyUsers, and Unavailable if the pin could not be stored; a cancelled caller leaves the pin on its way.
        """
        pin = self.pins.get(user_id)
        if pin is not None:
            return pin
        waiting = self._pending.get(user_id)
        if waiting is None:
            waiting = self._begin(user_id, choose)
        return await waiting.outcome()

    def _begin(self, user_id: str, choose: Callable[[], Placement]) -> _Waiting:
        if not self.running:
            raise NotRunning("users are given workers only while the gateway runs")
        if len(self._pending) >= MAX_PENDING:
            raise Unavailable(
                f"{MAX_PENDING} new users wait for the disk: send the request again later", retry_after=1.0
            )
        if self.full:
            raise TooManyUsers(
                f"there are {self._max_users} users already, the most allowed (max_users): `moltbot users list` shows them, "
                "forget some with `moltbot users forget ID`, or raise max_users"
            )
        key = user_id.encode()
        placement = choose()
        epoch = 1 + (self._tombstones.last_epoch(user_id) if self._tombstones is not None else 0)
        pin = Pin(intern(placement.worker_id), epoch, self._clock.time(), intern(placement.why))
        waiting = _Waiting(user_id, key, pin)
        waiting.timer = self._clock.call_later(self._wait, partial(self._give_up, waiting))
        self._pending[user_id] = waiting
        self._loads[pin.worker_id] += 1
        self._batch.append(waiting)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return waiting

    def _give_up(self, waiting: _Waiting) -> None:
        """Let the callers go. The pin stays on its way: it counts, and is seen once it turns out to be stored."""
        waiting.settle(
            Unavailable(
                f"{self._database.path} did not answer within {self._wait:g} s: see whether its disk is failing "
                "or overloaded",
                retry_after=1.0,
            )
        )

    async def _flush(self) -> None:
        """Commit what has collected, then what has collected meanwhile; each commit takes all that wait.

        `Database.submit` shares commits, too, but gives each its savepoint: for pins, which fail together anyway, rows in one
        statement are several times as fast.
        """
        try:
            while self._batch:
                batch, self._batch = self._batch, []
                self._settle(batch, await self._store(batch))
        finally:
            self._flusher = None

    async def _store(self, batch: list[_Waiting]) -> MoltbotError | None:
        rows = [{"user_id": waiting.key, **waiting.pin._asdict()} for waiting in batch]
        try:
            # No deadline here: only the disk knows whether the rows are stored. Callers have their own.
            await self._database.submit(lambda connection: _insert(connection, rows))
        except MoltbotError as error:
            return error
        except Exception as error:
            log.exception("pins could not be stored")
            return Unavailable(f"the pin could not be stored: {type(error).__name__}: {error}")
        return None

    def _settle(self, batch: Iterable[_Waiting], error: MoltbotError | None) -> None:
        for waiting in batch:
            del self._pending[waiting.user_id]
            worker_id = waiting.pin.worker_id
            if error is None:
                self.pins[waiting.user_id] = waiting.pin
                self._counts[worker_id] += 1
            else:
                self._loads[worker_id] -= 1
                if not self._loads[worker_id]:
                    del self._loads[worker_id]
            waiting.settle(error)
            waiting.stored.set_result(None)

    async def _start(self) -> None:
        try:
            loaded = await self._database.transact(_load)
        except UnicodeDecodeError as error:
            raise self._database.damaged(f"holds a user id that is not UTF-8 ({error})") from error
        self._counts = Counter(pin.worker_id for pin in loaded.values())
        self._loads = self._counts.copy()
        self.pins = loaded

    async def _stop(self) -> None:
        """End when the commits under way have, or after `wait`; whoever waits still is told."""
        flusher = self._flusher
        if flusher is not None:
            stuck = self._clock.call_later(self._wait, partial(_cancel, flusher))
            await asyncio.wait([flusher])
            stuck.cancel()
        self._batch = []
        self._settle(list(self._pending.values()), NotRunning("the gateway is stopping"))


def _insert(connection: Connection, rows: list[dict[str, object]]) -> None:
    connection.execute(_INSERT, rows)


def _load(connection: Connection) -> dict[str, Pin]:
    """All pins; workers and reasons repeat, so each is kept once."""
    return {
        user_id.decode(): Pin(intern(worker_id), epoch, since, intern(why))
        for user_id, worker_id, epoch, since, why in connection.execute(_SELECT)
    }


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


def _needed(names: list[str]) -> str:
    """How large the pool must be, as one says it on the command line and in code."""
    numbers = [worker.removeprefix("worker-") for worker in names]
    if not all(number.isdecimal() for number in numbers):
        return "a pool that has workers of these names"
    count = max(map(int, numbers)) + 1
    return f"-w {count} or more (worker_count = {count})"
