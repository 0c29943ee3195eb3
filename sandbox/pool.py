"""The workers of one gateway: claimed directory, one supervisor per slot, health rounds, one status.

Which worker gets which request, and when, is decided in `router/`; how one slot lives, in `supervisor.py`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from moltbot.core.clock import Clock
from moltbot.core.errors import BootError, NotFound, quote
from moltbot.core.events import Broadcast, PoolEvent, Subscription, WorkerChanged
from moltbot.core.service import Service
from moltbot.sandbox import lifecycle
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import PROBE, TRASH, WorkerDirectories, remove_trees, worker_name
from moltbot.sandbox.disk import DiskUse, measure_deleted, measure_disk
from moltbot.sandbox.isolation.choice import choose_wall
from moltbot.sandbox.isolation.isolation import Isolation, isolation_of
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.logs import LogPump
from moltbot.sandbox.memory import Usage, measure
from moltbot.sandbox.pool_log import PoolLog
from moltbot.sandbox.supervisor import Supervisor

HEALTH_SECONDS = 1.0
DISK_SHARE = 10

log = logging.getLogger("moltbot.pool")


class WorkerPool(Service):
    """The slots `worker-0` to `worker-(n-1)` in a base directory that the caller has claimed."""

    def __init__(
        self,
        config: PoolConfig,
        base: Path,
        clock: Clock,
        events: Broadcast[PoolEvent],
        gateway_ports: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.isolation: Isolation | None = None
        self._gateway_ports = gateway_ports
        self.workers: dict[str, Supervisor] = {}
        self._config = config
        self._base = base
        self._clock = clock
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []
        self._logs: LogPump | None = None
        self._log: PoolLog | None = None

    def __getitem__(self, worker_id: str) -> Supervisor:
        try:
            return self.workers[worker_id]
        except KeyError:
            known = ", ".join(self.workers) or "none"
            raise NotFound(f"there is no worker {quote(worker_id)}: there is {known}") from None

    async def _start(self) -> None:
        self._log = PoolLog(self._base, self._config)
        self._log.open()
        left = [*self._base.glob(f"{PROBE}*"), *self._base.glob(f".{TRASH}-*")]
        await remove_trees([str(path) for path in left])
        choice = await choose_wall(self._config, self._base, self._gateway_ports)
        wall = choice.wall
        for reason in choice.passed_over:
            log.warning("isolation level %s, for %s", wall.level, reason)
        isolation = self.isolation = isolation_of(wall, self._config)
        if isolation.warning is not None:
            log.warning("%s", isolation.warning)
        self._logs = LogPump(self._clock)
        self._logs.start()
        recycling = asyncio.Lock()
        for index in range(self._config.worker_count):
            directories = WorkerDirectories(self._base, worker_name(index))
            directories.create(wall.owner(directories.worker_id))
            self.workers[directories.worker_id] = Supervisor(
                directories.worker_id,
                self._config,
                directories=directories,
                isolation=isolation,
                clock=self._clock,
                logs=self._logs,
                events=self._events,
                recycling=recycling,
            )
        with self._events.subscribe() as events:
            for worker in self.workers.values():
                worker.handle(lifecycle.Start())
            await self._all_ready(events)
        watches = (self._watch_health(), self._watch_memory(), self._watch_disk())
        self._tasks = [asyncio.create_task(watch) for watch in watches]

    async def _all_ready(self, events: Subscription[PoolEvent]) -> None:
        """Wait for every first boot; each ends by its own deadline. One that fails fails the start."""
        missing = set(self.workers)
        async for event in events:
            if isinstance(event, WorkerChanged):
                if event.state == State.READY:
                    missing.discard(event.worker_id)
                elif event.state in (State.BACKOFF, State.QUARANTINED):
                    log_file = self._base / event.worker_id / "logs" / "worker.log"
                    raise BootError(
                        f"{event.worker_id} cannot boot ({event.reason}): {event.detail}. What it printed is in {log_file}",
                        worker=event.worker_id,
                        reason=event.reason,
                    )
            if not missing:
                return

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        workers = list(self.workers.values())
        for worker in workers:
            worker.handle(lifecycle.Stop())
        await asyncio.gather(*(worker.settled(State.STOPPED) for worker in workers))
        await asyncio.gather(*(worker.close() for worker in workers))
        self.workers.clear()
        if self._logs is not None:
            await asyncio.to_thread(self._logs.stop)
            self._logs = None
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def log_level(self) -> str:
        """The least level that the pool's log takes."""
        return self._log.level if self._log is not None else self._config.log_level

    def set_log_level(self, level: str) -> None:
        """Take records from `level` (debug, info, warning, error) from now on, until the pool stops."""
        if self._log is not None:
            self._log.set_level(level)

    async def _watch_health(self) -> None:
        while True:
            asleep_at = self._clock.monotonic()
            await self._clock.sleep(HEALTH_SECONDS)
            late = self._clock.monotonic() - asleep_at - HEALTH_SECONDS
            if late > HEALTH_SECONDS:
                continue  # this process was held up itself: let the waiting heartbeats be read before judging
            for worker in self.workers.values():
                try:
                    worker.check_health()
                except Exception:  # one worker's round must not end the others'
                    log.exception(
                        "%s: its health cannot be judged",
                        worker.worker_id,
                        extra={"worker": worker.worker_id},
                    )

    async def _watch_memory(self) -> None:
        last = self._clock.monotonic()
        while True:
            trees = {
                name: (pid, worker.filesystems)
                for name, worker in self.workers.items()
                if (pid := worker.root_pid) is not None
            }
            try:
                found = await asyncio.to_thread(_measure_all, trees, 2 * self._config.max_processes)
            except Exception:
                log.exception("memory cannot be measured; trying again")
                found = {}
            now = self._clock.monotonic()
            for name, usage in found.items():
                worker = self.workers[name]
                if usage is not None and worker.root_pid == trees[name][0]:
                    worker.measured(usage, now - last)
            last = now
            await self._clock.sleep(HEALTH_SECONDS)

    async def _watch_disk(self) -> None:
        """Each worker is measured again after a time that grows with what there was to count: one never delays the others'."""
        due: dict[str, float] = {}
        while True:
            for name, worker in self.workers.items():
                began = self._clock.monotonic()
                if began < due.get(name, 0.0):
                    continue
                try:
                    worker.disk_measured(await asyncio.to_thread(self._measure_disk, worker, worker.root_pid))
                except Exception:
                    log.exception(
                        "%s: its disk use cannot be measured; trying again", name, extra={"worker": name}
                    )
                now = self._clock.monotonic()
                due[name] = now + DISK_SHARE * (now - began)
            await self._clock.sleep(HEALTH_SECONDS)

    def _measure_disk(self, worker: Supervisor, root_pid: int | None) -> DiskUse:
        use = measure_disk(worker.directories.measured, max_inodes=self._config.max_inodes)
        if root_pid is None:
            return use
        deleted = measure_deleted(root_pid, self._base)
        return replace(
            use,
            size=use.size + deleted.size,
            inodes=use.inodes + deleted.inodes,
            uncounted=use.uncounted or deleted.uncounted,
        )


def _measure_all(trees: dict[str, tuple[int, tuple[str, ...]]], max_tasks: int) -> dict[str, Usage | None]:
    return {name: measure(pid, max_tasks, where) for name, (pid, where) in trees.items()}
