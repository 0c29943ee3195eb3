"""Paths, methods and the shapes of the answers."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from pathlib import Path

import pytest

from moltbot.gateway.server import Gateway
from tests.fakes import eventually, pid_inside
from tests.support import LEVELS, call, gateway_in, logged, post, raw, request_bytes, stage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

WORKER = {
    "workerId",
    "state",
    "pid",
    "incarnation",
    "startTime",
    "uptime",
    "requests",
    "inFlight",
    "queued",
    "errors",
    "restartCount",
    "connected",
    "memory",
    "cpu",
    "users",
    "lastHeartbeat",
    "lastExit",
}


async def test_the_reply_of_a_request(gateway: Gateway) -> None:
    reply = (await post(gateway, "story", "ada", {}, id="my-id")).json
    duration = reply.pop("durationMs")
    assert isinstance(duration, float)
    assert reply == {
        "success": True,
        "requestId": "my-id",
        "userId": "ada",
        "workerId": "worker-0",
        "epoch": 1,
        "payload": "one two",
        "usage": {"tokens": 2},
    }


async def test_a_request_without_an_id_gets_one_of_its_own(gateway: Gateway) -> None:
    ids = [(await post(gateway, "echo", "ada")).json["requestId"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(ids)


async def test_the_workers(gateway: Gateway) -> None:
    await post(gateway, "echo", "ada")
    document = (await call(gateway, "GET", "/api/workers")).json
    assert document["healthy"] is True
    assert document["workerCount"] == document["totalWorkers"] == document["healthyWorkers"] == 1
    assert document["busyWorkers"] == document["queuedRequests"] == document["runningRequests"] == 0
    assert document["routingTableSize"] == document["workers"][0]["users"] >= 1
    assert document["isolation"] == document["workers"][0]["isolation"] in LEVELS
    [worker] = document["workers"]
    assert worker.keys() >= WORKER
    assert pid_inside(worker["pid"]) == (await post(gateway, "whoami", "ada")).json["payload"]["pid"]
    assert (worker["state"], worker["connected"], worker["lastExit"]) == ("ready", True, None)
    assert datetime.fromisoformat(worker["startTime"]).utcoffset() is not None


async def test_one_worker(gateway: Gateway) -> None:
    one = (await call(gateway, "GET", "/api/workers/worker-0")).json
    assert one.keys() >= WORKER
    assert one["workerId"] == "worker-0"


@pytest.mark.parametrize(
    "name", ["worker-1", "worker-00", "worker--1", "ada", "..%2fworker-0", "%00", "worker-0%0a"]
)
async def test_an_unknown_worker_is_not_found(gateway: Gateway, name: str) -> None:
    answer = await raw(gateway, request_bytes(b"", target=f"GET /api/workers/{name}"))
    answer.problem(404, "not_found")


async def test_where_a_user_lives(gateway: Gateway) -> None:
    await post(gateway, "echo", "ada")
    receipt = (await call(gateway, "GET", "/api/users?userId=ada")).json
    assert datetime.fromisoformat(receipt.pop("since")).utcoffset() is not None
    root = gateway.router.config.sandbox_base_dir / "worker-0"
    assert receipt == {
        "userId": "ada",
        "workerId": "worker-0",
        "epoch": 1,
        "why": "the ring's first choice",
        "workerState": "ready",
        "loaded": True,
        "running": 0,
        "waiting": 0,
        "overdue": 0,
        "directories": {part: str(root / part / "ada") for part in ("sessions", "state", "cache")},
    }


@pytest.mark.parametrize("path", ["/workers", "/workers/worker-0", "/users?userId=a%20bystander"])
async def test_every_path_has_its_versioned_twin(gateway: Gateway, path: str) -> None:
    plain = await call(gateway, "GET", f"/api{path}")
    versioned = await call(gateway, "GET", f"/api/v1{path}")
    assert plain.status == versioned.status == 200
    assert plain.json.keys() == versioned.json.keys()


async def test_a_request_may_go_to_the_versioned_path(gateway: Gateway) -> None:
    body = {"type": "echo", "userId": "ada", "payload": 5}
    assert (await call(gateway, "POST", "/api/v1/route", json=body)).json["payload"] == 5


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/api",
        "/api/",
        "/api/route/",
        "/api/v2/workers",
        "//api/workers",
        "/api/workers/worker-0/x",
        "/%",
    ],
)
async def test_an_unknown_path_is_not_found(gateway: Gateway, target: str) -> None:
    answer = await raw(gateway, request_bytes(b"", target=f"GET {target}"))
    assert answer.status in (400, 404)
    if answer.status == 404:
        assert "path" in answer.problem(404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/api/route", "POST"), ("DELETE", "/api/workers", "GET,HEAD"), ("PUT", "/health", "GET,HEAD")],
)
async def test_a_wrong_method_is_told_the_right_one(
    gateway: Gateway, method: str, path: str, allowed: str
) -> None:
    answer = await call(gateway, method, path)
    assert method in answer.problem(405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("method", ["TRACE", "PATCH", "FOO", "get"])
async def test_odd_methods_are_refused(gateway: Gateway, method: str) -> None:
    answer = await raw(gateway, request_bytes(b"", target=f"{method} /api/route"))
    assert answer.status in (400, 405)


async def test_health_with_a_credential_tells_all(gateway: Gateway) -> None:
    await post(gateway, "echo", "ada")
    document = (await call(gateway, "GET", "/health")).json
    assert (document["status"], document["workerMode"]) == ("healthy", "managed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["timestamp"])
    queue = document["queue"]
    assert queue["size"] == queue["pending"] + queue["running"] == 0
    assert queue["completed"] >= 1
    assert queue["failed"] >= 0
    assert (document["workers"]["count"], document["workers"]["healthy"]) == (1, True)


@pytest.mark.parametrize(
    ("path", "word"), [("/health", "healthy"), ("/livez", "alive"), ("/readyz", "ready")]
)
async def test_without_a_credential_health_is_one_word(gateway: Gateway, path: str, word: str) -> None:
    answer = await raw(gateway, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (answer.status, answer.json) == (200, {"status": word})


async def test_answers_are_neither_kept_nor_guessed_at(gateway: Gateway) -> None:
    for answer in (await call(gateway, "GET", "/api/workers"), await post(gateway, "nothing", "ada")):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_while_it_stops_the_gateway_says_so_and_lets_what_runs_end(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway:
        running = asyncio.create_task(post(gateway, "hold", "ada", {"stage": str(at)}))
        await logged(at, "begin ada 0")
        waiting = asyncio.create_task(post(gateway, "echo", "ada"))
        await eventually(lambda: gateway.router.where("ada").waiting == 1)
        stopping = asyncio.create_task(gateway.stop())
        (await waiting).problem(503, "not_running")
        (await post(gateway, "echo", "ben")).problem(503, "not_running")
        ready = await call(gateway, "GET", "/readyz")
        assert (ready.status, ready.json) == (503, {"status": "draining"})
        assert (await call(gateway, "GET", "/livez")).status == 200
        (at / "go").touch()
        assert (await running).status == 200
        await stopping


async def test_without_a_ready_worker_the_gateway_is_not_ready(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", worker_count=2, max_restart_attempts=0) as gateway:
        assert (await post(gateway, "die", "user-a")).status == 502
        await eventually(lambda: gateway.router.where("user-a").worker_state == "quarantined")
        assert (await call(gateway, "GET", "/readyz")).status == 200
        health = await call(gateway, "GET", "/health")
        assert (health.status, health.json["status"]) == (200, "degraded")
        assert (await call(gateway, "GET", "/api/workers")).json["healthy"] is False
        assert (await post(gateway, "die", "user-b")).status == 502
        await eventually(lambda: gateway.router.where("user-b").worker_state == "quarantined")
        assert (await call(gateway, "GET", "/readyz")).json == {"status": "not ready"}
        health = await call(gateway, "GET", "/health")
        assert (health.status, health.json["status"]) == (503, "unhealthy")
