"""What the router tells of itself: the status of the pool and the receipt of a user. Plain values, made from memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from moltbot.core.clock import Clock
from moltbot.core.jsonable import from_timestamp, jsonable
from moltbot.core.user_key import user_key
from moltbot.router.lanes import Lanes
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.plan import Protection
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.pool import WorkerPool
from moltbot.sandbox.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a worker's previous process ended."""

    incarnation: int
    reason: str
    detail: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. protections: what its wall does, by name. uptime: milliseconds of this incarnation; memory: bytes of its whole process tree; processes:
    with threads; cpu: percent of one core; disk: bytes of its directories; inodes: files and folders in them.
    """

    worker_id: str
    state: str
    pid: int | None
    incarnation: int
    start_time: datetime | None
    uptime: int
    requests: int
    in_flight: int
    queued: int
    errors: int
    restart_count: int
    connected: bool
    memory: int
    processes: int
    cpu: float
    disk: int
    inodes: int
    users: int
    last_heartbeat: datetime | None
    last_exit: LastExit | None
    isolation: str
    protections: tuple[Protection, ...]

    def to_json(self) -> dict[str, Any]:
        """The same in camelCase, times as ISO 8601."""
        return dict(jsonable(self))


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool. healthy: READY; busy: READY with work in flight; routing_table_size: users that have a pin.

    warning: what an operator must know of the isolation level; None if it is a wall.
    """

    timestamp: datetime
    total_workers: int
    healthy_workers: int
    busy_workers: int
    queued_requests: int
    running_requests: int
    completed_requests: int
    failed_requests: int
    routing_table_size: int
    isolation: str
    protections: tuple[Protection, ...]
    warning: str | None
    workers: list[WorkerStatus]

    def to_json(self) -> dict[str, Any]:
        """The same in camelCase."""
        return dict(jsonable(self))


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a user lives and why. directories: by part, below the worker's directory; overdue: requests that had to be killed."""

    user_id: str
    worker_id: str
    epoch: int
    since: datetime
    why: str
    worker_state: str
    loaded: bool
    running: int
    waiting: int
    overdue: int
    directories: dict[str, Path]

    def to_json(self) -> dict[str, Any]:
        """The same in camelCase."""
        return dict(jsonable(self))


@dataclass(frozen=True, slots=True)
class UserSummary:
    """One user in a list. size: bytes on disk of sessions, state and cache; None if that could not be measured in time."""

    user_id: str
    worker_id: str
    epoch: int
    since: datetime
    why: str
    loaded: bool
    running: int
    waiting: int
    forgetting: bool
    size: int | None

    def to_json(self) -> dict[str, Any]:
        """The same in camelCase."""
        return dict(jsonable(self))


@dataclass(frozen=True, slots=True)
class UserPage:
    """Users in byte order of their ids. next: what to ask for as `after`; None if these are the last."""

    users: list[UserSummary]
    next: str | None

    def to_json(self) -> dict[str, Any]:
        """The same in camelCase."""
        return dict(jsonable(self))


def worker_status(worker: Supervisor, *, queued: int, users: int, clock: Clock) -> WorkerStatus:
    """Describe one worker as it is now."""
    life = worker.life if worker.life is not None and worker.life.running else None
    last = worker.last_exit
    return WorkerStatus(
        worker_id=worker.worker_id,
        state=str(worker.state),
        pid=worker.pid,
        incarnation=worker.slot.incarnation,
        start_time=from_timestamp(life.started_at) if life is not None else None,
        uptime=round((clock.time() - life.started_at) * 1000) if life is not None else 0,
        requests=worker.counters.requests,
        in_flight=worker.in_flight,
        queued=queued,
        errors=worker.counters.errors,
        restart_count=worker.counters.restarts,
        connected=worker.connected,
        memory=life.usage.memory if life is not None else 0,
        processes=life.usage.tasks if life is not None else 0,
        cpu=life.cpu_percent if life is not None else 0.0,
        disk=worker.disk.size,
        inodes=worker.disk.inodes,
        users=users,
        last_heartbeat=_time(worker.life.last_beat_at if worker.life is not None else None),
        last_exit=LastExit(last.incarnation, last.reason, last.detail, from_timestamp(last.at))
        if last
        else None,
        isolation=str(worker.isolation.wall.level),
        protections=worker.isolation.protections,
    )


def pool_status(
    pool: WorkerPool,
    *,
    lanes: Lanes,
    counts: Mapping[str, int],
    users: int,
    completed: int,
    failed: int,
    clock: Clock,
) -> PoolStatus | None:
    """Describe the pool as it is now; None before its workers are made. counts: users by worker."""
    isolation = pool.isolation
    if isolation is None:
        return None
    workers = [
        worker_status(
            worker,
            queued=lanes.waiting_on(worker.worker_id),
            users=counts.get(worker.worker_id, 0),
            clock=clock,
        )
        for worker in pool.workers.values()
    ]
    healthy = [worker for worker in workers if is_healthy(worker)]
    return PoolStatus(
        timestamp=from_timestamp(clock.time()),
        total_workers=len(workers),
        healthy_workers=len(healthy),
        busy_workers=sum(1 for worker in healthy if worker.in_flight),
        queued_requests=lanes.waiting,
        running_requests=sum(worker.in_flight for worker in workers),
        completed_requests=completed,
        failed_requests=failed,
        routing_table_size=users,
        isolation=str(isolation.wall.level),
        protections=isolation.protections,
        warning=isolation.warning,
        workers=workers,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else from_timestamp(seconds)


def is_healthy(status: WorkerStatus) -> bool:
    return status.state == State.READY


def user_directories(config: PoolConfig, worker_id: str, user_id: str) -> dict[str, Path]:
    """The directories that hold a user's files."""
    root = config.sandbox_base_dir / worker_id
    return {part: root / part / user_key(user_id) for part in ("sessions", "state", "cache")}
