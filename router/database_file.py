"""The file `moltbot.db` itself: claiming it, opening it, and refusing one that cannot be used, with the way back.

Covers links, modes, damage, versions, the engine with its pragmas, what to do about an error of SQLite's, and syncing.
Which tables are in it is in `schema.py`; the thread that works with the open file, transactions and backups are in
`database.py`. Everything here blocks and takes no lock: that only one gateway has the file is up to its base directory.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from moltbot.core.errors import BaseDirectoryError, DatabaseDamaged, StartupError
from moltbot.router.schema import SCHEMA_VERSION, create_tables, metadata, stored_version

FILE = "moltbot.db"
BACKUP = "moltbot.db.backup"

_BUSY = 5.0  # seconds that SQLite waits for a lock another program holds
_PRAGMAS = (
    f"PRAGMA busy_timeout={_BUSY * 1000:.0f}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",  # macOS: without it a sync stops at the disk's own cache
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # what is deleted is overwritten; for what pages hold besides, see Database.scrub
)
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


class DatabaseFile:
    """The file in `base`, a directory that must exist and be the gateway's own, and its copy beside it."""

    def __init__(self, base: Path) -> None:
        self.path = base.absolute() / FILE
        self.backup_path = self.path.with_name(BACKUP)

    def open(self, now: float) -> sa.Engine:
        """Return the engine for a file that is checked, or new as of `now`, in seconds since 1970.

        The engine has one connection, which belongs to the calling thread. Raises DatabaseDamaged, BaseDirectoryError
        or, for the file of a newer moltbot, StartupError; nothing is open then.
        """
        self._claim()
        engine = _create_engine(self.path)
        try:
            self._check(engine, now)
        except BaseException:
            engine.dispose()
            raise
        return engine

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

    def advice(self, error: DBAPIError) -> str | None:
        """What to do about an error that is the machine's fault; None for any other."""
        advice = _ADVICE.get(_family(error))
        return None if advice is None else advice.format(base=self.path.parent)

    def _claim(self) -> None:
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
        sync_directory(self.path.parent)

    def _check(self, engine: sa.Engine, now: float) -> None:
        try:
            with engine.begin() as connection:
                self._check_pages(connection)
                self._check_schema(connection, now)
        except DBAPIError as error:
            advice = self.advice(error)
            if advice is None:
                raise self.damaged(f"is damaged ({error.orig})") from error
            raise BaseDirectoryError(f"{self.path} cannot be opened: {error.orig}: {advice}") from error

    def _check_pages(self, connection: sa.Connection) -> None:
        faults = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(3)")]
        if faults != ["ok"]:
            raise self.damaged(
                "is damaged ({})".format("; ".join(" ".join(fault.split()) for fault in faults))
            )

    def _check_schema(self, connection: sa.Connection, now: float) -> None:
        tables = set(
            connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        )
        if not tables:
            create_tables(connection, now)
            return
        if not tables.issuperset(metadata.tables):
            raise self.damaged("is an SQLite database, but not one of moltbot's")
        version = stored_version(connection)
        if not version.isdecimal() or int(version) < 1:
            raise self.damaged(f"has no valid schema version, but {version!r}")
        if int(version) > SCHEMA_VERSION:
            raise StartupError(
                f"{self.path} has schema version {version}, this moltbot knows up to {SCHEMA_VERSION}: "
                "start the newer moltbot that wrote it"
            )


def is_damage(error: DBAPIError) -> bool:
    """True if SQLite met pages that it cannot read as its own."""
    return _family(error) in ("CORRUPT", "NOTADB")


def sync_directory(path: Path) -> None:
    """Return when the names in the directory are on disk; raises OSError."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Return when the file's content is on disk; raises OSError."""
    _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_engine(path: Path) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    options = {"timeout": _BUSY, "check_same_thread": True}
    engine = sa.create_engine(url, poolclass=sa.StaticPool, connect_args=options, hide_parameters=True)

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
