"""Promise 8, bounded: over every limit the caller gets a clear answer, at once; idle users leave memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from moltbot import GatewayRouter, QueueFull, Reply, ReplyTooLarge, Request, RequestTimeout, UserQueueFull
from moltbot.core.events import UserUnloaded
from moltbot.gateway.server import Gateway
from tests.fakes import first_event
from tests.support import Answer, gateway_in, log_lines, logged, post, router_in, stage


async def started(at: Path, begin: Callable[[], Awaitable[Any]], user: str) -> asyncio.Task[Any]:
    """Begin a request that holds its lane, and wait until it runs."""

    async def run() -> Any:
        return await begin()

    task = asyncio.create_task(run())
    await logged(at, f"begin {user} 0")
    return task


def holding(router: GatewayRouter, at: Path, user: str = "ada") -> Callable[[], Awaitable[Reply]]:
    return lambda: router.route(Request("hold", user, {"stage": str(at)}))


async def waiting(router: GatewayRouter, user: str, count: int) -> list[asyncio.Task[Reply]]:
    """So many requests in the user's lane, behind the one that runs."""
    tasks = [asyncio.create_task(router.route(Request("echo", user, n))) for n in range(count)]
    for _ in range(3):  # they are admitted without waiting for anything
        await asyncio.sleep(0)
    return tasks


async def test_a_user_over_their_queue_is_refused_and_nobody_else(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", max_queue_per_user=3) as router:
        held = await started(at, holding(router, at), "ada")
        queued = await waiting(router, "ada", 3)
        with pytest.raises(UserQueueFull, match="3 requests waiting") as caught:
            await router.route(Request("echo", "ada"))
        assert caught.value.retry_after is not None
        assert (await router.route(Request("echo", "ben", 1))).payload == 1
        (at / "go").touch()
        assert [reply.payload for reply in await asyncio.gather(*queued)] == [0, 1, 2]
        await held
        assert (await router.route(Request("echo", "ada", 9))).payload == 9


async def test_a_worker_over_its_queue_refuses_all_its_users_but_no_other_worker(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    settings = {"worker_count": 2, "max_concurrent": 1, "max_queue_per_worker": 2}
    async with router_in(tmp_path / "base", **settings) as router:
        for user in ("user-a", "user-b"):  # worker-0 and worker-1
            await router.route(Request("echo", user))
        held = await started(at, holding(router, at, "user-a"), "user-a")
        queued = await waiting(router, "user-a", 2)
        with pytest.raises(QueueFull, match="worker-0 already has 2 requests waiting") as caught:
            await router.route(Request("echo", "user-a"))
        assert type(caught.value) is QueueFull
        assert (await router.route(Request("echo", "user-b", 1))).payload == 1
        (at / "go").touch()
        await asyncio.gather(held, *queued)


async def over_http(gateway: Gateway, at: Path, waiting: int) -> tuple[asyncio.Task[Any], list[Any], Answer]:
    """Fill a lane over HTTP and return what one request more gets."""
    held = await started(at, lambda: post(gateway, "hold", "ada", {"stage": str(at)}), "ada")
    queued = [asyncio.create_task(post(gateway, "echo", "ada", n)) for n in range(waiting)]
    while (status := gateway.router.get_status()) is not None and status.queued_requests < waiting:
        await asyncio.sleep(0.005)
    return held, queued, await post(gateway, "echo", "ada")


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"max_queue_per_user": 2}, 429, "user_queue_full"),
        ({"max_queue_per_worker": 2}, 503, "worker_queue_full"),
    ],
)
async def test_over_http_a_full_queue_is_told_with_retry_after(
    tmp_path: Path, settings: dict[str, Any], status: int, code: str
) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base", **settings) as gateway:
        held, queued, answer = await over_http(gateway, at, 2)
        answer.problem(status, code)
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json["retryable"] is True
        assert answer.json["verdict"] == "not_started"
        (at / "go").touch()
        assert {answer.status for answer in await asyncio.gather(held, *queued)} == {200}


async def test_a_request_that_waits_too_long_was_not_started(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base", queue_timeout=100) as gateway:
        held = await started(at, lambda: post(gateway, "hold", "ada", {"stage": str(at)}), "ada")
        answer = await post(gateway, "step", "ada", {"stage": str(at), "n": 1})
        answer.problem(504, "timeout")
        assert answer.json["verdict"] == "not_started"
        assert answer.json["retryable"] is True
        (at / "go").touch()
        assert (await held).status == 200
        assert log_lines(at) == ["begin ada 0", "end ada 0"]


@pytest.mark.parametrize("fields", [{}, {"timeout": 100}])
async def test_a_request_that_runs_too_long_is_cancelled(tmp_path: Path, fields: dict[str, Any]) -> None:
    at = stage(tmp_path / "stage")
    timeout = 60_000 if fields else 100
    async with gateway_in(tmp_path / "base", request_timeout=timeout) as gateway:
        answer = await post(gateway, "hold", "ada", {"stage": str(at)}, **fields)
        answer.problem(504, "timeout")
        assert answer.json["verdict"] == "maybe_ran"
        assert answer.json["retryable"] is False
        await logged(at, "cancelled ada 0")
        assert (await post(gateway, "echo", "ada", 1)).json["payload"] == 1


async def test_a_longer_timeout_than_the_pools_is_cut_to_it(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", request_timeout=100) as router:
        with pytest.raises(RequestTimeout, match="longer than 100ms"):
            await router.route(Request("hold", "ada", {"stage": str(at)}, timeout=60_000))


async def test_a_collected_reply_is_bounded_and_a_stream_is_not(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        request = Request("flood", "ada", {"stage": str(at), "chunks": 2000})  # 20 MB
        with pytest.raises(ReplyTooLarge, match="as a stream"):
            await router.route(request)
        await logged(at, "cancelled ada 0")
        assert len([item async for item in router.stream(request)]) == 2001


async def test_an_idle_user_leaves_memory_and_comes_back_with_state(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", user_idle_timeout=50) as router:
        with router.events() as events:
            await router.route(Request("count", "ada"))
            await router.route(Request("count", "ada"))
            unloaded = await first_event(events, UserUnloaded)
            assert (unloaded.user_id, unloaded.worker_id) == ("ada", "worker-0")
            receipt = router.where("ada")
            assert not receipt.loaded
            assert (receipt.worker_id, receipt.epoch) == ("worker-0", 1)
        assert (await router.route(Request("count", "ada"))).payload == 3
        assert [entry["count"] for entry in (await router.route(Request("history", "ada"))).payload] == [
            1,
            2,
            3,
        ]


async def test_a_user_who_is_served_is_not_idle(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", user_idle_timeout=50) as router:
        with router.events() as events:
            held = await started(at, holding(router, at), "ada")
            await router.route(Request("count", "ben"))
            await first_event(events, UserUnloaded, lambda event: event.user_id == "ben")
            assert router.where("ada").loaded
        (at / "go").touch()
        await held
