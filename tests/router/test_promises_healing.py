"""Promise 5, self-healing: a dead worker comes back as it was; one that keeps dying is quarantined and tried again."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moltbot import GatewayRouter, Request, WorkerDied, WorkerQuarantined, create_gateway_router
from moltbot.core.events import PoolEvent, Subscription
from moltbot.router.status import WorkerStatus
from tests.fakes import FakeClock, change_to
from tests.support import gateway_in, logged, pool_config, post, router_in, stage

ATTEMPTS = 5  # the default: so many restarts in a minute
ADA, BEN = "user-a", "user-b"  # on worker-0 and worker-1


def worker(router: GatewayRouter, index: int = 0) -> WorkerStatus:
    status = router.get_status()
    assert status is not None
    return status.workers[index]


async def kill(router: GatewayRouter, events: Subscription[PoolEvent], then: str) -> None:
    """Kill worker-0 and wait for what follows."""
    pid = worker(router).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await change_to(events, then)


async def test_a_dead_worker_comes_back_with_its_name_and_its_directories(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        for _ in range(3):
            await router.route(Request("count", ADA))
        before = worker(router)
        with router.events() as events:
            await kill(router, events, "ready")
        after = worker(router)
        assert after.pid != before.pid
        assert after.incarnation == before.incarnation + 1
        assert after.restart_count == 1
        assert after.last_exit is not None
        assert (after.last_exit.reason, after.last_exit.incarnation) == ("crashed", before.incarnation)
        assert (await router.route(Request("count", ADA))).payload == 4
        assert len((await router.route(Request("history", ADA))).payload) == 4


async def test_the_restart_budget_trips_and_is_not_forgotten_by_a_restart(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=2, restart_delay=0) as router:
        await router.route(Request("echo", ADA))
        await router.route(Request("echo", BEN))
        with router.events() as events:
            for _ in range(ATTEMPTS):
                await kill(router, events, "ready")
                await router.route(Request("echo", ADA))  # serving does not pay deaths back
            await kill(router, events, "quarantined")
        with pytest.raises(WorkerQuarantined, match="worker-0, where this user lives, keeps dying") as caught:
            await router.route(Request("echo", ADA))
        assert caught.value.retry_after is not None
        assert 1 <= caught.value.retry_after <= 60
        assert caught.value.retryable
        assert (await router.route(Request("echo", BEN, 1))).payload == 1
        assert worker(router).restart_count == ATTEMPTS
        assert router.where(ADA).worker_id == "worker-0"
        assert router.where(ADA).worker_state == "quarantined"


async def test_over_http_only_the_users_of_a_quarantined_worker_get_503(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"worker_count": 2, "restart_delay": 0, "max_restart_attempts": 0}
    async with gateway_in(tmp_path / "base", **settings) as gateway:
        assert (await post(gateway, "echo", ADA)).json["workerId"] == "worker-0"
        assert (await post(gateway, "echo", BEN)).json["workerId"] == "worker-1"
        with gateway.router.events() as events:
            (await post(gateway, "die", ADA)).problem(502, "worker_died")
            await change_to(events, "quarantined")
        for _ in range(2):
            answer = await post(gateway, "echo", ADA)
            assert "worker-0" in answer.problem(503, "worker_quarantined")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.json["worker"] == "worker-0"
            assert answer.json["retryable"] is True
            assert (await post(gateway, "echo", BEN)).status == 200


async def test_what_waits_for_a_worker_when_it_is_quarantined_is_told_at_once(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", max_restart_attempts=0) as router:
        running = asyncio.create_task(router.route(Request("hold", ADA, {"stage": str(at)})))
        await logged(at, f"begin {ADA} 0")
        waiting = [asyncio.create_task(router.route(Request("echo", ADA))) for _ in range(3)]
        await asyncio.sleep(0)
        with router.events() as events:
            await kill(router, events, "quarantined")
        results = await asyncio.gather(running, *waiting, return_exceptions=True)
        assert isinstance(results[0], WorkerDied)
        assert [type(result) for result in results[1:]] == [WorkerQuarantined] * 3
        assert [result.verdict for result in results[1:] if isinstance(result, WorkerQuarantined)] == [
            "not_started"
        ] * 3


async def test_a_quarantined_worker_is_tried_again_after_a_minute_then_two(tmp_path: Path) -> None:
    clock = FakeClock()
    config = pool_config(tmp_path / "base", max_restart_attempts=0)
    async with create_gateway_router(pool_config=config, clock=clock) as router:
        await router.route(Request("count", ADA))
        with router.events() as events:
            for minutes in (1, 2, 4):
                await kill(router, events, "quarantined")
                clock.advance(60 * minutes - 1)
                with pytest.raises(WorkerQuarantined) as caught:
                    await router.route(Request("count", ADA))
                assert caught.value.retry_after == 1
                clock.advance(1)
                await change_to(events, "ready")
        assert (await router.route(Request("count", ADA))).payload == 2


async def test_a_worker_that_lasted_the_whole_window_has_a_clean_record(tmp_path: Path) -> None:
    clock = FakeClock()
    config = pool_config(tmp_path / "base", max_restart_attempts=1)
    async with create_gateway_router(pool_config=config, clock=clock) as router:
        with router.events() as events:
            for _ in range(4):  # far more deaths than allowed in one window, but never two in one
                await kill(router, events, "backoff")
                clock.advance(0)
                await change_to(events, "ready")
                clock.advance(60)
            await kill(router, events, "backoff")
            clock.advance(0)
            await change_to(events, "ready")
            await kill(router, events, "quarantined")


async def test_a_worker_is_recycled_after_max_requests_without_losing_any(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", max_requests=5) as router:
        users = [f"user-{number}" for number in range(4)]
        work = [router.route(Request("count", user)) for _ in range(10) for user in users]
        replies = await asyncio.gather(*work)
        for user in users:
            assert [reply.payload for reply in replies if reply.user_id == user] == list(range(1, 11))
        status = worker(router)
        assert status.restart_count >= 2
        assert status.last_exit is not None
        assert status.last_exit.reason == "recycled"
