"""What was answered to requests that came with an `Idempotency-Key`, in `moltbot.db`: begun once, ended once, replayed after.

Bounded per owner and in all, by number, bytes and age. Which requests have an owner, and what is replayed over HTTP, is in
`idempotency.py`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, Executable, bindparam, delete, func, insert, select, true, update

from moltbot.core.clock import Clock
from moltbot.core.errors import MoltbotError, Unavailable
from moltbot.router.database import Database
from moltbot.router.schema import outcomes

MAX_AGE = 24 * 3600.0
MAX_PER_OWNER = 1_000
MAX_BYTES_PER_OWNER = 16 << 20
MAX_IN_ALL = 100_000
MAX_BYTES_IN_ALL = 1 << 30
MAX_OUTCOME_BYTES = 1 << 20
_PURGE_EVERY = 200  # new ones between two looks at the whole table

_o = outcomes.c
# Built once: building a statement takes several times as long as running one of these.
_NAMED = (_o.owner == bindparam("its_owner"), _o.key == bindparam("its_key"))
_MINE = (*_NAMED, _o.fingerprint == bindparam("its_fingerprint"))
_FIND = select(_o.fingerprint, _o.status, _o.content_type, _o.body).where(
    *_NAMED, _o.created > bindparam("oldest")
)
_INSERT = insert(outcomes)
_DELETE = delete(outcomes).where(*_NAMED)
_RELEASE = delete(outcomes).where(*_MINE)
_TAKE_BACK = delete(outcomes).where(*_MINE, _o.status.is_(None))
_END = (
    update(outcomes)
    .where(*_MINE)
    .values(status=bindparam("new_status"), content_type=bindparam("new_type"), body=bindparam("new_body"))
)
_DELETE_OLD = delete(outcomes).where(_o.created <= bindparam("oldest"))
_COUNT_ALL = select(func.count(), func.coalesce(func.sum(func.length(_o.body)), 0))
_COUNT_OWN = _COUNT_ALL.where(_o.owner == bindparam("its_owner"))


@dataclass(frozen=True, slots=True)
class Key:
    """Who gave which key, and for what: a request that differs under the same key has another fingerprint. user_id: whom it is for."""

    owner: bytes
    key: str
    user_id: str | None
    fingerprint: bytes

    @property
    def name(self) -> tuple[bytes, str]:
        return self.owner, self.key

    @property
    def named(self) -> dict[str, object]:
        """As the statements' parameters."""
        return {"its_owner": self.owner, "its_key": self.key, "its_fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer that is kept. body: None if it was too large to be kept."""

    status: int
    content_type: str
    body: bytes | None


Found = Outcome | Literal["begun", "different", "unfinished", "unknown"]


class Outcomes:
    """The table. What is unfinished and not under way now was under way when an earlier gateway ended."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._running: dict[tuple[bytes, str], bytes] = {}  # and the fingerprint of what runs
        self._begun = 0

    def kept_open(self) -> contextlib.AbstractContextManager[None]:
        """Until the block ends, a gateway that stops waits for what is to be kept."""
        return self._database.needed()

    async def begin(self, key: Key, *, again: bool) -> Found:
        """Note that the request begins, durably, unless its key is known; says what is known of it then.

        again: it may run again although it was under way when an earlier gateway ended; else that is `unknown`.
        """
        running = self._running.get(key.name)
        if running is not None:
            return "unfinished" if running == key.fingerprint else "different"
        self._running[key.name] = key.fingerprint
        try:
            found = await self._database.transact(
                lambda connection: self._begin(connection, key, again=again)
            )
        except BaseException:
            # Whoever waited has left, or the disk is too slow: it may be noted, and never begins.
            self._running.pop(key.name, None)
            with contextlib.suppress(MoltbotError):
                self._database.submit(lambda connection: connection.execute(_TAKE_BACK, key.named))
            raise
        if found != "begun":
            del self._running[key.name]
        return found

    async def end(self, key: Key, outcome: Outcome) -> None:
        """Keep the answer, durably."""
        body = outcome.body if outcome.body is None or len(outcome.body) <= MAX_OUTCOME_BYTES else None
        values = {"new_status": outcome.status, "new_type": outcome.content_type, "new_body": body}
        await self._finish(key, _END, values)

    async def release(self, key: Key) -> None:
        """Nothing was done: let the same key begin again."""
        await self._finish(key, _RELEASE, {})

    async def purge(self) -> None:
        """Delete those that are too old, also of owners who send nothing more."""
        oldest = self._clock.time() - MAX_AGE
        await self._database.transact(lambda connection: connection.execute(_DELETE_OLD, {"oldest": oldest}))

    async def _finish(self, key: Key, statement: Executable, values: dict[str, object]) -> None:
        named = key.named | values
        try:
            await self._database.transact(lambda connection: connection.execute(statement, named))
        finally:  # even if nobody waits for it any more: what comes later is behind it in the database's queue
            self._running.pop(key.name, None)

    def _begin(self, connection: Connection, key: Key, *, again: bool) -> Found:
        """In the writer thread."""
        now = self._clock.time()
        found = connection.execute(_FIND, key.named | {"oldest": now - MAX_AGE}).first()
        if found is not None:
            if found.fingerprint != key.fingerprint:
                return "different"
            if found.status is not None:
                return Outcome(found.status, found.content_type, found.body)
            if not again:
                return "unknown"
        _make_room(connection, key.owner, now, everywhere=self._begun % _PURGE_EVERY == 0)
        self._begun += 1
        connection.execute(_DELETE, key.named)
        row = {
            "owner": key.owner,
            "key": key.key,
            "user_id": None if key.user_id is None else key.user_id.encode(),
            "fingerprint": key.fingerprint,
            "created": now,
        }
        connection.execute(_INSERT, row)
        return "begun"


def _make_room(connection: Connection, owner: bytes, now: float, *, everywhere: bool) -> None:
    """Delete what is too old, and the oldest finished ones beyond a bound; raises Unavailable if none is finished."""
    if everywhere:
        connection.execute(_DELETE_OLD, {"oldest": now - MAX_AGE})
        _keep_within(connection, MAX_IN_ALL - _PURGE_EVERY, MAX_BYTES_IN_ALL)
    left = _keep_within(connection, MAX_PER_OWNER - 1, MAX_BYTES_PER_OWNER - MAX_OUTCOME_BYTES, owner)
    if left >= MAX_PER_OWNER:
        raise Unavailable(
            f"{left} requests with an Idempotency-Key are unfinished, the most allowed: wait for answers first",
            retry_after=1.0,
        )


def _keep_within(connection: Connection, most: int, most_bytes: int, owner: bytes | None = None) -> int:
    """Delete the oldest finished ones until so many, of so many bytes, are left; returns how many are."""
    counting = _COUNT_ALL if owner is None else _COUNT_OWN
    count, size = connection.execute(counting, {} if owner is None else {"its_owner": owner}).one()
    if count <= most and size <= most_bytes:
        return int(count)
    mine = _o.owner == owner if owner is not None else true()
    finished = select(_o.owner, _o.key, func.coalesce(func.length(_o.body), 0).label("size")).where(
        mine, _o.status.is_not(None)
    )
    for row in connection.execute(finished.order_by(_o.created)).all():
        connection.execute(_DELETE, {"its_owner": row.owner, "its_key": row.key})
        count, size = count - 1, size - row.size
        if count <= most and size <= most_bytes:
            break
    return int(count)
