"""What `moltbot.db` keeps of forgotten users: keyed digests and their last epochs; and of those who are being forgotten.

Covers the rows of `forgettings` and `tombstones`, every row that must go with a user, and the key of the digests. The steps of
forgetting are in `forgetting.py`; what a digest is, in `core/keyed_hash.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from moltbot.core.errors import StartupError
from moltbot.core.keyed_hash import KeyedHash
from moltbot.router.database import Database
from moltbot.router.schema import (
    forgettings,
    metadata,
    store_key_check,
    stored_key_check,
    tokens,
    tombstones,
)
from moltbot.sandbox.secret_file import KEY_FILE, load_or_create_secret

_SELECT = select(tombstones.c.digest, tombstones.c.epoch, tombstones.c.scrubbed)
_UNFINISHED = select(forgettings.c.user_id, forgettings.c.epoch)


async def open_key(base: Path, database: Database) -> KeyedHash:
    """Return the hashes of this base directory; raises StartupError if its key was lost or replaced."""
    path = base / KEY_FILE
    known = await database.transact(stored_key_check)
    if known is not None and not path.exists():
        raise _other_key(path, database, "is missing")
    keyed_hash = KeyedHash(load_or_create_secret(path))
    check = keyed_hash.digest(b"", "check").hex()
    if known is None:
        await database.transact(lambda connection: store_key_check(connection, check))
    elif known != check:
        raise _other_key(path, database, f"is not the one that {database.path} was used with")
    return keyed_hash


def _other_key(path: Path, database: Database, what: str) -> StartupError:
    remedy = f"sqlite3 {database.path} \"DELETE FROM meta WHERE key = 'key_check'\""
    return StartupError(
        f"{path} {what}: restore it from a backup; or, accepting that the epochs of forgotten users are not remembered, "
        f"run `{remedy}` and start again"
    )


class Tombstones:
    """All of them, in memory; `load` comes first. For one event loop."""

    def __init__(self, database: Database, keyed_hash: KeyedHash) -> None:
        self.unscrubbed: set[bytes] = set()
        """Digests of users of whom the file, its log or its backup may still hold something."""
        self._database = database
        self._hash = keyed_hash
        self._epochs: dict[bytes, int] = {}

    async def load(self) -> dict[str, int]:
        """Read what there is; returns the users whose forgetting has not ended, with their epochs."""
        found, unfinished = await self._database.transact(_load)
        self._epochs = {digest: epoch for digest, epoch, _ in found}
        self.unscrubbed = {digest for digest, _, scrubbed in found if not scrubbed}
        return unfinished

    def last_epoch(self, user_id: str) -> int:
        """The last epoch of a user who was forgotten; 0 for any other."""
        return self._epochs.get(self._digest(user_id), 0) if self._epochs else 0

    def _digest(self, user_id: str) -> bytes:
        return self._hash.digest(user_id.encode(), "tombstone")

    async def begin(self, user_id: str, worker_id: str, epoch: int, now: float) -> None:
        """In one transaction: the user will be forgotten, whatever happens, and their credentials are void."""
        key = user_id.encode()
        row = {"user_id": key, "worker_id": worker_id, "epoch": epoch, "since": now}

        def work(connection: Connection) -> None:
            connection.execute(delete(forgettings).where(forgettings.c.user_id == key))
            connection.execute(insert(forgettings), row)
            connection.execute(delete(tokens).where(tokens.c.user_id == key))

        await self._database.transact(work)

    async def has_rows(self, user_id: str) -> bool:
        """Whether anything is stored of a user, pinned or not."""
        key = user_id.encode()

        def work(connection: Connection) -> bool:
            return any(
                connection.execute(select(table).where(table.c.user_id == key).limit(1)).first() is not None
                for table in metadata.tables.values()
                if "user_id" in table.c
            )

        return await self._database.transact(work)

    async def bury(self, user_id: str, epoch: int, now: float) -> bytes:
        """In one transaction: every row of the user gives way to the tombstone, whose digest is returned."""
        key, digest = user_id.encode(), self._digest(user_id)
        row = {"digest": digest, "epoch": epoch, "forgotten": now, "scrubbed": False}

        def work(connection: Connection) -> None:
            for table in metadata.tables.values():  # all there are: `schema.py` promises the name
                if "user_id" in table.c:
                    connection.execute(delete(table).where(table.c.user_id == key))
            connection.execute(delete(tombstones).where(tombstones.c.digest == digest))
            connection.execute(insert(tombstones), row)

        await self._database.transact(work)
        self._epochs[digest] = epoch
        self.unscrubbed.add(digest)
        return digest

    async def scrub(self) -> None:
        """Leave nothing of those who are buried anywhere in the file, its log and its backup."""
        digests = frozenset(self.unscrubbed)
        await self._database.scrub()
        # Without a deadline: a late mark is no reason to rewrite the whole file once more.
        await self._database.submit(lambda connection: _mark(connection, digests))
        self.unscrubbed -= digests


def _load(connection: Connection) -> tuple[list[tuple[bytes, int, bool]], dict[str, int]]:
    found = [(digest, epoch, scrubbed) for digest, epoch, scrubbed in connection.execute(_SELECT)]
    return found, {user_id.decode(): epoch for user_id, epoch in connection.execute(_UNFINISHED)}


def _mark(connection: Connection, digests: Collection[bytes]) -> None:
    for digest in digests:
        connection.execute(update(tombstones).where(tombstones.c.digest == digest).values(scrubbed=True))
