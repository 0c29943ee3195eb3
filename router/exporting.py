"""A user's files as one archive: the lane is held for the moment of the copy, so that no request of theirs writes meanwhile.

How a hostile tree is copied is in `sandbox/archive.py`; holding a lane, in `lanes.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from moltbot.core.clock import Clock
from moltbot.core.errors import MoltbotError, NotFound, Unavailable, quote
from moltbot.core.jsonable import from_timestamp, jsonable
from moltbot.core.within import expire, within
from moltbot.router.directory import Directory, Pin
from moltbot.router.dispatcher import Dispatcher
from moltbot.router.homes import Homes, being_forgotten
from moltbot.router.status import user_directories
from moltbot.sandbox.archive import write_archive
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.pool import WorkerPool

EXPORT_SECONDS = 30.0
COPY_SECONDS = 120.0
OPEN_SECONDS = 600.0  # for whoever reads it
MAX_EXPORTS = 4
_PARTS = ("sessions", "state")


@dataclass(frozen=True, slots=True)
class Export:
    """A tar archive of `size` bytes, in a file without a name that is at its beginning; closed when the block ends."""

    user_id: str
    file: IO[bytes]
    size: int


class _UnderWay:
    """One export: first it is copied, then it is open. error: why it was ended; it is raised where the export is used."""

    __slots__ = ("_bound", "_file", "error")

    def __init__(self) -> None:
        self.error: MoltbotError | None = None
        self._file: IO[bytes] | None = None
        self._bound: asyncio.Timeout | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def end(self, error: MoltbotError) -> None:
        """End the copying at its next look, or close the file at once and cancel whoever has it."""
        if self.error is not None:
            return
        self.error = error
        if self._file is not None and self._bound is not None:
            self._file.close()
            expire(self._bound)

    def check(self) -> None:
        """Called from the thread, too: reading one value."""
        if self.error is not None:
            raise self.error

    @contextlib.asynccontextmanager
    async def opened(self, file: IO[bytes]) -> AsyncIterator[None]:
        """The block reads the file, until `end`."""
        try:
            async with asyncio.timeout(None) as self._bound:
                self._file = file
                try:
                    yield
                finally:
                    self._file = None
        except Exception:  # the end itself, or what reading a closed file raises
            self.check()
            raise


class Exports:
    """All that are under way or open in one running router: one for each user, MAX_EXPORTS at once."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        directory: Directory,
        homes: Homes,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        clock: Clock,
    ) -> None:
        self._config = config
        self._directory = directory
        self._homes = homes
        self._dispatcher = dispatcher
        self._pool = pool
        self._clock = clock
        self._open: dict[str, _UnderWay] = {}

    @contextlib.asynccontextmanager
    async def export(self, user_id: str, seconds: float = EXPORT_SECONDS) -> AsyncIterator[Export]:
        """Make the archive; `seconds` is how long what runs may take to end.

        Raises NotFound, UserForgetting, StorageFull if it would be too large, and Unavailable if something goes on too long, too many
        exports are open, or the disk has no room. The lane goes on as soon as the copy is made. The block is cancelled, and its
        file closed, when the user is being forgotten, or after OPEN_SECONDS; then it raises these, too.
        """
        pin = self._directory.get(user_id)
        if self._homes.is_shut(user_id):
            raise being_forgotten()
        if pin is None:
            raise NotFound(f"user {quote(user_id)} is not known here: there is nothing to export")
        if user_id in self._open:
            raise Unavailable("this user is being exported already: wait for that to end", retry_after=1.0)
        if len(self._open) >= MAX_EXPORTS:
            raise Unavailable(f"{MAX_EXPORTS} exports are under way: try again later", retry_after=1.0)
        one = self._open[user_id] = _UnderWay()
        try:
            with tempfile.TemporaryFile(
                dir=self._config.sandbox_base_dir
            ) as file:  # no name: a crash leaves nothing
                size = await self._fill(file, one, user_id, pin, seconds)
                late = Unavailable(
                    f"the archive was not read within {OPEN_SECONDS:g} s: ask again, and read it faster"
                )
                timer = self._clock.call_later(OPEN_SECONDS, partial(one.end, late))
                try:
                    async with one.opened(file):
                        yield Export(user_id, file, size)
                finally:
                    timer.cancel()
        finally:
            del self._open[user_id]

    def abort(self, user_id: str, error: MoltbotError) -> None:
        """End this user's export, whether it is copied or read: nobody has it any more."""
        if (one := self._open.get(user_id)) is not None:
            one.end(error)

    def abort_copying(self, error: MoltbotError) -> None:
        """End all copying; what is finished stays open."""
        for one in self._open.values():
            if not one.is_open:
                one.end(error)

    async def _fill(self, file: IO[bytes], one: _UnderWay, user_id: str, pin: Pin, seconds: float) -> int:
        self._dispatcher.hold(user_id)
        try:
            await self._still(user_id, pin, seconds)
            one.check()
            late = Unavailable(
                f"the copy was not made within {COPY_SECONDS:g} s: try again when the disk has less to do"
            )
            timer = self._clock.call_later(COPY_SECONDS, partial(one.end, late))
            try:
                size = await self._copy(file, one, user_id, pin)
            finally:
                timer.cancel()
            one.check()  # the copy may have been whole when the end came
            return size
        finally:
            self._dispatcher.release(user_id)

    async def _still(self, user_id: str, pin: Pin, seconds: float) -> None:
        """Wait until nothing of the user runs, neither a request nor a hook that leaves."""
        worker = self._pool[pin.worker_id]
        try:
            async with within(self._clock, seconds):
                await self._dispatcher.quiet(user_id)
                life = worker.life
                if life is not None:
                    await worker.until(lambda: not life.leaving[user_id])
        except TimeoutError:
            raise Unavailable(
                f"a request of this user still runs after {seconds:g} s: export when it has ended, or wait longer",
                worker=pin.worker_id,
                retry_after=5.0,
            ) from None

    async def _copy(self, file: IO[bytes], one: _UnderWay, user_id: str, pin: Pin) -> int:
        directories = user_directories(self._config, pin.worker_id, user_id)
        work = asyncio.ensure_future(
            asyncio.to_thread(
                write_archive,
                file,
                {part: directories[part] for part in _PARTS},
                ("user.json", _description(user_id, pin)),
                max_size=self._config.max_disk,
                max_inodes=self._config.max_inodes,
                check=one.check,
            )
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            one.end(Unavailable("the export was cancelled"))
            await asyncio.wait([work])  # the thread must not outlive the file; it looks up after every piece
            raise
        except OSError as error:
            raise Unavailable(
                f"the archive could not be written ({error.strerror}): see whether the disk of "
                f"{self._config.sandbox_base_dir} is full or failing"
            ) from error


def _description(user_id: str, pin: Pin) -> dict[str, Any]:
    since: str = jsonable(from_timestamp(pin.since))
    life = {"epoch": pin.epoch, "workerId": pin.worker_id, "since": since, "why": pin.why}
    return {"userId": user_id, **life, "history": [life]}
