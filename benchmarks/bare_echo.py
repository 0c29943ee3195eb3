"""The floor of `route()`: length-prefixed msgpack maps over a socketpair to Python children that send them back.

Both ends are a plain asyncio protocol. There is no user, order, limit, deadline, check or isolation: what remains is the
kernel, the event loop and msgpack. Not part of the product. The children run this file, and end when their socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import msgpack

CHILDREN = 3


class Framed(asyncio.Protocol):
    """Cuts what arrives into maps and hands each to `received`."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) >= start + 4:
            end = start + 4 + int.from_bytes(buffer[start : start + 4], "big")
            if len(buffer) < end:
                break
            self.received(msgpack.unpackb(buffer[start + 4 : end]))
            start = end
        del buffer[:start]

    def received(self, frame: dict[str, Any]) -> None:
        raise NotImplementedError


def pack(frame: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(frame)
    return len(body).to_bytes(4, "big") + body


class Caller(Framed):
    """Our end of one child."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count()
        self._loop = asyncio.get_running_loop()

    async def call(self, user_id: str, payload: Any) -> Any:
        id = next(self._ids)
        future = self._waiting[id] = self._loop.create_future()
        self.transport.write(pack({"id": id, "user_id": user_id, "payload": payload}))
        return await future

    def received(self, frame: dict[str, Any]) -> None:
        self._waiting.pop(frame["id"]).set_result(frame["payload"])


class Echo(Framed):
    """The child's end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.get_running_loop().create_future()

    def received(self, frame: dict[str, Any]) -> None:
        self.transport.write(pack({"id": frame["id"], "payload": frame["payload"]}))

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


@contextlib.asynccontextmanager
async def bare_children(loop_name: str) -> AsyncIterator[list[Caller]]:
    """Three children on the event loop of that name, ready."""
    loop = asyncio.get_running_loop()
    command = [sys.executable, "-m", "benchmarks.bare_echo", loop_name]
    callers = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CHILDREN):
            ours, theirs = socket.socketpair()
            with theirs:
                child = subprocess.Popen(command, stdin=theirs.fileno())  # noqa: ASYNC220 - before anything is timed
            stack.callback(_end, child)
            transport, caller = await loop.create_connection(Caller, sock=ours)
            stack.callback(transport.abort)
            callers.append(caller)
        await asyncio.gather(*(caller.call("ready", None) for caller in callers))
        yield callers


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


async def serve() -> None:
    """The child: send back what comes on standard input, a socket, until it ends."""
    sock = socket.socket(fileno=0)
    _, echo = await asyncio.get_running_loop().create_connection(Echo, sock=sock)
    await echo.ended


if __name__ == "__main__":
    from benchmarks.runner import loop_factory

    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve())
