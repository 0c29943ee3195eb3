"""The one thread that touches `moltbot.db`, the SQLite file that says who owns what.

Covers transactions, backups and closing; everything blocking runs in the writer thread, in order. Opening the file and
refusing a damaged one are in `database_file.py`, its tables in `schema.py`. What is stored is up to its users: pins in
`directory.py`, which also shares one commit among many. Only one gateway may have the file open; the lock for that lies
on the base directory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from moltbot.core.clock import Clock
from moltbot.core.errors import DatabaseDamaged, NotRunning, Unavailable
from moltbot.core.service import Service
from moltbot.router.database_file import BACKUP, FILE, DatabaseFile, is_damage, sync_directory, sync_file

WAIT = 30.0  # seconds for one transaction
_LONG_WAIT = 120.0  # seconds for opening (which reads the whole file), closing or a backup (which write it)

T = TypeVar("T")
Work = Callable[[sa.Connection], Any]
Outcome = tuple[Any, Exception | None]
log = logging.getLogger("moltbot.database")


class Database(Service):
    """The open file. `base` must exist and be the gateway's own; times are seconds of `clock`."""

    def __init__(
        self, base: Path, clock: Clock, *, wait: float = WAIT, long_wait: float = _LONG_WAIT
    ) -> None:
        super().__init__()
        self._file = DatabaseFile(base)
        self._clock = clock
        self._wait = wait
        self._long_wait = long_wait
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._needed = 0
        self._unneeded = asyncio.Event()
        self._next_scrub: Future[None] | None = None
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        # Set once the file is checked: only then may a backup replace the one before.
        self._engine: sa.Engine | None = None

    @property
    def path(self) -> Path:
        """Where the file is, absolute."""
        return self._file.path

    @property
    def engine(self) -> sa.Engine:
        """The engine, for listeners; statements belong into `submit` or `transact`."""
        if self._engine is None:
            raise NotRunning(f"{FILE} is not open: start the database first")
        return self._engine

    def submit(self, work: Callable[[sa.Connection], T]) -> asyncio.Future[T]:
        """Queue `work` for the writer thread; the future ends after it is committed and on disk, whole or not at all.

        What waits at the same time shares a commit, for the sync to disk is what takes long; each has a savepoint of its
        own, so that one that fails takes nobody along. If the commit fails, each is tried by itself: `work` may run twice.
        The future has no deadline (`transact` has): it tells the outcome whenever the disk does. It raises Unavailable
        where the machine is at fault, then nothing is stored; errors of `work` itself come as they are, rolled back.
        """
        if self._executor is None:
            raise _not_open()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_look_at)
        with self._lock:
            self._waiting.append((work, future))
            if len(self._waiting) == 1:
                self._executor.submit(self._commit_group, future.get_loop())
        return future

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """`submit` and wait; Unavailable after `wait` seconds, then the outcome is open. Cancelling does not undo it."""
        return await self._bounded(self.submit(work), self._wait)

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Until the block ends, a stop waits before it closes the file, for at most `wait` seconds."""
        self._needed += 1
        try:
            yield
        finally:
            self._needed -= 1
            if not self._needed:
                self._unneeded.set()

    async def backup(self) -> Path:
        """Replace `moltbot.db.backup` by a copy of now, whole or not at all; transactions wait meanwhile."""
        return await self._bounded(self._queue(self._write_backup), self._long_wait)

    async def scrub(self) -> None:
        """Leave nothing of deleted rows in the file, its log and its backup.

        The whole file is rewritten, which takes as long as it takes: there is no deadline, and one scrub at a time. Who comes
        before it begins shares it, who comes later shares the next. Transactions wait meanwhile, and with them new users'
        first pins, whose callers give up after `wait`: on a disk that needs longer than that, they are told to come again.
        """
        if self._executor is None:
            raise _not_open()
        scrub = self._next_scrub
        if scrub is None or scrub.running() or scrub.done():
            scrub = self._next_scrub = self._executor.submit(self._scrub)
        future = asyncio.wrap_future(scrub)
        future.add_done_callback(_look_at)
        await asyncio.wait([future])  # a caller who is cancelled does not take it from the others
        future.result()

    def damaged(self, what: str) -> DatabaseDamaged:
        """The error for a file that cannot be used, with the way back."""
        return self._file.damaged(what)

    async def _start(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="moltbot-database")
        self._next_scrub = None
        await self._bounded(self._queue(self._open), self._long_wait)

    async def _stop(self) -> None:
        executor = self._executor
        if executor is None:
            return
        await self._until_unneeded()
        closed = self._queue(self._close)
        self._executor = None
        try:
            await self._bounded(closed, self._long_wait)
        except Unavailable as error:
            log.error("%s", error)  # all that was promised is committed; the next start goes on from there
        finally:
            executor.shutdown(wait=False)

    async def _until_unneeded(self) -> None:
        if not self._needed:
            return
        self._unneeded.clear()
        timer = self._clock.call_later(self._wait, self._unneeded.set)
        try:
            await self._unneeded.wait()
        finally:
            timer.cancel()

    def _queue(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._executor is None:
            raise _not_open()
        future = asyncio.wrap_future(self._executor.submit(work))
        future.add_done_callback(_look_at)
        return future

    async def _bounded(self, future: asyncio.Future[T], seconds: float) -> T:
        """Wait for `future`, but not longer; neither that nor a cancelled caller stops what it stands for."""
        late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, partial(late.set_result, None))
        try:
            await asyncio.wait({future, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if not future.done():
            raise Unavailable(
                f"{self.path} did not answer within {seconds:g} s: see whether its disk is failing or overloaded"
            )
        return future.result()

    # --- in the writer thread ------------------------------------------------------------------------

    def _open(self) -> None:
        self._engine = self._file.open(self._clock.time())

    def _commit_group(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        outcomes = self._run_group([work for work, _ in group])
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(_settle, [future for _, future in group], outcomes)

    def _run_group(self, group: Sequence[Work]) -> list[Outcome]:
        if len(group) > 1:
            try:
                return self._together(group)
            except Exception as error:  # nothing of it is stored: each by itself tells whose fault it is
                log.debug("%d transactions could not share a commit: %s", len(group), error)
        return [_outcome(partial(self._transaction, work)) for work in group]

    def _together(self, group: Sequence[Work]) -> list[Outcome]:
        """Run all in one transaction; raises if the machine or the commit fails, and then nothing is stored."""
        outcomes: list[Outcome] = []
        with self.engine.begin() as connection:
            for work in group:
                try:
                    with connection.begin_nested():
                        outcomes.append((work(connection), None))
                except DBAPIError as error:
                    if is_damage(error) or self._file.advice(error) is not None:
                        raise
                    outcomes.append((None, error))
                except Exception as error:
                    outcomes.append((None, error))
        return outcomes

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            if is_damage(error):
                text = self.damaged(f"is damaged ({error.orig})").message
                raise Unavailable(text, retryable=False) from error
            advice = self._file.advice(error)
            if advice is None:
                raise  # a mistake in a statement
            raise Unavailable(
                f"{FILE} could not be written: {error.orig}: {advice}", retry_after=1.0
            ) from error

    def _write_backup(self) -> Path:
        new = self.path.with_name(BACKUP + ".new")
        try:
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with closing(self.engine.raw_connection()) as connection:
                # Reads every row, so a damaged database cannot replace the good copy of an hour ago.
                connection.driver_connection.execute("VACUUM INTO ?", (str(new),))  # type: ignore[union-attr]
            sync_file(new)
            new.replace(self._file.backup_path)
            sync_directory(self.path.parent)
        except (OSError, sqlite3.Error, DBAPIError) as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise Unavailable(
                f"{BACKUP} could not be written ({error}); the copy before it is kept: "
                f"see whether the disk of {self.path.parent} is full or failing"
            ) from error
        return self._file.backup_path

    def _scrub(self) -> None:
        try:
            with closing(self.engine.raw_connection()) as connection:
                # Overwriting what is deleted is not enough: where a page was laid out anew, copies stay in its gaps.
                connection.driver_connection.execute("VACUUM")  # type: ignore[union-attr]
                busy, *_ = connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # type: ignore[union-attr]
        except (sqlite3.Error, DBAPIError) as error:
            raise Unavailable(
                f"{FILE} could not be rewritten ({error}): see whether the disk of {self.path.parent} is full or failing"
            ) from error
        if busy:
            raise Unavailable(
                f"another program reads {FILE}, so its log cannot be emptied: close that program"
            )
        self._write_backup()

    def _close(self) -> None:
        engine = self._engine
        if engine is None:
            return
        try:
            self._write_backup()
        except Unavailable as error:
            log.error("%s", error)
        finally:
            self._engine = None
            engine.dispose()  # the last connection: SQLite moves the -wal into the file and removes it


def _outcome(run: Callable[[], Any]) -> Outcome:
    try:
        return run(), None
    except Exception as error:
        return None, error


def _settle(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome]) -> None:
    for future, (result, error) in zip(futures, outcomes, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _not_open() -> NotRunning:
    return NotRunning(f"{FILE} is not open: the gateway is not started or is stopping")


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # whoever waited may have gone; that is no reason for a warning
