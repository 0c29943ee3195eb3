"""Starting and stopping a router, in every order, with requests under way: what ends, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from moltbot import BootError, NotRunning, Request, WorkerDied, create_gateway_router
from tests.fakes import descendants, eventually
from tests.support import log_lines, logged, pool_config, router_in, stage


async def test_stopping_lets_what_runs_end_and_refuses_what_waits(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        running = asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        waiting = asyncio.create_task(router.route(Request("step", "ada", {"stage": str(at), "n": 1})))
        await eventually(lambda: router.where("ada").waiting == 1)
        stopping = asyncio.create_task(router.stop())
        with pytest.raises(NotRunning) as caught:
            await waiting
        assert caught.value.verdict == "not_started"
        assert router.draining
        with pytest.raises(NotRunning):
            await router.route(Request("echo", "ben"))
        (at / "go").touch()
        assert (await running).success
        await stopping
        assert router.get_status() is None
    assert log_lines(at) == ["begin ada 0", "end ada 0"]


async def test_stopping_waits_no_longer_than_the_drain_timeout(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", drain_timeout=50) as router:
        running = asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        await router.stop()
        with pytest.raises(WorkerDied) as caught:
            await running
        assert (caught.value.reason, caught.value.verdict) == ("stopped", "maybe_ran")


async def test_odd_orders_of_start_and_stop(tmp_path: Path) -> None:
    before = descendants()
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base"))
    await router.stop()
    await router.start()
    await router.start()
    assert (await router.route(Request("count", "ada"))).payload == 1
    await asyncio.gather(router.stop(), router.stop())
    await router.stop()
    assert descendants() == before
    await asyncio.gather(router.start(), router.start())
    assert (await router.route(Request("count", "ada"))).payload == 2
    await router.stop()
    assert descendants() == before


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 20, 40, 80])
async def test_a_cancelled_start_leaves_no_process_and_no_lock(tmp_path: Path, turns: int) -> None:
    before = descendants()
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base", worker_count=2))
    starting = asyncio.create_task(router.start())
    for _ in range(turns):
        await asyncio.sleep(0.001)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    if starting.cancelled():
        assert descendants() == before
        assert router.get_status() is None
    await router.stop()
    assert descendants() == before
    async with router_in(tmp_path / "base") as other:
        assert (await other.route(Request("echo", "ada", 1))).payload == 1


@pytest.mark.parametrize("turns", [0, 1, 5, 20, 60])
async def test_stop_during_start_leaves_nothing(tmp_path: Path, turns: int) -> None:
    before = descendants()
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base", worker_count=2))
    starting = asyncio.create_task(router.start())
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0.001)
    await router.stop()
    with contextlib.suppress(NotRunning, asyncio.CancelledError):
        await starting
    assert descendants() == before
    async with router_in(tmp_path / "base"):
        pass


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no handler file"),
        ("raise ValueError('at import')", "ValueError: at import"),
        ("import os; os._exit(4)", "exit status 4"),
        ("x = 1", "registers no handler"),
    ],
)
async def test_a_handler_that_does_not_load_fails_the_start_and_leaves_nothing(
    tmp_path: Path, content: str | None, says: str
) -> None:
    before = descendants()
    file = tmp_path / "my_handler.py"
    if content is not None:
        file.write_text(content)
    router = create_gateway_router(
        pool_config=pool_config(tmp_path / "base", worker_count=3, handler=str(file))
    )
    with pytest.raises(BootError, match="cannot boot") as caught:
        await router.start()
    assert says in caught.value.message
    assert descendants() == before
    file.write_text("from moltbot import handler\n@handler('agent')\ndef agent(ctx, payload): return 1\n")
    async with router:  # mended, the same router starts
        assert (await router.route(Request("agent", "ada"))).payload == 1


async def test_a_worker_that_never_becomes_ready_fails_the_start_in_time(tmp_path: Path) -> None:
    before = descendants()
    file = tmp_path / "slow_handler.py"
    file.write_text("import time\ntime.sleep(600)\n")
    router = create_gateway_router(
        pool_config=pool_config(tmp_path / "base", handler=str(file), boot_timeout=300)
    )
    with pytest.raises(BootError, match="not ready within 0.3 s"):
        await router.start()
    assert descendants() == before


async def test_an_exception_in_the_with_block_stops_the_router(tmp_path: Path) -> None:
    before = descendants()
    with pytest.raises(ZeroDivisionError):
        async with router_in(tmp_path / "base", worker_count=2) as router:
            await router.route(Request("echo", "ada", 1 / 0))
    assert descendants() == before
