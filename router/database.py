"""`moltbot.db`: the one SQLite file that says who owns what, and the one thread that touches it.

Covers opening (never a link, mode 0600, checked for damage and version), transactions, backups and closing. What is
stored is up to its users: pins in `directory.py`, which also shares one commit among many. Only one gateway may have
the file open; the lock for that lies on the base directory. Everything blocking runs in the writer thread, in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from moltbot.core.clock import Clock
from moltbot.core.errors import BaseDirectoryError, DatabaseDamaged, NotRunning, StartupError, Unavailable
from moltbot.core.service import Service

FILE = "moltbot.db"
BACKUP = "moltbot.db.backup"
SCHEMA_VERSION = 1
WAIT = 30.0  # seconds for one transaction
LONG_WAIT = 120.0  # seconds for opening (which reads the whole file), closing or a backup (which write it)
_BUSY = 5.0  # seconds that SQLite waits for a lock another program holds

T = TypeVar("T")
log = logging.getLogger("moltbot.database")

metadata = sa.MetaData()
meta = sa.Table(
    "meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)
pins = sa.Table(
    "pins",
    metadata,
    sa.Column("user_id", sa.LargeBinary, primary_key=True),  # UTF-8: PostgreSQL's text cannot hold NUL
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sqlite_with_rowid=False,  # the key is the row's place: half the size, and no NULL in it
)

_PRAGMAS = (
    f"PRAGMA busy_timeout={_BUSY * 1000:.0f}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",  # macOS: without it a sync stops at the disk's own cache
    "PRAGMA foreign_keys=ON",
)
_VERSION = sa.select(meta.c.value).where(meta.c.key == "schema_version")
_NEW_META = sa.insert(meta)
_ADVICE = {  # by family of SQLite's error name: what failed because of the machine, and what to do about it
    "FULL": "free some space on the disk of {base}",
    "IOERR": "see whether the disk of {base} is full or failing",
    "READONLY": "make {base} and the file writable for the gateway's user",
    "CANTOPEN": "make {base} and the file readable and writable for the gateway's user",
    "PERM": "make {base} and the file readable and writable for the gateway's user",
    "BUSY": "close the other program that has the file open for writing",
    "LOCKED": "close the other program that has the file open for writing",
    "NOMEM": "free some memory",
}


class Database(Service):
    """The open file. `base` must exist and be the gateway's own; times are seconds of `clock`."""

    def __init__(self, base: Path, clock: Clock, *, wait: float = WAIT, long_wait: float = LONG_WAIT) -> None:
        super().__init__()
        self.path = base.absolute() / FILE
        self.backup_path = self.path.with_name(BACKUP)
        self._clock = clock
        self._wait = wait
        self._long_wait = long_wait
        self._executor: ThreadPoolExecutor | None = None
        self._engine: sa.Engine | None = None
        self._sound = False  # opened and checked: only then may a backup replace the one before

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
        if not self.running:
            raise NotRunning(f"{FILE} is not open: the gateway is not started or is stopping")
        return self._queue(partial(self._transaction, work))

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """`submit` and wait; Unavailable after `wait` seconds, then the outcome is open. Cancelling does not undo it."""
        return await self._bounded(self.submit(work), self._wait)

    async def backup(self) -> Path:
        """Replace `moltbot.db.backup` by a copy of now, whole or not at all; transactions wait meanwhile."""
        if not self.running:
            raise NotRunning(f"{FILE} is not open: the gateway is not started or is stopping")
        return await self._bounded(self._queue(self._write_backup), self._long_wait)

    def damaged(self, what: str) -> DatabaseDamaged:
        """The error for a file that cannot be used, with the way back."""
        try:
            when = datetime.fromtimestamp(self.backup_path.stat().st_mtime, UTC)
        except OSError:
            way = f"There is no {BACKUP}; without {FILE} a start begins with no pins, and users may lose their state"
        else:
            # The old -wal must go too: SQLite would replay it into the restored copy.
            way = (
                f"The way back to the copy of {when:%Y-%m-%d %H:%M} UTC: stop, move {FILE}, {FILE}-wal and {FILE}-shm "
                f"aside, copy {BACKUP} to {FILE}, start"
            )
        return DatabaseDamaged(f"{self.path} {what}. {way}")

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
            raise NotRunning(f"{FILE} is not open: start the database first")
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
        self._claim_file()
        self._engine = _create_engine(self.path)
        try:
            with self._engine.begin() as connection:
                self._check_pages(connection)
                self._check_schema(connection)
        except DBAPIError as error:
            family = _family(error)
            if family not in _ADVICE:
                raise self.damaged(f"is damaged ({error.orig})") from error
            advice = _ADVICE[family].format(base=self.path.parent)
            raise BaseDirectoryError(f"{self.path} cannot be opened: {error.orig}: {advice}") from error
        self._sound = True

    def _claim_file(self) -> None:
        """Create the file or look at what is there. Before SQLite opens it: closing a descriptor drops its locks."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            if (name := self.path.with_name(FILE + suffix)).is_symlink():
                raise BaseDirectoryError(f"{name} is a link: replace it by the file itself, or remove it")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise BaseDirectoryError(
                f"{self.path} cannot be opened: {error.strerror}: give the gateway a base directory that exists and is its own"
            ) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise BaseDirectoryError(
                    f"{self.path} is not a file of the gateway's user: move it aside or give it to that user"
                )
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        if status.st_size == 0:
            self._check_empty()

    def _check_empty(self) -> None:
        """An empty file is a new one, unless something beside it tells of a life before."""
        wal = self.path.with_name(FILE + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise self.damaged(f"is missing or empty, but its {wal.name} is not")
        if self.backup_path.exists():
            raise self.damaged(
                f"is missing or empty, but there is a {BACKUP}; to start anew move that aside too"
            )
        _sync_directory(self.path.parent)

    def _check_pages(self, connection: sa.Connection) -> None:
        faults = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            raise self.damaged(
                "is damaged ({})".format("; ".join(" ".join(fault.split()) for fault in faults))
            )

    def _check_schema(self, connection: sa.Connection) -> None:
        tables = set(
            connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        )
        if not tables:
            metadata.create_all(connection, checkfirst=False)
            values = {"schema_version": str(SCHEMA_VERSION), "created": repr(self._clock.time())}
            connection.execute(_NEW_META, [{"key": key, "value": value} for key, value in values.items()])
            return
        if not tables.issuperset(metadata.tables):
            raise self.damaged("is an SQLite database, but not one of moltbot's")
        version = connection.execute(_VERSION).scalar_one_or_none() or ""
        if not version.isdecimal() or int(version) < 1:
            raise self.damaged(f"has no valid schema version, but {version!r}")
        if int(version) > SCHEMA_VERSION:
            raise StartupError(
                f"{self.path} has schema version {version}, this moltbot knows up to {SCHEMA_VERSION}: "
                "start the newer moltbot that wrote it"
            )

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            family = _family(error)
            if family in ("CORRUPT", "NOTADB"):
                text = self.damaged(f"is damaged ({error.orig})").message
                raise Unavailable(text, retryable=False) from error
            if family not in _ADVICE:
                raise  # a mistake in a statement
            advice = _ADVICE[family].format(base=self.path.parent)
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
            _sync(new, os.O_RDWR)
            new.replace(self.backup_path)
            _sync_directory(self.path.parent)
        except (OSError, sqlite3.Error, DBAPIError) as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise Unavailable(
                f"{BACKUP} could not be written ({error}); the copy before it is kept: "
                f"see whether the disk of {self.path.parent} is full or failing"
            ) from error
        return self.backup_path

    def _close(self) -> None:
        engine, sound = self._engine, self._sound
        try:
            if sound:
                self._write_backup()
        except Unavailable as error:
            log.error("%s", error)
        finally:
            self._engine, self._sound = None, False
            if engine is not None:
                engine.dispose()  # the last connection: SQLite moves the -wal into the file and removes it


def _create_engine(path: Path) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    options = {"timeout": _BUSY, "check_same_thread": True}
    engine = sa.create_engine(url, poolclass=sa.StaticPool, connect_args=options)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions by itself, and late
        for pragma in _PRAGMAS:
            connection.execute(pragma)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _family(error: DBAPIError) -> str:
    """FULL of SQLITE_FULL, IOERR of SQLITE_IOERR_WRITE; empty if SQLite gave no name."""
    return getattr(error.orig, "sqlite_errorname", "").removeprefix("SQLITE_").split("_")[0]


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # whoever waited may have gone; that is no reason for a warning


def _sync_directory(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
