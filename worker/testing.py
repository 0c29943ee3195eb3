"""Test a handler without processes: the real worker loop, the real frames, one event loop.

    async def test_agent(tmp_path):
        async with HandlerTester("my_handler.py", tmp_path) as tester:
            answer = await tester.call("agent", {"message": "hi"}, user_id="ada")
            assert answer.payload == "some text"

What it leaves out is the sandbox: limits, isolation and restarts need `create_gateway_router()`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moltbot.core.errors import HandlerError, WorkerDied, error_of_handler
from moltbot.core.frames import CallerEvent, Final, Notice, Streamed
from moltbot.core.session import Caller
from moltbot.core.wire import Wire
from moltbot.worker.handlers import Registry
from moltbot.worker.loop import Worker

_DEADLINE = 30.0


@dataclass
class Answer:
    """What one call gave: the reply's payload and usage, and all that was streamed before it."""

    payload: Any = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    chunks: list[Any] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)


class HandlerTester:
    """An in-process worker for tests; `source` is a Registry, `path/to/file.py` or `module:name`."""

    def __init__(
        self, source: Registry | str | None, directory: Path, *, durable_state: bool = False
    ) -> None:
        self._source = source
        self._directory = directory
        self._durable = durable_state
        self._caller = Caller()
        self._answers: dict[int, tuple[Answer, asyncio.Future[Answer]]] = {}
        self._loaded: set[str] = set()

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        registry = self._source if isinstance(self._source, Registry) else None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._wire = Wire(ours, loop, self._received, self._closed)
        self._worker = asyncio.create_task(Worker(theirs, registry=registry).serve())
        self._caller.hello("worker-0", 1, self._config())
        self._flush()
        try:
            await asyncio.wait_for(self._ready, _DEADLINE)
        except BaseException:
            await self._close()
            raise
        return self

    def _config(self) -> dict[str, Any]:
        names = ("sessions", "state", "cache", "temp")
        return {
            "handler": self._source if isinstance(self._source, str) else None,
            "directories": {name: str(self._directory / name) for name in names},
            "durable_state": self._durable,
            "max_concurrent": 10,
            "heartbeat_interval_ms": 5000,
        }

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._caller.shutdown(5000)
        self._flush()
        await self._close()

    async def _close(self) -> None:
        await asyncio.wait([self._worker], timeout=_DEADLINE)
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._wire.close()

    async def call(
        self, kind: str, payload: Any = None, *, user_id: str = "user", timeout: float = 30.0
    ) -> Answer:
        """Send one request and wait for its answer; raises what `route` would: HandlerError, InvalidRequest ... `timeout`: seconds."""
        if user_id not in self._loaded:
            self._loaded.add(user_id)
            self._caller.arrive(user_id, 1)
        id = self._caller.request(kind, user_id, payload, epoch=1, deadline_ms=timeout * 1000, meta={})
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[id] = Answer(), future
        self._flush()
        try:
            return await asyncio.wait_for(future, timeout)
        except (asyncio.CancelledError, TimeoutError):
            self._caller.cancel(id)
            self._flush()
            raise

    async def leave(self, user_id: str = "user") -> None:
        """Unload a user, as the gateway does with an idle one; the next call loads them from disk again."""
        self._loaded.discard(user_id)
        self._caller.leave(user_id)
        self._flush()

    def _flush(self) -> None:
        if self._caller.wants_to_send:
            self._wire.write(self._caller.data_to_send())

    def _received(self, data: bytes) -> None:
        for event in self._caller.receive(data):
            self._handle(event)
        self._flush()

    def _handle(self, event: CallerEvent) -> None:
        match event:
            case Notice("ready", _):
                self._ready.set_result(None)
            case Notice("arrived", frame):
                if frame.get("error") is not None:
                    self._loaded.discard(frame["user_id"])
            case Notice("error", frame):
                if not self._ready.done():
                    self._ready.set_exception(HandlerError(frame["message"]))
            case Streamed(id, kind, frame, size):
                answer, _ = self._answers[id]
                if kind == "chunk":
                    answer.chunks.append(frame["data"])
                elif kind == "event":
                    answer.events.append((frame["name"], frame["data"]))
                self._caller.consumed(id, size)
            case Final(id, kind, frame):
                self._finish(kind, frame, *self._answers.pop(id))

    @staticmethod
    def _finish(kind: str, frame: Mapping[str, Any], answer: Answer, future: asyncio.Future[Answer]) -> None:
        if future.done():
            return
        if kind == "error":
            future.set_exception(
                error_of_handler(frame["code"])(frame["message"], details=frame.get("details"))
            )
            return
        answer.payload, answer.usage = frame["payload"], frame.get("usage") or {}
        if answer.chunks:
            text = all(isinstance(chunk, str) for chunk in answer.chunks)
            answer.payload = "".join(answer.chunks) if text else answer.chunks
        future.set_result(answer)

    def _closed(self) -> None:
        died = WorkerDied("the worker loop ended")
        futures: list[asyncio.Future[Any]] = [self._ready, *(future for _, future in self._answers.values())]
        for future in futures:
            if not future.done():
                future.set_exception(died)
