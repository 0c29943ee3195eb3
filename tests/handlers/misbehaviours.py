"""Handlers of every bad kind. Those that are told a `stage` write a line into its log when they begin."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moltbot import Context, handler


def note(payload: dict[str, Any], what: str) -> None:
    descriptor = os.open(Path(payload["stage"]) / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


@handler("count")
async def count(ctx: Context, payload: Any) -> int:
    """The one that behaves: it tells whether this user's state is still whole."""
    ctx.state["count"] = ctx.state.get("count", 0) + 1
    return int(ctx.state["count"])


@handler("prints")
def prints(ctx: Context, payload: Any) -> int:
    """A gigabyte, unless somebody has seen enough; returns how many megabytes it was."""
    block = (b"x" * 8191 + b"\n") * 128
    for megabytes in range(1024):
        if ctx.cancelled:
            return megabytes
        os.write(1, block)
    return 1024


@handler("garbage")
async def garbage(ctx: Context, payload: Any) -> None:
    os.write(3, b"\xff" * 4096)
    await asyncio.sleep(600)


@handler("forges")
async def forges(ctx: Context, payload: Any) -> None:
    """A well-formed frame for a request that nobody sent."""
    import msgpack

    body = msgpack.packb({"kind": "reply", "id": 4_000_000, "payload": "forged", "usage": {}})
    os.write(3, len(body).to_bytes(4, "big") + body)
    await asyncio.sleep(600)


@handler("closes")
async def closes(ctx: Context, payload: Any) -> None:
    os.close(3)
    await asyncio.sleep(600)


@handler("exits")
async def exits(ctx: Context, payload: Any) -> None:
    os._exit(0)


@handler("sys_exits")
async def sys_exits(ctx: Context, payload: Any) -> None:
    sys.exit(3)


@handler("sys_exits_in_a_thread")
def sys_exits_in_a_thread(ctx: Context, payload: Any) -> None:
    sys.exit("leaving")


@handler("interrupts")
async def interrupts(ctx: Context, payload: Any) -> None:
    raise KeyboardInterrupt


@handler("aborts")
async def aborts(ctx: Context, payload: Any) -> None:
    os.abort()


@handler("blocks")
async def blocks(ctx: Context, payload: dict[str, Any]) -> None:
    """Holds up the event loop, as a forgotten `await` does."""
    note(payload, "begin")
    time.sleep(600)  # noqa: ASYNC251


@handler("holds_the_lock")
async def holds_the_lock(ctx: Context, payload: dict[str, Any]) -> None:
    """C code that never gives the interpreter's lock back."""
    note(payload, "begin")
    while True:  # a signal ends one sleep
        ctypes.PyDLL(None).sleep(600)


@handler("ignores_cancellation")
async def ignores_cancellation(ctx: Context, payload: dict[str, Any]) -> None:
    note(payload, "begin")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note(payload, "ignored")


@handler("never_ends")
def never_ends(ctx: Context, payload: dict[str, Any]) -> None:
    note(payload, "begin")
    threading.Event().wait()


@handler("returns")
async def returns(ctx: Context, payload: str) -> Any:
    """Values that cannot go out."""
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]
    values: dict[str, Any] = {
        "object": object(),
        "function": note,
        "set": {1, 2},
        "huge int": 1 << 80,
        "itself": loop,
        "deep": deep,
        "surrogate": "\ud800",
        "bytes": b"\x00\xff",
        "nan": float("nan"),
        "infinity": [float("inf")],
        "key of bytes": {b"a": 1},
        "too large": "x" * (17 << 20),
    }
    return values[payload]


@handler("yields")
async def yields(ctx: Context, payload: str) -> AsyncIterator[Any]:
    yield "fine"
    yield {"object": object(), "bytes": b"\xff", "nan": float("nan")}[payload]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")

    __repr__ = __str__


@handler("raises")
async def raises(ctx: Context, payload: str) -> None:
    ctx.state["count"] = "spoilt"
    error = {
        "unprintable": Unprintable(),
        "surrogate": ValueError("\ud800"),
        "long": ValueError("x" * 100_000),
        "lines": ValueError("a\nb\r\n\x1b[31mc"),
        "group": ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        "exit": SystemExit(5),
        "generator": GeneratorExit(),
        "cancelled": asyncio.CancelledError(),
        "timeout": TimeoutError(),
        "memory": MemoryError(),
        "recursion": RecursionError("too deep"),
    }[payload]
    raise error


@handler("recurses")
async def recurses(ctx: Context, payload: Any) -> Any:
    return await recurses(ctx, payload)


@handler("allocates")
async def allocates(ctx: Context, payload: Any) -> int:
    """More than any limit, in one piece."""
    return len(bytearray(1 << 40))


@handler("grows")
async def grows(ctx: Context, payload: dict[str, Any]) -> None:
    """Memory that is really used, until somebody stops it."""
    note(payload, "begin")
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))
        await asyncio.sleep(0.001)


@handler("nests")
def nests(ctx: Context, payload: int) -> str:
    """Folders in folders, below its own temp directory."""
    start = str(ctx.temp_dir)
    os.chdir(start)
    for _ in range(payload):
        os.mkdir("d")
        os.chdir("d")
    return start


@handler("spoils_state")
async def spoils_state(ctx: Context, payload: str) -> str:
    ctx.state["value"] = {"object": object(), "large": "x" * (2 << 20)}[payload]
    return "done"


@handler("fills_the_log")
async def fills_the_log(ctx: Context, payload: Any) -> None:
    ctx.log.info("a line with \x1b[31m colour and \n a second line")
    print("\x1b]0;title\x07 and \x00 bytes", flush=True)


@handler("fills_by_descriptor")
def fills_by_descriptor(ctx: Context, payload: Any) -> None:
    """Processes that outlive the request make files in the user's directory for ever, wherever it is moved to."""
    folder = os.open(ctx.state_dir, os.O_RDONLY)
    for child in range(8):
        if os.fork() == 0:
            for number in itertools.count():
                with contextlib.suppress(OSError):
                    os.close(
                        os.open(f"{child}-{number % 5000}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
                    )
