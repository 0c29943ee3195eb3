"""`GatewayRouter`: every user's requests go to that user's one worker, in order. The heart of the embedding API.

It joins the pieces and decides little itself: pins are kept in `directory.py`, chosen by `placement.py`; turns are in
`lanes.py`; a request's own state in `flight.py`; workers in `sandbox/pool.py`. HTTP and credentials are in `gateway/`.

    async with create_gateway_router(pool_config={"workerCount": 3}) as router:
        reply = await router.route(Request("agent", "user-a", {"message": "hello"}))
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

from moltbot.core.clock import Clock, SystemClock
from moltbot.core.errors import (
    MoltbotError,
    NotFound,
    NotRunning,
    QueueFull,
    ReplyTooLarge,
    RequestTimeout,
    Unavailable,
    WorkerQuarantined,
    quote,
)
from moltbot.core.events import Broadcast, PoolEvent, RequestOverdue, Subscription, UserPinned, WorkerChanged
from moltbot.core.frames import Streamed
from moltbot.core.framing import MAX_FRAME_BYTES
from moltbot.core.jsonable import from_timestamp
from moltbot.core.messages import Chunk, Event, Reply, Request, StreamItem, Usage
from moltbot.core.service import Service
from moltbot.core.units import format_duration
from moltbot.core.user_key import check_user_id
from moltbot.router import placement
from moltbot.router.database import Database
from moltbot.router.directory import Directory, Pin
from moltbot.router.flight import Flight
from moltbot.router.lanes import Lanes
from moltbot.router.placement import Placement
from moltbot.router.ring import Ring
from moltbot.router.status import ISOLATION, PoolStatus, Receipt, is_healthy, user_directories, worker_status
from moltbot.sandbox.base_directory import BaseDirectory
from moltbot.sandbox.channel import Call
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
        self._clock = clock
        self._events: Broadcast[PoolEvent] = Broadcast()
        self._worker_ids = [worker_name(index) for index in range(config.worker_count)]
        self._ring = Ring(self._worker_ids)
        self._lanes = Lanes(
            user_concurrency=config.user_concurrency,
            max_per_user=config.max_queue_per_user,
            max_per_worker=config.max_queue_per_worker,
        )
        self._numbers = itertools.count(1)
        self._id_prefix = secrets.token_hex(4)
        self._base: BaseDirectory | None = None
        self._database: Database | None = None
        self._directory: Directory | None = None
        self._pool: WorkerPool | None = None
        self._accepting = False
        self._tasks: list[asyncio.Task[None]] = []
        self._last_used: dict[str, float] = {}
        self._overdue: Counter[str] = Counter()
        self._completed = 0
        self._failed = 0
        self._seconds: dict[str, float] = {}

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
        self._pool = WorkerPool(self.config, path, self._clock, self._events)
        self._tasks.append(asyncio.create_task(self._watch_workers(self._events.subscribe())))
        await self._pool.start()
        self._tasks += [asyncio.create_task(self._unload_idle_users()), asyncio.create_task(self._back_up())]
        self._accepting = True

    async def _stop(self) -> None:
        self._accepting = False
        self._refuse_waiting(None, NotRunning("the gateway is stopping: send the request again later"))
        if self._pool is not None:
            await self._pool.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._directory is not None:
            await self._directory.stop()
        if self._database is not None:
            await self._database.stop()
        if self._base is not None:
            self._base.release()
        self._base = self._database = self._directory = self._pool = None
        self._events.close()

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
        self._completed += 1
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
        self._completed += 1
        yield self._reply(flight, item.frame, started, [])

    def _give_up(self, flight: Flight) -> None:
        """The caller got an error, or wants the answer no longer: end what waits or runs."""
        self._failed += 1
        if self._lanes.withdraw(flight):
            flight.settle_queue_timer()
        flight.abandon()

    async def _admit(self, request: Request | Mapping[str, Any]) -> Flight:
        """Find the user's worker and enter their lane; returns when the request has its place there."""
        if not isinstance(request, Request):
            request = Request.from_mapping(request)
        pool, directory = self._pool, self._directory
        if pool is None or directory is None or not self._accepting:
            raise NotRunning(
                "the gateway is not running (not started, or stopping): start it, or send the request later"
            )
        number = next(self._numbers)
        if request.id is None:
            object.__setattr__(request, "id", f"{self._id_prefix}-{number}")
        pin = directory.get(request.user_id)
        if pin is None:
            pin = await self._first_pin(directory, request.user_id)
        worker = pool.workers[pin.worker_id]
        if worker.state is State.QUARANTINED:
            raise self._quarantined(pin.worker_id)
        flight = Flight(number, request, pin.worker_id, pin.epoch)
        try:
            self._lanes.submit(flight, room=worker.has_room)
        except QueueFull as error:
            error.retry_after = self._expected_wait(pin.worker_id)
            raise
        self._pump(pin.worker_id)
        if flight.call is None:
            flight.queue_timer = self._clock.call_later(
                self.config.queue_timeout / 1000, lambda: self._expire(flight)
            )
        return flight

    async def _first_pin(self, directory: Directory, user_id: str) -> Pin:
        chosen_here = False  # by this caller: others who came at the same time wait for the same pin

        def choose() -> Placement:
            nonlocal chosen_here
            chosen_here = True
            return self._place(user_id)

        pin = await directory.pin(user_id, choose)
        if chosen_here:
            self._events.publish(UserPinned(self._clock.time(), user_id, pin.worker_id, pin.epoch, pin.why))
        if not self._accepting:
            raise NotRunning("the gateway is stopping: send the request again later")
        return pin

    def _place(self, user_id: str) -> Placement:
        """Choose a first home; a quarantined worker takes nobody new."""
        if self._directory is None or self._pool is None:
            raise NotRunning("the gateway is not running: start it first")
        workers = self._pool.workers
        walk = [name for name in self._ring.walk(user_id) if workers[name].state is not State.QUARANTINED]
        return placement.place(walk, self._directory.loads())

    def _pump(self, worker_id: str) -> None:
        """Start what may start on this worker now."""
        worker = self._pool.workers.get(worker_id) if self._pool is not None else None
        while worker is not None and worker.has_room:
            flight = self._lanes.next(worker_id)
            if flight is None:
                return
            assert isinstance(flight, Flight)
            try:
                flight.dispatched(worker.dispatch(flight.request, flight.epoch, partial(self._ended, flight)))
            except MoltbotError as error:
                self._lanes.finish(flight)
                flight.refuse(error)

    def _ended(self, flight: Flight, call: Call) -> None:
        """The worker is done with a flight's call, or is gone."""
        self._last_used[flight.user_id] = self._clock.monotonic()
        if flight.may_run_again():
            self._lanes.requeue(flight)
            flight.queue_timer = self._clock.call_later(
                self.config.queue_timeout / 1000, lambda: self._expire(flight)
            )
        else:
            self._lanes.finish(flight)
        self._pump(flight.worker_id)

    def _expire(self, flight: Flight) -> None:
        if self._lanes.withdraw(flight):
            waited = format_duration(self.config.queue_timeout)
            flight.refuse(
                RequestTimeout(
                    f"the request waited {waited} for {flight.worker_id} and was not started: send it again later",
                    worker=flight.worker_id,
                    verdict="not_started",
                    retryable=True,
                )
            )

    def _reply(self, flight: Flight, frame: Mapping[str, Any], started: float, chunks: list[Any]) -> Reply:
        payload = frame["payload"]
        if chunks:
            payload = "".join(chunks) if all(type(chunk) is str for chunk in chunks) else chunks
        seconds = self._clock.monotonic() - started
        average = self._seconds.get(flight.worker_id, seconds)
        self._seconds[flight.worker_id] = average + (seconds - average) / 16
        return Reply(
            request_id=flight.request.id or "",
            user_id=flight.user_id,
            worker_id=flight.worker_id,
            epoch=flight.epoch,
            payload=payload,
            usage=frame.get("usage") or {},
            duration_ms=seconds * 1000,
        )

    # --- refusals -------------------------------------------------------------------------------------

    def _refuse_waiting(self, worker_id: str | None, error: MoltbotError) -> None:
        for ticket in self._lanes.all_waiting(worker_id):
            assert isinstance(ticket, Flight)
            self._lanes.withdraw(ticket)
            ticket.refuse(error)

    def _quarantined(self, worker_id: str) -> WorkerQuarantined:
        assert self._pool is not None
        slot = self._pool[worker_id].slot
        wait = max(1.0, (slot.deadline or 0.0) - self._clock.monotonic())
        return WorkerQuarantined(
            f"{worker_id}, where this user lives, keeps dying ({slot.reason}: {slot.detail}) and is tried again in {wait:.0f} s",
            worker=worker_id,
            reason=str(slot.reason),
            retry_after=wait,
        )

    def _expected_wait(self, worker_id: str) -> float:
        """Seconds until a place in the queue is likely free: the average time of a request, at least one second."""
        return max(1.0, self._seconds.get(worker_id, 1.0))

    # --- what goes on beside requests -----------------------------------------------------------------

    async def _watch_workers(self, events: Subscription[PoolEvent]) -> None:
        with events:
            async for event in events:
                if events.take_lost():
                    for worker_id in self._worker_ids:
                        self._pump(worker_id)
                if isinstance(event, WorkerChanged):
                    if event.state == State.READY:
                        self._pump(event.worker_id)
                    elif event.state == State.QUARANTINED:
                        self._refuse_waiting(event.worker_id, self._quarantined(event.worker_id))
                elif isinstance(event, RequestOverdue):
                    self._note_overdue(event.user_id)

    def _note_overdue(self, user_id: str) -> None:
        if user_id not in self._overdue and len(self._overdue) >= MAX_OVERDUE_USERS:
            self._overdue.pop(next(iter(self._overdue)))
        self._overdue[user_id] += 1

    async def _unload_idle_users(self) -> None:
        idle = self.config.user_idle_timeout / 1000
        while True:
            await self._clock.sleep(min(idle / 4, 30.0))
            assert self._pool is not None
            now = self._clock.monotonic()
            for worker in self._pool.workers.values():
                for user_id in worker.loaded_users:
                    if (
                        self._lanes.of_user(user_id) == (0, 0)
                        and now - self._last_used.get(user_id, 0.0) >= idle
                    ):
                        worker.unload(user_id)
            self._last_used = {user: at for user, at in self._last_used.items() if now - at < idle}

    async def _back_up(self) -> None:
        while True:
            await self._clock.sleep(BACKUP_SECONDS)
            assert self._database is not None
            try:
                await self._database.backup()
            except Exception as error:
                log.error("the hourly backup failed, the next one is in an hour: %s", error)

    # --- questions ------------------------------------------------------------------------------------

    def get_worker_for_user(self, user_id: str) -> str | None:
        """The user's worker, or the one a first request would give them now; reads memory only.

        None before start, and for a new user while no worker can take one.
        """
        check_user_id(user_id)
        if self._directory is None or self._pool is None or not self._pool.workers:
            return None
        pin = self._directory.get(user_id)
        if pin is not None:
            return pin.worker_id
        try:
            return self._place(user_id).worker_id
        except Unavailable:
            return None

    def where(self, user_id: str) -> Receipt:
        """Where a user lives, since when and why; raises NotFound for a user who never sent a request."""
        check_user_id(user_id)
        if self._directory is None or self._pool is None:
            raise NotRunning("the gateway is not running: start it first")
        pin = self._directory.get(user_id)
        if pin is None:
            raise NotFound(f"user {quote(user_id)} has no worker yet: the first request chooses one")
        worker = self._pool[pin.worker_id]
        running, waiting = self._lanes.of_user(user_id)
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
        if self._pool is None or self._directory is None:
            return None
        counts = self._directory.counts()
        workers = [
            worker_status(
                worker,
                queued=self._lanes.waiting_on(worker.worker_id),
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
            queued_requests=self._lanes.waiting,
            running_requests=sum(worker.in_flight for worker in workers),
            completed_requests=self._completed,
            failed_requests=self._failed,
            routing_table_size=len(self._directory.pins),
            isolation=ISOLATION,
            workers=workers,
        )


def _stream_item(item: Streamed) -> Chunk | Event | Usage:
    frame = item.frame
    if item.kind == "chunk":
        return Chunk(frame["data"])
    if item.kind == "event":
        return Event(frame["name"], frame["data"])
    return Usage(frame["amounts"])
