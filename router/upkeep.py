"""What a running router does beside requests: it follows its workers, unloads idle users, writes a backup every hour.

Requests are in `gateway_router.py`; how workers are kept alive, in `sandbox/supervisor.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial

from moltbot.core.clock import Clock
from moltbot.core.events import PoolEvent, RequestOverdue, Subscription, WorkerChanged
from moltbot.router.database import Database
from moltbot.router.dispatcher import Dispatcher
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.pool import WorkerPool

BACKUP_SECONDS = 3600.0
MAX_OVERDUE_USERS = 1000

log = logging.getLogger("moltbot.router")


async def watch_workers(
    dispatcher: Dispatcher, events: Subscription[PoolEvent], overdue: Counter[str]
) -> None:
    """Start what waits when its worker is ready, refuse it when the worker rests, and count requests that had to be killed."""
    with events:
        async for event in events:
            if events.take_lost():
                dispatcher.reconcile()
            if isinstance(event, WorkerChanged):
                if event.state == State.READY:
                    dispatcher.pump(event.worker_id)
                elif event.state == State.QUARANTINED:
                    dispatcher.refuse_waiting(
                        event.worker_id, partial(dispatcher.quarantined, event.worker_id)
                    )
            elif isinstance(event, RequestOverdue):
                _note_overdue(overdue, event.user_id)


def _note_overdue(overdue: Counter[str], user_id: str) -> None:
    if user_id not in overdue and len(overdue) >= MAX_OVERDUE_USERS:
        overdue.pop(next(iter(overdue)))
    overdue[user_id] += 1


async def unload_idle_users(dispatcher: Dispatcher, pool: WorkerPool, idle: float, clock: Clock) -> None:
    """Let users leave their worker's memory after `idle` seconds without a request."""
    while True:
        await clock.sleep(min(idle / 4, 30.0))
        now = clock.monotonic()
        used = dispatcher.last_used
        for worker in pool.workers.values():
            for user_id in worker.loaded_users:
                if dispatcher.lanes.of_user(user_id) == (0, 0) and now - used.get(user_id, 0.0) >= idle:
                    worker.unload(user_id)
        for user_id in [user_id for user_id, at in used.items() if now - at >= idle]:
            del used[user_id]


async def back_up(database: Database, clock: Clock) -> None:
    """Write a copy of the database every hour."""
    while True:
        await clock.sleep(BACKUP_SECONDS)
        try:
            await database.backup()
        except Exception as error:
            log.error("the hourly backup failed, the next one is in an hour: %s", error)
