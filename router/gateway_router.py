"""`GatewayRouter`: every user's requests go to that user's one worker, in order. The heart of the embedding API.

It joins the pieces and decides nothing itself: where a user lives is in `homes.py`, what runs now in `dispatcher.py`, how
workers live in `sandbox/pool.py`. HTTP and credentials are in `gateway/`.

    async with create_gateway_router(pool_config={"workerCount": 3}) as router:
        reply = await router.route(Request("agent", "user-a", {"message": "hello"}))
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

from moltbot.core.clock import Clock, SystemClock
from moltbot.core.errors import (
    NotFound,
    NotRunning,
    ReplyTooLarge,
    quote,
)
from moltbot.core.events import Broadcast, PoolEvent, RequestOverdue, Subscription, WorkerChanged
from moltbot.core.frames import Streamed
from moltbot.core.framing import MAX_FRAME_BYTES
from moltbot.core.jsonable import from_timestamp
from moltbot.core.messages import Chunk, Event, Reply, Request, StreamItem, Usage
from moltbot.core.service import Service
from moltbot.core.user_key import check_user_id
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from moltbot.router.dispatcher import Dispatcher, stopping
from moltbot.router.flight import Flight
from moltbot.router.homes import Homes
from moltbot.router.ring import Ring
from moltbot.router.status import PoolStatus, Receipt, is_healthy, user_directories, worker_status
from moltbot.sandbox.base_directory import BaseDirectory
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import worker_name
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.pool import WorkerPool

BACKUP_SECONDS = 3600.0
MAX_OVERDUE_USERS = 1000

log = logging.getLogger("moltbot.router")


def create_gateway_router(
    pool_config: Mapping[str, Any] | PoolConfig | None = None, *, clock: Clock | None = None
) -> GatewayRouter:
    """Make a router that is not started yet.

    pool_config: settings by their names, snake_case or camelCase, with the guide's nested `workerConfig` if you like. Raises
    SettingsError for an unknown or impossible one.
    """
    return GatewayRouter(PoolConfig.read(pool_config), clock or SystemClock())


class GatewayRouter(Service):
    """Routes requests; `start` and `stop` it, or use it in `async with`. All methods are for one event loop."""

    def __init__(self, config: PoolConfig, clock: Clock) -> None:
        super().__init__()
        self.config = config
        self._closed_ports: tuple[int, ...] = ()
        self._clock = clock
        self._events: Broadcast[PoolEvent] = Broadcast()
        self._worker_ids = [worker_name(index) for index in range(config.worker_count)]
        self._ring = Ring(self._worker_ids)
        self._base: BaseDirectory | None = None
        self._database: Database | None = None
        self._directory: Directory | None = None
        self._pool: WorkerPool | None = None
        self._homes: Homes | None = None
        self._dispatcher: Dispatcher | None = None
        self._accepting = False
        self._tasks: list[asyncio.Task[None]] = []
        self._overdue: Counter[str] = Counter()
        self._completed = 0
        self._failed = 0

    # --- life -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._base = BaseDirectory.claim(self.config.sandbox_base_dir)
        path = self._base.path
        self.config = self.config.model_copy(update={"sandbox_base_dir": path})
        self._database = Database(path, self._clock)
        await self._database.start()
        self._directory = Directory(self._database, self._clock)
        await self._directory.start()
        self._directory.check_workers(self._worker_ids)
        self._pool = WorkerPool(self.config, path, self._clock, self._events, self._closed_ports)
        self._dispatcher = Dispatcher(self.config, self._pool.workers, self._clock)
        self._homes = Homes(
            self._ring,
            self._directory,
            self._pool,
            events=self._events,
            clock=self._clock,
            max_waiting=self.config.max_queue_per_user,
        )
        self._tasks.append(
            asyncio.create_task(self._watch_workers(self._dispatcher, self._events.subscribe()))
        )
        await self._pool.start()
        self._tasks.append(asyncio.create_task(self._unload_idle_users(self._dispatcher, self._pool)))
        self._tasks.append(asyncio.create_task(self._back_up(self._database)))
        self._accepting = True

    async def _stop(self) -> None:
        self._accepting = False
        async with contextlib.AsyncExitStack() as last_first:  # each is put away even if another cannot be
            last_first.callback(self._forget)
            for service in (self._database, self._directory):
                if service is not None:
                    last_first.push_async_callback(service.stop)
            last_first.push_async_callback(self._end_tasks)
            if self._pool is not None:
                last_first.push_async_callback(self._pool.stop)
            if self._dispatcher is not None:
                last_first.callback(self._dispatcher.close)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _forget(self) -> None:
        if self._base is not None:
            self._base.release()
        self._base = self._database = self._directory = None
        self._pool = self._homes = self._dispatcher = None
        self._events.close()

    def close_to_workers(self, *ports: int) -> None:
        """Name TCP ports that no worker may reach, such as that of a gateway in front; before `start`."""
        if self._pool is not None:
            raise RuntimeError("the workers' walls are up already")
        self._closed_ports = ports

    def announce(self, url: str) -> None:
        """Write the gateway's address where the command line finds it."""
        if self._base is not None:
            self._base.announce(url)

    @property
    def draining(self) -> bool:
        """True while stopping: what runs may end, nothing new is taken."""
        return self._stopping is not None

    def events(self) -> Subscription[PoolEvent]:
        """Subscribe to what happens: `async for event in router.events()`; ends when closed."""
        return self._events.subscribe()

    # --- requests -------------------------------------------------------------------------------------

    async def route(self, request: Request | Mapping[str, Any]) -> Reply:
        """Run a request on its user's worker and return the reply, streamed chunks joined.

        Raises a MoltbotError: InvalidRequest, UserQueueFull, QueueFull, WorkerQuarantined, RequestTimeout, WorkerDied,
        HandlerError, NotRunning ... Cancelling the caller cancels the handler.
        """
        started = self._clock.monotonic()
        flight = await self._admit(request)
        chunks: list[Any] = []
        size = 0
        try:
            while type(item := await flight.next()) is Streamed:
                if item.kind == "chunk":
                    size += item.size
                    if size > MAX_FRAME_BYTES:
                        raise ReplyTooLarge(
                            f"the answer is over {MAX_FRAME_BYTES} bytes: ask for it as a stream",
                            worker=flight.worker_id,
                        )
                    chunks.append(item.frame["data"])
        except BaseException:
            self._give_up(flight)
            raise
        return self._reply(flight, item.frame, started, chunks)

    async def stream(self, request: Request | Mapping[str, Any]) -> AsyncGenerator[StreamItem, None]:
        """Run a request and yield what it streams, `Chunk | Event | Usage`, and at last its `Reply`.

        Raises as `route` does. A reader that is slow slows only its own handler; closing the iterator cancels it.
        """
        started = self._clock.monotonic()
        flight = await self._admit(request)
        try:
            while type(item := await flight.next()) is Streamed:
                yield _stream_item(item)
        except BaseException:
            self._give_up(flight)
            raise
        yield self._reply(flight, item.frame, started, [])

    async def _admit(self, request: Request | Mapping[str, Any]) -> Flight:
        """Find the user's worker and enter their lane; returns when the request has its place there."""
        if not isinstance(request, Request):
            request = Request.from_mapping(request)
        homes, dispatcher = self._homes, self._dispatcher
        if homes is None or dispatcher is None or not self._accepting:
            raise NotRunning(
                "the gateway is not running (not started, or stopping): start it, or send the request later",
            )
        pin = homes.known(request.user_id)
        if pin is not None:
            return dispatcher.enter(request, pin)
        async with homes.arrival(request.user_id) as pin:
            if not self._accepting:
                raise stopping()
            return dispatcher.enter(request, pin)

    def _give_up(self, flight: Flight) -> None:
        self._failed += 1
        if self._dispatcher is not None:
            self._dispatcher.give_up(flight)

    def _reply(self, flight: Flight, frame: Mapping[str, Any], started: float, chunks: list[Any]) -> Reply:
        payload = frame["payload"]
        if chunks:
            payload = "".join(chunks) if all(type(chunk) is str for chunk in chunks) else chunks
        seconds = self._clock.monotonic() - started
        self._completed += 1
        if self._dispatcher is not None:
            self._dispatcher.took(flight.worker_id, seconds)
        return Reply(
            request_id=flight.request_id,
            user_id=flight.user_id,
            worker_id=flight.worker_id,
            epoch=flight.epoch,
            payload=payload,
            usage=frame.get("usage") or {},
            duration_ms=seconds * 1000,
        )

    # --- what goes on beside requests -----------------------------------------------------------------

    async def _watch_workers(self, dispatcher: Dispatcher, events: Subscription[PoolEvent]) -> None:
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
                    self._note_overdue(event.user_id)

    def _note_overdue(self, user_id: str) -> None:
        if user_id not in self._overdue and len(self._overdue) >= MAX_OVERDUE_USERS:
            self._overdue.pop(next(iter(self._overdue)))
        self._overdue[user_id] += 1

    async def _unload_idle_users(self, dispatcher: Dispatcher, pool: WorkerPool) -> None:
        idle = self.config.user_idle_timeout / 1000
        while True:
            await self._clock.sleep(min(idle / 4, 30.0))
            now = self._clock.monotonic()
            used = dispatcher.last_used
            for worker in pool.workers.values():
                for user_id in worker.loaded_users:
                    if dispatcher.lanes.of_user(user_id) == (0, 0) and now - used.get(user_id, 0.0) >= idle:
                        worker.unload(user_id)
            for user_id in [user_id for user_id, at in used.items() if now - at >= idle]:
                del used[user_id]

    async def _back_up(self, database: Database) -> None:
        while True:
            await self._clock.sleep(BACKUP_SECONDS)
            try:
                await database.backup()
            except Exception as error:
                log.error("the hourly backup failed, the next one is in an hour: %s", error)

    # --- questions ------------------------------------------------------------------------------------

    def get_worker_for_user(self, user_id: str) -> str | None:
        """The user's worker, or the one a first request would give them now; reads memory only.

        None before start, and for a new user while no worker can take one.
        """
        check_user_id(user_id)
        return self._homes.preview(user_id) if self._homes is not None else None

    def where(self, user_id: str) -> Receipt:
        """Where a user lives, since when and why; raises NotFound for a user who never sent a request."""
        check_user_id(user_id)
        if self._directory is None or self._pool is None or self._dispatcher is None:
            raise NotRunning("the gateway is not running: start it first")
        pin = self._directory.get(user_id)
        if pin is None:
            raise NotFound(f"user {quote(user_id)} has no worker yet: the first request chooses one")
        worker = self._pool[pin.worker_id]
        running, waiting = self._dispatcher.lanes.of_user(user_id)
        return Receipt(
            user_id=user_id,
            worker_id=pin.worker_id,
            epoch=pin.epoch,
            since=from_timestamp(pin.since),
            why=pin.why,
            worker_state=str(worker.state),
            loaded=worker.is_loaded(user_id),
            running=running,
            waiting=waiting,
            overdue=self._overdue[user_id],
            directories=user_directories(self.config, pin.worker_id, user_id),
        )

    def get_status(self) -> PoolStatus | None:
        """The pool and every worker as they are now; reads memory only. None before start."""
        if self._pool is None or self._directory is None or self._dispatcher is None:
            return None
        isolation = self._pool.isolation
        if isolation is None:
            return None
        lanes = self._dispatcher.lanes
        counts = self._directory.counts()
        workers = [
            worker_status(
                worker,
                queued=lanes.waiting_on(worker.worker_id),
                users=counts.get(worker.worker_id, 0),
                clock=self._clock,
            )
            for worker in self._pool.workers.values()
        ]
        healthy = [worker for worker in workers if is_healthy(worker)]
        return PoolStatus(
            timestamp=from_timestamp(self._clock.time()),
            total_workers=len(workers),
            healthy_workers=len(healthy),
            busy_workers=sum(1 for worker in healthy if worker.in_flight),
            queued_requests=lanes.waiting,
            running_requests=sum(worker.in_flight for worker in workers),
            completed_requests=self._completed,
            failed_requests=self._failed,
            routing_table_size=len(self._directory.pins),
            isolation=str(isolation.wall.level),
            protections=isolation.protections,
            warning=isolation.warning,
            workers=workers,
        )


def _stream_item(item: Streamed) -> Chunk | Event | Usage:
    frame = item.frame
    if item.kind == "chunk":
        return Chunk(frame["data"])
    if item.kind == "event":
        return Event(frame["name"], frame["data"])
    return Usage(frame["amounts"])
