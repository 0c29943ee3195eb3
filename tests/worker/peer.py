"""The gateway's side of a worker, by hand: what `HandlerTester` hides (notices, credit, cancel) is told here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moltbot.core.frames import CallerEvent, Final, Notice, Streamed
from moltbot.core.framing import Frame
from moltbot.core.session import Caller
from moltbot.core.wire import Wire
from moltbot.worker.handlers import Registry
from moltbot.worker.loop import Worker

DEADLINE = 30


class Peer:
    """A worker with a registry, and every frame it sends; reads streamed frames only as far as it is told to."""

    def __init__(
        self, registry: Registry, directory: Path, *, reading: bool = True, interval: float = 60
    ) -> None:
        self.registry = registry
        self.directory = directory
        self.reading = reading
        self.interval = interval
        self.caller = Caller()
        self.events: list[CallerEvent] = []
        self.on_event: Callable[[CallerEvent], None] = lambda event: None
        self._changed = asyncio.Event()
        self.closed = False

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self.sock = ours
        self.wire = Wire(ours, asyncio.get_running_loop(), self._received, self._closed)
        self.worker = asyncio.create_task(Worker(theirs, registry=self.registry).serve())
        names = ("sessions", "state", "cache", "temp")
        config = {
            "handler": None,
            "directories": {name: str(self.directory / name) for name in names},
            "durable_state": False,
            "max_concurrent": 4,
            "heartbeat_interval_ms": self.interval * 1000,
        }
        self.caller.hello("worker-0", 1, config)
        self.flush()
        await self.notice("ready")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.caller.shutdown(0)
        self.flush()
        await asyncio.wait([self.worker], timeout=DEADLINE)
        self.wire.close()
        assert self.worker.done()
        self.worker.result()

    def _received(self, data: bytes) -> None:
        for event in self.caller.receive(data):
            self.events.append(event)
            if isinstance(event, Streamed) and self.reading:
                self.caller.consumed(event.id, event.size)
            self.on_event(event)
        self.flush()
        self._changed.set()

    def _closed(self) -> None:
        self.closed = True
        self._changed.set()

    def flush(self) -> None:
        if self.caller.wants_to_send:
            self.wire.write(self.caller.data_to_send())

    def request(
        self, kind: str, payload: Any = None, *, user: str = "ada", epoch: int = 1, **meta: Any
    ) -> int:
        id = self.caller.request(kind, user, payload, epoch=epoch, deadline_ms=60_000, meta=meta)
        self.flush()
        return id

    def arrive(self, user: str = "ada", epoch: int = 1) -> None:
        self.caller.arrive(user, epoch)
        self.flush()

    def cancel(self, id: int) -> None:
        self.caller.cancel(id)
        self.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def notices(self, kind: str) -> list[Frame]:
        return [event.frame for event in self.events if isinstance(event, Notice) and event.kind == kind]

    def finals(self, id: int) -> list[Final]:
        return [event for event in self.events if isinstance(event, Final) and event.id == id]

    def streamed(self, id: int, kind: str = "chunk") -> list[Frame]:
        return [
            event.frame
            for event in self.events
            if isinstance(event, Streamed) and event.id == id and event.kind == kind
        ]

    async def notice(self, kind: str, count: int = 1) -> Frame:
        """Wait for the `count`th notice of a kind."""
        await self.until(lambda: len(self.notices(kind)) >= count or self.closed)
        return self.notices(kind)[count - 1]

    async def final(self, id: int) -> Final:
        """Wait for the one final frame of a call."""
        await self.until(lambda: bool(self.finals(id)) or self.closed)
        (final,) = self.finals(id)
        return final

    async def round_trip(self) -> None:
        """Everything that was sent before has been read by the worker, and what it answered at once is here."""
        self.caller.ping()
        self.flush()
        await self.notice("pong", len(self.notices("pong")) + 1)

    def read(self, id: int) -> None:
        """Consume, once, everything that was streamed so far."""
        for event in self.events:
            if isinstance(event, Streamed) and event.id == id:
                self.caller.consumed(id, event.size)
        self.flush()
