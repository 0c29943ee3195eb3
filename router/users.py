"""What an operator does with users: list, export, forget. Joins the parts; each is in a module of its own.

Requests of users are in `gateway_router.py`; who may do this, and by which address, in `gateway/`.
"""

from __future__ import annotations

import contextlib
from collections import Counter

from moltbot.core.clock import Clock
from moltbot.core.errors import NotRunning
from moltbot.core.events import Broadcast, PoolEvent
from moltbot.core.keyed_hash import KeyedHash
from moltbot.core.user_key import check_user_id
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from moltbot.router.dispatcher import Dispatcher, stopping
from moltbot.router.exporting import Export, Exports
from moltbot.router.forgetting import Forgettings
from moltbot.router.homes import Homes, being_forgotten
from moltbot.router.status import UserPage
from moltbot.router.tombstones import Tombstones
from moltbot.router.users_list import UsersList
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.pool import WorkerPool


class Users:
    """Those of one running router. overdue: requests that had to be killed, by user."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        database: Database,
        directory: Directory,
        homes: Homes,
        dispatcher: Dispatcher,
        pool: WorkerPool,
        tombstones: Tombstones,
        names: KeyedHash,
        events: Broadcast[PoolEvent],
        clock: Clock,
        overdue: Counter[str],
    ) -> None:
        self._dispatcher = dispatcher
        self._overdue = overdue
        self._stopping = False
        self._list = UsersList(
            config, database=database, homes=homes, dispatcher=dispatcher, pool=pool, clock=clock
        )
        self._exports = Exports(
            config, directory=directory, homes=homes, dispatcher=dispatcher, pool=pool, clock=clock
        )
        self._forgettings = Forgettings(
            config.sandbox_base_dir,
            tombstones=tombstones,
            directory=directory,
            homes=homes,
            dispatcher=dispatcher,
            pool=pool,
            names=names,
            events=events,
            clock=clock,
            drain_seconds=config.drain_timeout / 1000,
            on_begin=lambda user_id: self._exports.abort(user_id, being_forgotten()),
            on_buried=self._drop,
        )

    def resume(self, unfinished: dict[str, int]) -> None:
        """Go on with what the last life of the router did not end: users who are being forgotten, by id, with their epochs."""
        self._forgettings.resume(unfinished)

    async def close(self) -> None:
        """Begin nothing more, and end what is under way; a forgetting goes on at the next start."""
        self._stopping = True
        self._exports.abort_copying(stopping())
        await self._forgettings.close()

    async def page(self, after: str | None, limit: int) -> UserPage:
        """See `GatewayRouter.list_users`."""
        return await self._list.page(after, limit)

    def export(self, user_id: str, seconds: float) -> contextlib.AbstractAsyncContextManager[Export]:
        """See `GatewayRouter.export`."""
        self._check(user_id)
        return self._exports.export(user_id, seconds)

    async def forget(self, user_id: str, seconds: float) -> None:
        """See `GatewayRouter.forget`."""
        self._check(user_id)
        await self._forgettings.forget(user_id, seconds)

    def _check(self, user_id: str) -> None:
        check_user_id(user_id)
        if self._stopping:
            raise stopping()

    def _drop(self, user_id: str) -> None:
        self._overdue.pop(user_id, None)
        self._dispatcher.last_used.pop(user_id, None)


def not_started() -> NotRunning:
    """The refusal of a question to a router that does not run."""
    return NotRunning("the gateway is not running: start it first")
