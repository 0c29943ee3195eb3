"""The users of a router, page by page: rows from the database, what they do now from memory, sizes from the disk.

The dataclasses are in `status.py`; how a tree is measured, in `sandbox/disk.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, select

from moltbot.core.clock import Clock
from moltbot.core.errors import InvalidRequest, quote
from moltbot.core.jsonable import from_timestamp
from moltbot.core.user_key import check_user_id
from moltbot.router.database import Database
from moltbot.router.directory import Pin
from moltbot.router.dispatcher import Dispatcher
from moltbot.router.homes import Homes
from moltbot.router.schema import pins
from moltbot.router.status import UserPage, UserSummary, user_directories
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.disk import measure_disk
from moltbot.sandbox.pool import WorkerPool

MAX_LIMIT = 1000
MEASURE_SECONDS = 2.0

_SELECT = select(pins.c.user_id, pins.c.worker_id, pins.c.epoch, pins.c.since, pins.c.why)


class UsersList:
    """Reads pages; nothing of it is kept."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        database: Database,
        homes: Homes,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        clock: Clock,
    ) -> None:
        self._config = config
        self._database = database
        self._homes = homes
        self._dispatcher = dispatcher
        self._pool = pool
        self._clock = clock

    async def page(self, after: str | None, limit: int) -> UserPage:
        """The next `limit` users after an id, in byte order of ids. Raises InvalidRequest."""
        if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
            raise InvalidRequest(f"limit is {quote(limit)}: use a number from 1 to {MAX_LIMIT}")
        start = check_user_id(after).encode() if after is not None else b""
        found = await self._database.transact(lambda connection: _rows(connection, start, limit + 1))
        rows, more = found[:limit], len(found) > limit
        folders = [
            [*user_directories(self._config, pin.worker_id, user_id).values()] for user_id, pin in rows
        ]
        sizes = await asyncio.to_thread(
            _measure, folders, self._config.max_inodes, MEASURE_SECONDS, self._clock.monotonic
        )
        users = [self._summary(user_id, pin, size) for (user_id, pin), size in zip(rows, sizes, strict=True)]
        return UserPage(users=users, next=users[-1].user_id if more else None)

    def _summary(self, user_id: str, pin: Pin, size: int | None) -> UserSummary:
        running, waiting = self._dispatcher.lanes.of_user(user_id)
        return UserSummary(
            user_id=user_id,
            worker_id=pin.worker_id,
            epoch=pin.epoch,
            since=from_timestamp(pin.since),
            why=pin.why,
            loaded=self._pool[pin.worker_id].is_loaded(user_id),
            running=running,
            waiting=waiting,
            forgetting=self._homes.is_shut(user_id),
            size=size,
        )


def _rows(connection: Connection, after: bytes, limit: int) -> list[tuple[str, Pin]]:
    statement = _SELECT.where(pins.c.user_id > after).order_by(pins.c.user_id).limit(limit)
    return [(user_id.decode(), Pin(*pin)) for user_id, *pin in connection.execute(statement)]


def _measure(
    folders: list[list[Path]], max_inodes: int, seconds: float, monotonic: Callable[[], float]
) -> list[int | None]:
    """Bytes of each user; None for those whose turn did not come in time, or whose files cannot all be counted."""
    until = monotonic() + seconds
    sizes: list[int | None] = []
    for roots in folders:
        use = measure_disk(roots, max_inodes=max_inodes) if monotonic() < until else None
        sizes.append(
            use.size if use is not None and use.uncounted is None and use.inodes <= max_inodes else None
        )
    return sizes
