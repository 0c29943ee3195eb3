"""A gateway with one worker whose handler runs what it is told to, in its own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from moltbot import Request
from moltbot.core.errors import IsolationUnavailable
from moltbot.gateway.server import Gateway
from moltbot.sandbox.isolation.plan import Level
from tests.legit.walls import unavailable
from tests.support import gateway_in

WALLS = (Level.BUBBLEWRAP, Level.LANDLOCK)

# `tried` tells how each of some attempts ended: "done", or the error's name.
HANDLER = """
import array, ctypes, errno, mmap, os, platform, socket, stat, struct, time
from moltbot import handler

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *values)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def tried(attempts):
    outcome = {}
    for name, act in attempts.items():
        try:
            act()
            outcome[name] = "done"
        except OSError as error:
            outcome[name] = errno.errorcode[error.errno]
    return outcome


@handler("run")
def run(ctx, payload):
    names = {**globals(), **payload["given"], "place": str(ctx.state_dir)}
    exec(payload["program"], names)
    return names["answer"]


@handler("freeze")
async def freeze(ctx, payload):
    time.sleep(1000)
"""


@asynccontextmanager
async def gateway_at(
    tmp_path: Path, level: Level, source: str = HANDLER, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway with one worker at this level; skips where the level does not work."""
    file = tmp_path / "author" / "hostile.py"
    file.parent.mkdir()
    file.write_text(source)
    file.chmod(0o644)
    context = gateway_in(tmp_path / "base", handler=str(file), isolation=level, **settings)
    try:
        gateway = await context.__aenter__()
    except IsolationUnavailable as error:
        unavailable(str(error))
    try:
        yield gateway
    finally:
        await context.__aexit__(None, None, None)


async def run(gateway: Gateway, program: str, user: str = "ada", **given: Any) -> Any:
    """Run `program` in the worker's own process; returns its `answer`."""
    request = Request("run", user, {"program": program, "given": given})
    return (await gateway.router.route(request)).payload
