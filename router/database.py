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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
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
        """Queue `work` for the writer thread, in a transaction of its own; the future ends after the commit is on disk.

        The future has no deadline (`transact` has): it tells the outcome whenever the disk does. It raises Unavailable
        where the machine is at fault, then nothing is stored; errors of `work` itself come as they are, rolled back.
        """
        return self._queue(partial(self._transaction, work))

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """`submit` and wait; Unavailable after `wait` seconds, then the outcome is open. Cancelling does not undo it."""
        return await self._bounded(self.submit(work), self._wait)

    async def backup(self) -> Path:
        """Replace `moltbot.db.backup` by a copy of now, whole or not at all; transactions wait meanwhile."""
        return await self._bounded(self._queue(self._write_backup), self._long_wait)

    def damaged(self, what: str) -> DatabaseDamaged:
        """The error for a file that cannot be used, with the way back."""
        return self._file.damaged(what)

    async def _start(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="moltbot-database")
        await self._bounded(self._queue(self._open), self._long_wait)

    async def _stop(self) -> None:
        executor = self._executor
        if executor is None:
            return
        closed = self._queue(self._close)
        self._executor = None
        try:
            await self._bounded(closed, self._long_wait)
        except Unavailable as error:
            log.error("%s", error)  # all that was promised is committed; the next start goes on from there
        finally:
            executor.shutdown(wait=False)

    def _queue(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._executor is None:
            raise NotRunning(f"{FILE} is not open: the gateway is not started or is stopping")
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


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # whoever waited may have gone; that is no reason for a warning
