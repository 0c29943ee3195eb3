"""The worker's request loop: frames in, calls and users served, frames out.

One `Worker` serves one socket for one incarnation and ends when told to shut down or when the socket ends. How one
request runs is in `calls.py`; what a user is, in `users.py`. It knows nothing of processes: `boot.py` runs it as one, and
`testing.py` runs it inside a test.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from moltbot.core.errors import ProtocolError
from moltbot.core.frames import (
    PROTOCOL_VERSION,
    CalleeEvent,
    CancelRequested,
    CreditGranted,
    Notice,
    Requested,
)
from moltbot.core.framing import Frame
from moltbot.core.session import Callee
from moltbot.core.wire import Wire
from moltbot.worker.calls import Call, describe, is_coroutine_handler
from moltbot.worker.handlers import Registry, run_hooks
from moltbot.worker.heart import Heart
from moltbot.worker.loader import LoadError, load
from moltbot.worker.users import Directories, User

EXIT_OK, EXIT_BOOT_FAILED, EXIT_ORPHANED, EXIT_PROTOCOL = 0, 70, 71, 76

LAST_SECONDS = 1.0

# What a hook may raise without ending the worker, by sys.exit() for example, for the users that share it.
HOOK_FAILURES = (Exception, SystemExit, asyncio.CancelledError)

log = logging.getLogger("worker")
T = TypeVar("T")


class Worker:
    """Serves one socket; `registry` replaces loading the handler that `hello` names."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        registry: Registry | None = None,
        on_orphaned: Callable[[], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread_id = threading.get_ident()
        self.session = Callee()
        self.worker_id = ""
        self._wire = Wire(sock, self.loop, self._received, lambda: self._end(EXIT_ORPHANED))
        self._registry = registry
        self._on_orphaned = on_orphaned
        self._heart: Heart | None = None
        self._calls: dict[int, Call] = {}
        self._on_loop: dict[str, bool] = {}
        self._users: dict[str, User] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flush_scheduled = False
        self._draining = False
        self._ended: asyncio.Future[int] = self.loop.create_future()

    async def serve(self) -> int:
        """Serve until the end; returns the process's exit status."""
        try:
            return await self._ended
        finally:
            if self._heart is not None:
                self._heart.stop()
                self._heart.join(1)
            self._flush()
            self._wire.close()
            tasks = [*self._tasks, *(call.task for call in self._calls.values() if call.task is not None)]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=LAST_SECONDS)  # one that ignores it ends with the process

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _raise_if_ended(self, error: BaseException) -> None:
        """A cancellation is the hook's own failure, unless it is the end of this worker."""
        if self._ended.done():
            raise error

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- bytes ------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Write what the session has to send: at once if no other call could add to it, else with theirs."""
        if not self._calls:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.session.wants_to_send:
            self._wire.write(self.session.data_to_send())

    def _received(self, data: bytes) -> None:
        try:
            for event in self.session.receive(data):
                self._handle(event)
        except ProtocolError as error:
            log.error("the gateway broke the protocol: %s", error)
            self._end(EXIT_PROTOCOL)
        self._flush()

    def _handle(self, event: CalleeEvent) -> None:
        match event:
            case Requested(id, frame):
                self._request(id, frame)
            case CancelRequested(id, reason):
                if id in self._calls:
                    self._calls[id].cancel(reason)
                self._tell_if_drained()
            case CreditGranted(id):
                if id in self._calls:
                    self._calls[id].credit_granted()
                self._tell_if_drained()
            case Notice(kind, frame):
                self._notice(kind, frame)

    # --- requests ---------------------------------------------------------------------------------

    def _request(self, id: int, frame: Frame) -> None:
        kind = frame["type"]
        handler = self._registry.handlers.get(kind) if self._registry else None
        user = self._users.get(frame["user_id"])
        if handler is None:
            known = (
                ", ".join(sorted(self._registry.handlers))
                if self._registry
                else "none, the worker is booting"
            )
            self._refuse(id, "unknown_type", f"no handler answers type {kind!r}: there is {known}")
        elif user is None or user.epoch != frame["epoch"]:
            self._refuse(id, "not_loaded", "the user is not loaded here under this epoch")
        else:
            on_loop = self._on_loop.get(kind)
            if on_loop is None:  # asked once: looking into a function takes as long as a small request
                on_loop = self._on_loop[kind] = is_coroutine_handler(handler)
            call = self._calls[id] = Call(self, id, frame, handler, user, on_loop=on_loop)
            call.task = self.loop.create_task(self._run(id, call))

    async def _run(self, id: int, call: Call) -> None:
        try:
            await call.run()
        finally:
            del self._calls[id]
            self._tell_if_drained()
            self.flush_soon()

    def _tell_if_drained(self) -> None:
        if self._draining and not self.session.in_flight:
            self._draining = False
            self.session.notice("drained")

    def _refuse(self, id: int, code: str, message: str) -> None:
        self.session.finish(id, self.session.prepare(id, "error", code=code, message=message, details=None))

    # --- the worker as a whole --------------------------------------------------------------------

    def _notice(self, kind: str, frame: Frame) -> None:
        match kind:
            case "hello":
                self._spawn(self._boot(frame))
            case "arrive":
                self._arrive(frame["user_id"], frame["epoch"])
            case "leave":
                self._leave(frame["user_id"])
            case "ping":
                self.session.notice("pong")
            case "drain":
                self._draining = True
                self._tell_if_drained()
            case "shutdown":
                self._spawn(self._shut_down(frame["grace_ms"] / 1000))

    async def _boot(self, hello: Frame) -> None:
        if hello["v"] != PROTOCOL_VERSION:
            self._fail_boot(f"the gateway speaks protocol {hello['v']}, this worker {PROTOCOL_VERSION}")
            return
        config = hello["config"]
        self.worker_id = hello["worker_id"]
        self.directories = Directories(**{name: Path(path) for name, path in config["directories"].items()})
        self.durable: bool = config["durable_state"]
        self.threads = ThreadPoolExecutor(config["max_concurrent"], thread_name_prefix="handler")
        try:
            if self._registry is None:
                self._registry = load(config["handler"])
            await run_hooks(self._registry.hooks["on_start"])
        except LoadError as error:
            self._fail_boot(str(error))
            return
        except BaseException as error:
            traceback.print_exception(error)
            self._fail_boot(f"the handler {config['handler']} does not load: {describe(error)}")
            return
        self._heart = Heart(
            self.loop,
            self._wire.write,
            lambda: len(self._calls),
            interval=config["heartbeat_interval_ms"] / 1000,
            on_orphaned=self._on_orphaned,
        )
        names = sorted(self._registry.handlers)
        self.session.notice("ready", v=PROTOCOL_VERSION, pid=os.getpid(), handlers=names)
        self._flush()
        self._heart.start()

    def _fail_boot(self, message: str) -> None:
        self.session.notice("error", id=0, code="boot_failed", message=message, details=None)
        self._end(EXIT_BOOT_FAILED)

    async def _shut_down(self, grace: float) -> None:
        try:
            async with asyncio.timeout(grace):
                for user_id in list(self._users):
                    self._leave(user_id)
                await asyncio.gather(*self._leaving.values())
                if self._registry is not None:
                    await run_hooks(self._registry.hooks["on_stop"])
        except HOOK_FAILURES as error:  # also the timeout: stopping goes on whatever a hook does
            log.error("stopping: a hook failed: %s", describe(error))
        self._end(EXIT_OK)

    # --- users ------------------------------------------------------------------------------------

    def _arrive(self, user_id: str, epoch: int) -> None:
        user = self._users.get(user_id)
        if user is None or user.epoch != epoch:
            user = self._users[user_id] = User(user_id, epoch, self.directories, durable=self.durable)
            before = self._leaving.get(user_id)  # now: a leave that comes after this arrival will wait for it
            if self._registry and (self._registry.hooks["on_arrive"] or before is not None):
                user.arrival = self._spawn(self._welcome(user, before))
                return
        self.session.notice("arrived", user_id=user_id, epoch=user.epoch)

    async def _welcome(self, user: User, before: asyncio.Task[None] | None) -> str | None:
        assert self._registry is not None
        if before is not None:
            await before
        error = None
        try:
            await run_hooks(self._registry.hooks["on_arrive"], user)
        except HOOK_FAILURES as failure:
            self._raise_if_ended(failure)
            error = f"on_arrive raised {describe(failure)}"
            log.error("on_arrive failed", exc_info=failure)
            if self._users.get(user.user_id) is user:
                del self._users[user.user_id]
        self.session.notice("arrived", user_id=user.user_id, epoch=user.epoch, error=error)
        self._flush()
        return error

    def _leave(self, user_id: str) -> None:
        user = self._users.pop(user_id, None)
        if user is not None:
            task = self._leaving[user_id] = self._spawn(self._farewell(user, self._leaving.get(user_id)))
            task.add_done_callback(lambda done: self._left(user_id, done))

    def _left(self, user_id: str, task: asyncio.Task[None]) -> None:
        if self._leaving.get(user_id) is task:
            del self._leaving[user_id]

    async def _farewell(self, user: User, before: asyncio.Task[None] | None) -> None:
        error = None
        try:
            if before is not None:
                await before
            if user.arrival is not None:
                await asyncio.shield(user.arrival)
            if self._registry is not None and self._registry.hooks["on_leave"]:
                await run_hooks(self._registry.hooks["on_leave"], user)
                user.save()
        except HOOK_FAILURES as failure:
            self._raise_if_ended(failure)
            error = f"on_leave raised {describe(failure)}"
            log.error("on_leave failed", exc_info=failure)
        self.session.notice("left", user_id=user.user_id, epoch=user.epoch, error=error)
        self._flush()


def set_up_logging() -> None:
    """Structured lines (`level=... logger=... key=value`) on stderr, from where the gateway puts them into the log."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_Logfmt())
    logging.basicConfig(level=logging.INFO, handlers=[output])


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = [f"level={record.levelname.lower()}", f"logger={record.name}"]
        request = getattr(record, "request", None)
        if request is not None:
            fields.append(f"request={request}")
        fields.append(f"msg={record.getMessage()!r}")
        text = " ".join(fields)
        return text + "\n" + self.formatException(record.exc_info) if record.exc_info else text
