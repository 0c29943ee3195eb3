"""What several test folders share: a clock whose hands the test turns, and waits that end by a signal or a deadline."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil
from hypothesis import settings

from moltbot.core.events import PoolEvent, Subscription, WorkerChanged
from moltbot.core.framing import Decoder, Frame, encode
from moltbot.sandbox.channel import Call, Channel

PATIENCE = 30.0
"""Seconds after which a wait has failed. Nothing is measured by it: a healthy system is far below."""

STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=100)
"""For hypothesis: the same examples in every run, and no clock in the verdict."""

E = TypeVar("E", bound=PoolEvent)


class FakeTimer:
    """A callback that waits for `FakeClock.advance`."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """`core.clock.Clock` in the hand of a test: time passes in `advance` only."""

    def __init__(self, monotonic: float = 1000.0, since_1970: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._offset = since_1970 - monotonic
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._monotonic + self._offset

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self._monotonic + delay, callback)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    async def sleep(self, delay: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_later(delay, wake)
        try:
            await woken
        finally:
            timer.cancel()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: what falls due runs in order, each at its own time."""
        until = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self._monotonic = max(self._monotonic, due)
            if not timer.cancelled:
                timer.callback()
        self._monotonic = until

    @property
    def pending(self) -> int:
        """Timers that still wait."""
        return sum(not timer.cancelled for _, _, timer in self._timers)


class Watched:
    """A process held by a descriptor, so that its end is seen even if its number is used again."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def gone(self, patience: float = PATIENCE) -> bool:
        """Wait until the process has ended; blocks. False if it still runs after `patience` seconds."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def close(self) -> None:
        os.close(self._descriptor)


def watch(*pids: int) -> list[Watched]:
    """Hold every process of `pids`, which must be running."""
    return [Watched(pid) for pid in pids]


async def all_gone(processes: list[Watched], patience: float = PATIENCE) -> list[int]:
    """Wait for the end of all and return the pids of those that still run after `patience` seconds: none, that is."""
    left = await asyncio.to_thread(lambda: [p.pid for p in processes if not p.gone(patience)])
    for process in processes:
        process.close()
    return left


def pid_inside(pid: int) -> int:
    """The number by which a process knows itself: in a pid namespace of its own another one than ours for it."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), pid)


def pids_outside(worker: int, *inside: int) -> list[int]:
    """Our numbers for processes that a worker (whose number of ours is `worker`) names by its own ones."""
    found = {}
    namespace = os.readlink(f"/proc/{worker}/ns/pid")
    for child in psutil.Process().children(recursive=True):
        try:
            if os.readlink(f"/proc/{child.pid}/ns/pid") == namespace:
                found[pid_inside(child.pid)] = child.pid
        except OSError:
            continue  # it has ended, or is not ours to examine
    return [found[pid] for pid in inside]


def descendants() -> set[int]:
    """The pids of all processes below this one that have not ended."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def first_event(
    events: Subscription[PoolEvent], kind: type[E], matches: Callable[[E], bool] = lambda _: True
) -> E:
    """Read events until one of `kind` matches."""
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            assert not events.take_lost()
            if isinstance(event, kind) and matches(event):
                return event
    raise AssertionError(f"the events ended before a {kind.__name__}")


async def change_to(
    events: Subscription[PoolEvent], state: str, *, worker: str = "worker-0", incarnation: int | None = None
) -> WorkerChanged:
    """Read events until the worker is in `state`."""
    return await first_event(
        events,
        WorkerChanged,
        lambda event: (
            event.worker_id == worker
            and event.state == state
            and (incarnation is None or event.incarnation == incarnation)
        ),
    )


async def eventually(promise: Callable[[], bool]) -> None:
    """Wait for something that sends no signal of its own, such as a line in a file."""
    deadline = time.monotonic() + PATIENCE
    while not promise():
        if time.monotonic() > deadline:
            raise AssertionError("it never came true")
        await asyncio.sleep(0.01)


class RawPeer:
    """The worker's end of a socket, in the hand of a test: it sends what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()

    async def receive(self) -> Frame:
        """Return the next frame from the gateway."""
        async with asyncio.timeout(PATIENCE):
            while (item := self._decoder.next_frame()) is None:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20)
                assert data, "the gateway closed the socket"
                self._decoder.feed(data)
        return item[0]

    async def at_end(self) -> bool:
        """Read until the gateway closes the socket; True if it does and has sent no further frame."""
        async with asyncio.timeout(PATIENCE):
            try:
                while data := await asyncio.get_running_loop().sock_recv(self.sock, 1 << 20):
                    self._decoder.feed(data)
            except ConnectionResetError:
                pass  # it closed with bytes of ours unread
        return self._decoder.next_frame() is None

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_bytes(encode({"kind": kind, **fields}))

    async def send_bytes(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)


class Line:
    """A real `Channel` with a `RawPeer` at its other end, and what the channel told its owner."""

    def __init__(self, first_id: int = 1) -> None:
        ours, theirs = socket.socketpair()
        self.peer = RawPeer(theirs)
        self.notices: list[tuple[str, Frame]] = []
        self.lost: list[str | None] = []
        self.when_lost: Callable[[], None] = lambda: None
        self._happened = asyncio.Event()
        self.channel = Channel(ours, "worker-0", first_id, self._notice, self._lost)

    def _notice(self, kind: str, frame: Frame) -> None:
        self.notices.append((kind, frame))
        self._happened.set()

    def _lost(self, detail: str | None) -> None:
        self.lost.append(detail)
        self._happened.set()
        self.when_lost()

    async def until(self, promise: Callable[[], bool]) -> None:
        """Wait for a notice or a loss after which `promise` is true."""
        async with asyncio.timeout(PATIENCE):
            while not promise():
                self._happened.clear()
                await self._happened.wait()

    def call(self, payload: Any = None, on_end: Callable[[Call], None] = lambda _: None) -> Call:
        return self.channel.call("agent", "a", payload, epoch=1, deadline_ms=1000, meta={}, on_end=on_end)

    def block(self) -> Call:
        """A call so large that the kernel takes only its beginning: nothing behind it is written."""
        return self.call(b"x" * (8 << 20))

    def close(self) -> None:
        self.channel.close("stopped", "the test is over")
        self.peer.sock.close()
