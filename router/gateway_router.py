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
from typing import Any, get_args

from moltbot.core.clock import Clock, SystemClock
from moltbot.core.errors import (
    InvalidRequest,
    NotFound,
    NotRunning,
    ReplyTooLarge,
    quote,
)
from moltbot.core.events import Broadcast, PoolEvent, Subscription
from moltbot.core.frames import Streamed
from moltbot.core.framing import MAX_FRAME_BYTES
from moltbot.core.jsonable import from_timestamp
from moltbot.core.keyed_hash import KeyedHash
from moltbot.core.messages import Chunk, Event, Reply, Request, StreamItem, Usage
from moltbot.core.service import Service
from moltbot.core.user_key import check_user_id
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from moltbot.router.dispatcher import Dispatcher, stopping
from moltbot.router.exporting import EXPORT_SECONDS, Export
from moltbot.router.flight import Flight
from moltbot.router.forgetting import FORGET_SECONDS
from moltbot.router.homes import Homes
from moltbot.router.ring import Ring
from moltbot.router.status import PoolStatus, Receipt, UserPage, pool_status, user_directories
from moltbot.router.tombstones import Tombstones, open_key
from moltbot.router.upkeep import back_up, unload_idle_users, watch_workers
from moltbot.router.users import Users, not_started
from moltbot.sandbox.base_directory import BaseDirectory
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import worker_name
from moltbot.sandbox.pool import WorkerPool

LOG_LEVELS: tuple[str, ...] = get_args(PoolConfig.model_fields["log_level"].annotation)

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
        self.clock = clock
        self._events: Broadcast[PoolEvent] = Broadcast()
        self._worker_ids = [worker_name(index) for index in range(config.worker_count)]
        self._ring = Ring(self._worker_ids)
        self.keyed_hash = KeyedHash("")
        self._base: BaseDirectory | None = None
        self._database: Database | None = None
        self._directory: Directory | None = None
        self._pool: WorkerPool | None = None
        self._homes: Homes | None = None
        self._dispatcher: Dispatcher | None = None
        self._users: Users | None = None
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
        self._database = Database(path, self.clock)
        await self._database.start()
        self.keyed_hash = await open_key(path, self._database)
        tombstones = Tombstones(self._database, self.keyed_hash)
        unfinished = await tombstones.load()
        self._directory = Directory(
            self._database, self.clock, tombstones=tombstones, max_users=self.config.max_users
        )
        await self._directory.start()
        self._directory.check_workers(self._worker_ids)
        self._pool = WorkerPool(self.config, path, self.clock, self._events, self._closed_ports)
        self._dispatcher = Dispatcher(self.config, self._pool.workers, self.clock)
        self._homes = Homes(
            self._ring,
            self._directory,
            self._pool,
            events=self._events,
            clock=self.clock,
            max_waiting=self.config.max_queue_per_user,
        )
        self._tasks.append(
            asyncio.create_task(watch_workers(self._dispatcher, self._events.subscribe(), self._overdue))
        )
        await self._pool.start()
        idle = self.config.user_idle_timeout / 1000
        for work in (
            unload_idle_users(self._dispatcher, self._pool, idle, self.clock),
            back_up(self._database, self.clock),
        ):
            self._tasks.append(asyncio.create_task(work))
        self._users = Users(
            self.config,
            database=self._database,
            directory=self._directory,
            homes=self._homes,
            dispatcher=self._dispatcher,
            pool=self._pool,
            tombstones=tombstones,
            names=self.keyed_hash,
            events=self._events,
            clock=self.clock,
            overdue=self._overdue,
        )
        self._users.resume(unfinished)
        self._accepting = True

    async def _stop(self) -> None:
        self._accepting = False
        async with contextlib.AsyncExitStack() as last_first:  # each is put away even if another cannot be
            last_first.callback(self._let_go)
            for service in (self._database, self._directory):
                if service is not None:
                    last_first.push_async_callback(service.stop)
            last_first.push_async_callback(self._end_tasks)
            if self._pool is not None:
                last_first.push_async_callback(self._pool.stop)
            if self._users is not None:
                last_first.push_async_callback(self._users.close)
            if self._dispatcher is not None:
                last_first.callback(self._dispatcher.close)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _let_go(self) -> None:
        if self._base is not None:
            self._base.release()
        self._base = self._database = self._directory = None
        self._pool = self._homes = self._dispatcher = None
        self._users = None
        self._events.close()

    def close_to_workers(self, *ports: int) -> None:
        """Name TCP ports that no worker may reach, such as that of a gateway in front; before `start`."""
        if self._pool is not None:
            raise RuntimeError("the workers' walls are up already")
        self._closed_ports = ports

    def announce(self, url: str, certificate: str | None = None) -> None:
        """Write the gateway's address where the command line finds it; `certificate`: the SHA-256 of the one it shows."""
        if self._base is not None:
            self._base.announce(url, certificate)

    @property
    def database(self) -> Database:
        """The open database, for what the gateway keeps there; raises NotRunning."""
        if self._database is None:
            raise not_started()
        return self._database

    @property
    def draining(self) -> bool:
        """True while stopping: what runs may end, nothing new is taken."""
        return self._stopping is not None

    @property
    def log_level(self) -> str:
        """The least level that the pool's log takes now."""
        return self._pool.log_level if self._pool is not None else self.config.log_level

    def set_log_level(self, level: str) -> None:
        """Change at once what the pool's log takes: debug, info, warning or error; until `stop`.

        Raises InvalidRequest for another level, NotRunning before start.
        """
        if level not in LOG_LEVELS:
            known = ", ".join(LOG_LEVELS)
            raise InvalidRequest(f"there is no log level {quote(level)}: use one of {known}")
        if self._pool is None:
            raise NotRunning("the gateway is not running: start it, or set log_level before")
        self._pool.set_log_level(level)

    def events(self) -> Subscription[PoolEvent]:
        """Subscribe to what happens: `async for event in router.events()`; ends when closed."""
        return self._events.subscribe()

    # --- requests -------------------------------------------------------------------------------------

    async def route(self, request: Request | Mapping[str, Any]) -> Reply:
        """Run a request on its user's worker and return the reply, streamed chunks joined.

        Raises a MoltbotError: InvalidRequest, UserQueueFull, QueueFull, WorkerQuarantined, RequestTimeout, WorkerDied,
        HandlerError, NotRunning ... Cancelling the caller cancels the handler.
        """
        started = self.clock.monotonic()
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
        started = self.clock.monotonic()
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
        seconds = self.clock.monotonic() - started
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
            incarnation=flight.call.incarnation if flight.call is not None else 0,
        )

    # --- users ----------------------------------------------------------------------------------------

    async def list_users(self, after: str | None = None, limit: int = 100) -> UserPage:
        """A page of users after an id, in byte order of ids; limit: 1 to 1000. Raises InvalidRequest."""
        if self._users is None:
            raise not_started()
        return await self._users.page(after, limit)

    def export(
        self, user_id: str, timeout: float = EXPORT_SECONDS
    ) -> contextlib.AbstractAsyncContextManager[Export]:
        """`async with router.export("ada") as export:` a tar archive of the user's files; `timeout` (s): for what runs to end.

        Raises NotFound, UserForgetting, StorageFull and Unavailable; while it copies, the user's requests wait.
        """
        if self._users is None:
            raise not_started()
        return self._users.export(user_id, timeout)

    async def forget(self, user_id: str, timeout: float = FORGET_SECONDS) -> None:
        """Delete all that is kept of a user, here and in the workers; returns when nothing is left.

        Raises NotFound, and UserForgetting after `timeout` seconds: then it goes on, also over a restart.
        """
        if self._users is None:
            raise not_started()
        await self._users.forget(user_id, timeout)

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
            raise not_started()
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
        return pool_status(
            self._pool,
            lanes=self._dispatcher.lanes,
            counts=self._directory.counts(),
            users=len(self._directory.pins),
            completed=self._completed,
            failed=self._failed,
            clock=self.clock,
        )


def _stream_item(item: Streamed) -> Chunk | Event | Usage:
    frame = item.frame
    if item.kind == "chunk":
        return Chunk(frame["data"])
    if item.kind == "event":
        return Event(frame["name"], frame["data"])
    return Usage(frame["amounts"])
