"""Promise 4, contained: what happens in one worker costs only the requests in flight on it, each with its verdict."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moltbot import Event, GatewayRouter, Request, WorkerDied
from moltbot.router.status import WorkerStatus
from tests.fakes import all_gone, change_to, pids_outside, watch
from tests.support import log_lines, logged, router_in, stage

ADA, BEN, CY = "user-a", "user-b", "user-c"  # on worker-0, worker-1 and worker-2


async def settle_in(router: GatewayRouter) -> None:
    for user, worker in ((ADA, "worker-0"), (BEN, "worker-1"), (CY, "worker-2")):
        assert (await router.route(Request("count", user))).worker_id == worker


def worker(router: GatewayRouter, index: int) -> WorkerStatus:
    status = router.get_status()
    assert status is not None
    return status.workers[index]


async def keep_sending(router: GatewayRouter, user: str, stop: asyncio.Event) -> list[Any]:
    """Send until told to stop; whatever fails is raised."""
    answers = []
    while not stop.is_set():
        answers.append((await router.route(Request("count", user))).payload)
    return answers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_crash_costs_no_other_worker_a_request(tmp_path: Path, number: int) -> None:
    async with router_in(tmp_path / "base", worker_count=3, restart_delay=0) as router:
        await settle_in(router)
        others = [worker(router, 0).pid, worker(router, 2).pid]
        stop = asyncio.Event()
        traffic = [asyncio.create_task(keep_sending(router, user, stop)) for user in (ADA, CY)]
        with router.events() as events:
            for _ in range(3):
                pid = worker(router, 1).pid
                assert pid is not None
                life = (await router.route(Request("whoami", BEN))).payload["life"]
                os.kill(pid, number)
                await change_to(events, "ready", worker="worker-1")
                assert (await router.route(Request("whoami", BEN))).payload["life"] != life
                assert worker(router, 1).pid != pid
        stop.set()
        for answers in await asyncio.gather(*traffic):
            assert answers == list(range(2, len(answers) + 2))
            assert answers
        assert [worker(router, 0).pid, worker(router, 2).pid] == others
        assert (await router.route(Request("count", BEN))).payload == 2


async def test_a_stopped_worker_is_killed_and_costs_nobody_else_anything(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3, heartbeat_interval=100) as router:
        await settle_in(router)
        pid = worker(router, 1).pid
        assert pid is not None
        with router.events() as events:
            os.kill(pid, signal.SIGSTOP)
            stuck = asyncio.create_task(router.route(Request("count", BEN)))
            stop = asyncio.Event()
            traffic = [asyncio.create_task(keep_sending(router, user, stop)) for user in (ADA, CY)]
            change = await change_to(events, "killing", worker="worker-1")
            assert change.reason == "unresponsive"
            await change_to(events, "ready", worker="worker-1")
        stop.set()
        assert all(await asyncio.gather(*traffic))
        with pytest.raises(WorkerDied) as caught:
            await stuck
        assert (caught.value.reason, caught.value.worker) == ("unresponsive", "worker-1")
        last = worker(router, 1).last_exit
        assert last is not None
        assert last.reason == "unresponsive"


async def test_a_request_in_flight_at_a_crash_maybe_ran_and_is_not_run_again(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        with pytest.raises(WorkerDied, match="worker-0") as caught:
            await router.route(Request("die", ADA, {"stage": str(at), "times": 1}))
        assert (caught.value.verdict, caught.value.retryable) == ("maybe_ran", False)
        await router.route(Request("echo", ADA))
        assert log_lines(at) == ["died"]


async def test_an_idempotent_request_is_run_again_on_the_next_incarnation(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        request = Request("die", ADA, {"stage": str(at), "times": 2}, idempotent=True)
        reply = await router.route(request)
        assert reply.success
        assert log_lines(at) == ["died"] * 3
        assert worker(router, 0).restart_count == 2


async def test_an_idempotent_request_that_always_kills_is_given_up(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        with pytest.raises(WorkerDied) as caught:
            await router.route(Request("die", ADA, {"stage": str(at)}, idempotent=True))
        assert caught.value.verdict == "maybe_ran"
        await router.route(Request("echo", ADA))
        assert len(log_lines(at)) == 3


async def test_an_idempotent_stream_is_not_begun_again_once_its_reader_saw_a_part(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        payload = {"stage": str(at), "chunks": 1000}
        items = router.stream(Request("flood", ADA, payload, idempotent=True))
        await anext(items)
        pid = worker(router, 0).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            async for _ in items:
                pass
        await router.route(Request("echo", ADA))
        assert log_lines(at) == [f"begin {ADA} 0"]


async def test_a_request_that_waits_while_its_worker_is_down_runs_by_itself(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=50) as router:
        await router.route(Request("whoami", ADA))
        pid = worker(router, 0).pid
        assert pid is not None
        with router.events() as events:
            os.kill(pid, signal.SIGKILL)
            await change_to(events, "backoff")
            reply = await router.route(Request("step", ADA, {"stage": str(at), "n": 7}))
            assert reply.payload == 7
        assert log_lines(at) == [f"begin {ADA} 7", f"end {ADA} 7"]


async def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        family = (await router.route(Request("family", ADA))).payload
        pid = worker(router, 0).pid
        assert pid is not None
        outside = pids_outside(pid, *family)
        assert outside[-1] == pid
        watched = watch(*outside)
        with router.events() as events:
            os.kill(pid, signal.SIGKILL)
            await change_to(events, "ready")
        assert await all_gone(watched) == []


async def test_a_crash_ends_a_stream_with_its_verdict_after_what_came(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        items = router.stream(Request("story", ADA, {"chunks": ["a"]}))
        assert isinstance(await anext(items), Event)
        await items.aclose()
        held = asyncio.create_task(router.route(Request("hold", ADA, {"stage": str(at)})))
        await logged(at, f"begin {ADA} 0")
        pid = worker(router, 0).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied) as caught:
            await held
        facts = caught.value.facts()
        assert {name: facts[name] for name in ("code", "verdict", "worker")} == {
            "code": "worker_died",
            "verdict": "maybe_ran",
            "worker": "worker-0",
        }
