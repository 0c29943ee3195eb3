"""Handlers that behave. A *stage* is a directory of the test, in which both sides signal each other by files.

What happens is a line in `<stage>/log`; a handler that waits does so until `<stage>/<until>` exists.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from moltbot import Context, handler

LIFE = secrets.token_hex(8)
"""Tells this process from every other one: behind a wall, each has the same pid."""


def note(payload: dict[str, Any], what: str) -> None:
    """One line, whole even if several processes write."""
    descriptor = os.open(Path(payload["stage"]) / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


async def told(payload: dict[str, Any], default: str = "go") -> None:
    """Wait until the test lets the handler go on."""
    while not (Path(payload["stage"]) / payload.get("until", default)).exists():
        await asyncio.sleep(0.005)


@handler("echo")
async def echo(ctx: Context, payload: Any) -> Any:
    return payload


@handler("whoami")
async def whoami(ctx: Context, payload: Any) -> dict[str, Any]:
    """Who answers, and for whom: enough to tell two users apart."""
    return {
        "user": ctx.user_id,
        "worker": ctx.worker_id,
        "pid": os.getpid(),
        "life": LIFE,
        "directory": str(ctx.state_dir),
        "meta": dict(ctx.meta),
        "epoch": ctx.epoch,
    }


@handler("count")
async def count(ctx: Context, payload: Any) -> int:
    """How often this user came, kept in the state and in the conversation."""
    number: int = ctx.state.get("count", 0) + 1
    ctx.state["count"] = number
    ctx.session.append({"count": number})
    return number


@handler("history")
async def history(ctx: Context, payload: Any) -> list[Any]:
    return ctx.session.read()


@handler("step")
async def step(ctx: Context, payload: dict[str, Any]) -> Any:
    """Write down its beginning and its end, and let whoever could overtake it do so in between."""
    note(payload, f"begin {ctx.user_id} {payload['n']}")
    for _ in range(3):
        await asyncio.sleep(0)
    note(payload, f"end {ctx.user_id} {payload['n']}")
    return payload["n"]


@handler("hold")
async def hold(ctx: Context, payload: dict[str, Any]) -> Any:
    """Run until the test lets it go; a cancellation is written down."""
    note(payload, f"begin {ctx.user_id} {payload.get('n', 0)}")
    try:
        await told(payload)
    except asyncio.CancelledError:
        note(payload, f"cancelled {ctx.user_id} {payload.get('n', 0)}")
        raise
    note(payload, f"end {ctx.user_id} {payload.get('n', 0)}")
    return os.getpid()


@handler("story")
async def story(ctx: Context, payload: dict[str, Any]) -> AsyncIterator[Any]:
    """Everything that can be streamed: chunks, an event, usage; then it fails if asked to."""
    ctx.emit("begun", {"user": ctx.user_id})
    for chunk in payload.get("chunks", ["one ", "two"]):
        yield chunk
    ctx.report_usage(tokens=2)
    if payload.get("fail"):
        raise ValueError("the story has a bad end")


@handler("spell")
def spell(ctx: Context, payload: dict[str, Any]) -> Iterator[str]:
    """A plain generator, run in a thread."""
    yield from payload["text"]


@handler("flood")
async def flood(ctx: Context, payload: dict[str, Any]) -> AsyncIterator[str]:
    """More chunks than any reader's credit, as many as are asked for."""
    note(payload, f"begin {ctx.user_id} 0")
    try:
        for _ in range(payload["chunks"]):
            yield "x" * 10_000
    except (asyncio.CancelledError, GeneratorExit):
        note(payload, f"cancelled {ctx.user_id} 0")
        raise
    note(payload, f"end {ctx.user_id} 0")


@handler("die")
async def die(ctx: Context, payload: dict[str, Any] | None) -> None:
    """Take the whole process down, the first `times` times if asked so."""
    if payload is not None:
        note(payload, "died")
        died = (Path(payload["stage"]) / "log").read_text(encoding="utf-8").splitlines().count("died")
        if died > payload.get("times", 1 << 30):
            return
    os._exit(3)


@handler("family")
def family(ctx: Context, payload: Any) -> list[int]:
    """Start a child and a grandchild in sessions of their own; returns their pids and this one, as seen from here."""
    program = (
        "import subprocess, sys, time;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', 'moltbot-grandchild'],"
        " start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, "moltbot-child"], start_new_session=True, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    return [child.pid, int(child.stdout.readline()), os.getpid()]


@handler("surroundings")
def surroundings(ctx: Context, payload: Any) -> dict[str, Any]:
    """What this process was given by the gateway: environment, arguments, open descriptors, working directory."""
    descriptors = {}
    for number in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):  # not every wall allows a listing
        try:
            descriptors[str(number)] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
    return {
        "environment": dict(os.environ),
        "argv": sys.orig_argv,
        "descriptors": descriptors,
        "directory": os.getcwd(),
        "parent": os.getppid(),
        "umask": os.umask(0o077),
    }


@handler("tell")
async def tell(ctx: Context, payload: dict[str, Any]) -> AsyncIterator[str]:
    """A chunk at once, the next when the test says `go` to this user; a cancellation is written down."""
    note(payload, f"begin {ctx.user_id} {payload['n']}")
    try:
        yield "first"
        await told({**payload, "until": f"go {ctx.user_id}"})
        yield "last"
    except (asyncio.CancelledError, GeneratorExit):
        note(payload, f"cancelled {ctx.user_id} {payload['n']}")
        raise
    note(payload, f"end {ctx.user_id} {payload['n']}")


@handler("leave_traces")
async def leave_traces(ctx: Context, payload: str) -> None:
    """Keep the payload wherever a handler can keep something of a user."""
    ctx.state["kept"] = payload
    ctx.session.append({"said": payload})
    for directory in (ctx.state_dir, ctx.session_dir, ctx.cache_dir, ctx.temp_dir):
        (directory / f"{payload}.txt").write_text(payload)
        (directory / payload).mkdir()
