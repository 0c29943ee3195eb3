"""Requests that may run again: what they are told when they cannot, and that nobody waits for a router that stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from moltbot import Request, create_gateway_router
from moltbot.core.errors import MoltbotError
from tests.fakes import eventually
from tests.support import pool_config, stage

HANDLER = """
import asyncio, os, signal
from moltbot import handler

@handler("die")
async def die(ctx, payload):
    open(payload, "a").write("ran\\n")
    os.kill(os.getpid(), signal.SIGKILL)

@handler("hang")
async def hang(ctx, payload):
    open(payload, "a").write("ran\\n")
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
"""


def config(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    (tmp_path / "deadly.py").write_text(HANDLER)
    stage(tmp_path / "stage")
    return pool_config(tmp_path / "base", handler=str(tmp_path / "deadly.py")) | settings


async def test_what_has_run_is_never_said_not_to_have_started(tmp_path: Path) -> None:
    async with create_gateway_router(config(tmp_path, restartDelay="20s", queueTimeout="200ms")) as router:
        request = Request("die", "ada", str(tmp_path / "stage" / "record"), idempotent=True)
        with pytest.raises(MoltbotError) as caught:
            await router.route(request)
        assert (tmp_path / "stage" / "record").read_text() == "ran\n"
        assert (caught.value.verdict, caught.value.retryable) == ("maybe_ran", False)


async def test_nobody_waits_for_a_router_that_has_stopped(tmp_path: Path) -> None:
    router = create_gateway_router(config(tmp_path, drainTimeout=0))
    await router.start()
    record = tmp_path / "stage" / "record"
    caller = asyncio.create_task(router.route(Request("hang", "ada", str(record), idempotent=True)))
    await eventually(record.exists)
    await router.stop()
    done, _ = await asyncio.wait([caller], timeout=1)
    assert done, "its caller still waits for a worker that will never come"
    error = caller.exception()
    assert isinstance(error, MoltbotError)
    assert error.verdict == "maybe_ran"


async def test_a_thread_that_a_handler_left_behind_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "threads.py"
    path.write_text(
        "import asyncio, time\nfrom moltbot import handler\n"
        "@handler('leave')\nasync def leave(ctx, payload):\n"
        "    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1000)\n"
    )
    settings = config(tmp_path) | {"handler": str(path)}
    async with create_gateway_router(settings) as router:
        await router.route(Request("leave", "ada"))
    log = (tmp_path / "base" / "logs" / "worker-pool.log").read_text()
    assert "stopping -> stopped" in log
    assert "killing" not in log
