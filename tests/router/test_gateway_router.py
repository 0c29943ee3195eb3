"""`GatewayRouter` as an embedder uses it: requests, streams, status, receipts, events."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from moltbot import (
    Chunk,
    Event,
    HandlerError,
    InvalidRequest,
    NotFound,
    NotRunning,
    Reply,
    Request,
    UnknownType,
    Usage,
    create_gateway_router,
)
from moltbot.core.events import UserPinned, WorkerChanged
from tests.fakes import first_event
from tests.support import LEVELS, log_lines, logged, pool_config, router_in, stage


async def test_before_its_start_a_router_knows_nothing_and_takes_nothing(tmp_path: Path) -> None:
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base"))
    assert router.get_status() is None
    assert router.get_worker_for_user("ada") is None
    with pytest.raises(NotRunning):
        router.where("ada")
    with pytest.raises(NotRunning):
        await router.route(Request("echo", "ada"))
    with pytest.raises(NotRunning):
        await anext(router.stream(Request("echo", "ada")))
    assert not (tmp_path / "base").exists()


async def test_status_counts_what_happened(tmp_path: Path) -> None:
    started = datetime.now(UTC)
    async with router_in(tmp_path / "base", worker_count=2) as router:
        for _ in range(3):
            await router.route(Request("echo", "user-a"))
        await router.route(Request("echo", "user-b"))
        with pytest.raises(UnknownType):
            await router.route(Request("nothing", "user-b"))
        status = router.get_status()
        assert status is not None
        assert (status.total_workers, status.healthy_workers, status.busy_workers) == (2, 2, 0)
        assert (status.queued_requests, status.running_requests) == (0, 0)
        assert (status.completed_requests, status.failed_requests) == (4, 1)
        assert status.routing_table_size == 2
        assert status.isolation in LEVELS
        assert status.protections
        first, second = status.workers
        assert (first.worker_id, first.requests, first.errors, first.users) == ("worker-0", 3, 0, 1)
        assert (second.worker_id, second.requests, second.errors, second.users) == ("worker-1", 2, 1, 1)
        for worker in status.workers:
            assert (worker.state, worker.connected, worker.incarnation) == ("ready", True, 1)
            assert (worker.restart_count, worker.in_flight, worker.queued, worker.last_exit) == (
                0,
                0,
                0,
                None,
            )
            assert worker.pid is not None
            assert (worker.isolation, worker.protections) == (status.isolation, status.protections)
            assert worker.start_time is not None
            assert started <= worker.start_time <= status.timestamp
            assert worker.last_heartbeat is not None
            assert worker.uptime >= 0


async def test_status_shows_what_runs_and_what_waits(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        held = [
            asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)}))) for _ in range(3)
        ]
        await logged(at, "begin ada 0")
        status = router.get_status()
        assert status is not None
        assert (status.busy_workers, status.running_requests, status.queued_requests) == (1, 1, 2)
        assert (status.workers[0].in_flight, status.workers[0].queued) == (1, 2)
        assert (router.where("ada").running, router.where("ada").waiting) == (1, 2)
        (at / "go").touch()
        await asyncio.gather(*held)


async def test_status_and_receipts_become_json_in_camel_case(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("echo", "ada"))
        status = router.get_status()
        assert status is not None
        document = json.loads(json.dumps(status.to_json()))
        assert document["totalWorkers"] == document["routingTableSize"] == 1
        assert document["workers"][0].keys() >= {"workerId", "restartCount", "lastHeartbeat", "inFlight"}
        assert document["workers"][0] == status.workers[0].to_json()
        receipt = json.loads(json.dumps(router.where("ada").to_json()))
        assert (receipt["userId"], receipt["workerState"]) == ("ada", "ready")


async def test_where_is_a_receipt(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    async with router_in(tmp_path / "base", worker_count=3) as router:
        with pytest.raises(NotFound, match="'user-b' has no worker yet"):
            router.where("user-b")
        await router.route(Request("count", "user-b"))
        receipt = router.where("user-b")
        assert (receipt.user_id, receipt.worker_id, receipt.epoch) == ("user-b", "worker-1", 1)
        assert before <= receipt.since <= datetime.now(UTC)
        assert "ring" in receipt.why
        assert (receipt.loaded, receipt.overdue) == (True, 0)
        assert receipt.directories["state"] == tmp_path / "base" / "worker-1" / "state" / "user-b"
        assert (receipt.directories["state"] / "state.msgpack").exists()
        with pytest.raises(InvalidRequest):
            router.where("")


async def test_asking_for_a_users_worker_never_writes(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        asked = {f"user-{n}": router.get_worker_for_user(f"user-{n}") for n in range(50)}
        assert set(asked.values()) <= {"worker-0", "worker-1", "worker-2"}
        status = router.get_status()
        assert status is not None
        assert status.routing_table_size == 0
        first = await router.route(Request("echo", "user-7"))
        assert first.worker_id == asked["user-7"]
        assert router.get_worker_for_user("user-7") == first.worker_id
        with pytest.raises(InvalidRequest):
            router.get_worker_for_user("")
    async with router_in(tmp_path / "base", worker_count=3) as router:
        status = router.get_status()
        assert status is not None
        assert status.routing_table_size == 1


async def test_events_tell_of_pins_and_workers(tmp_path: Path) -> None:
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base", worker_count=2))
    with router.events() as events:
        async with router:
            ready = await first_event(events, WorkerChanged, lambda event: event.state == "ready")
            assert ready.to_json()["event"] == "worker-changed"
            await router.route(Request("echo", "user-b"))
            await router.route(Request("echo", "user-b"))
            pinned = await first_event(events, UserPinned)
            assert (pinned.user_id, pinned.worker_id, pinned.epoch) == ("user-b", "worker-1", 1)
        stopped = await first_event(events, WorkerChanged, lambda event: event.state == "stopped")
        assert stopped.reason == "stopped"


async def test_route_joins_chunks_of_text_and_lists_others(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        for chunks, payload in (
            (["a", "b", "ü"], "abü"),
            (["a", 1], ["a", 1]),
            ([b"a", b"b"], [b"a", b"b"]),
            ([], None),
        ):
            reply = await router.route(Request("story", "ada", {"chunks": chunks}))
            assert (reply.payload, reply.usage) == (payload, {"tokens": 2})
        assert (await router.route(Request("spell", "ada", {"text": "word"}))).payload == "word"


async def test_a_stream_yields_everything_and_ends_in_its_reply(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        *items, reply = [item async for item in router.stream(Request("story", "ada", {}))]
        assert items == [Event("begun", {"user": "ada"}), Chunk("one "), Chunk("two"), Usage({"tokens": 2})]
        assert isinstance(reply, Reply)
        assert (reply.success, reply.payload, reply.usage) == (True, None, {"tokens": 2})


async def test_a_failing_stream_raises_after_its_items(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        items = router.stream(Request("story", "ada", {"chunks": ["a"], "fail": True}))
        assert [type(await anext(items)) for _ in range(3)] == [Event, Chunk, Usage]
        with pytest.raises(HandlerError, match="bad end"):
            await anext(items)


async def test_a_slow_reader_of_a_stream_blocks_nobody_else(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        items = router.stream(Request("flood", "slow", {"stage": str(at), "chunks": 500}))
        await anext(items)
        for number in range(100):
            assert (await router.route(Request("echo", "quick", number))).payload == number
        assert log_lines(at) == ["begin slow 0"]
        assert len([item async for item in items]) == 500
        assert log_lines(at) == ["begin slow 0", "end slow 0"]


async def test_closing_a_stream_cancels_its_handler_and_frees_its_lane(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        items = router.stream(Request("flood", "ada", {"stage": str(at), "chunks": 1 << 30}))
        await anext(items)
        await items.aclose()
        await logged(at, "cancelled ada 0")
        assert (await router.route(Request("echo", "ada", 1))).payload == 1


async def test_cancelling_a_caller_cancels_its_handler(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        held = asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        waiting = asyncio.create_task(router.route(Request("step", "ada", {"stage": str(at), "n": 1})))
        await asyncio.sleep(0)
        waiting.cancel()
        held.cancel()
        await logged(at, "cancelled ada 0")
        await asyncio.gather(held, waiting, return_exceptions=True)
        await router.route(Request("echo", "ada"))
        assert log_lines(at) == ["begin ada 0", "cancelled ada 0"]


async def test_a_mapping_will_do_for_a_request(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        reply = await router.route({"type": "echo", "userId": "ada", "payload": 1, "id": "mine"})
        assert (reply.payload, reply.request_id) == (1, "mine")
        assert (await router.route({"type": "echo", "user_id": "ada", "payload": 2})).payload == 2
        items = [item async for item in router.stream({"type": "echo", "userId": "ada", "payload": 3})]
        assert isinstance(items[0], Reply)
        for wrong in (
            {},
            {"type": "echo"},
            {"type": "echo", "userId": 5},
            {"type": "echo", "userId": "a", "x": 1},
        ):
            with pytest.raises(InvalidRequest):
                await router.route(wrong)
