"""What an `Idempotency-Key` gives a second time: streams as they were, or why not, and never a secret.

What is done once at all is in `test_idempotency.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from moltbot import InvalidRequest
from moltbot.gateway import app
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.outcomes import MAX_OUTCOME_BYTES
from moltbot.gateway.server import Gateway
from moltbot.gateway.visit import Visit
from tests.gateway.edge_support import EVENTS, ask, route_as, spelled
from tests.support import TOKEN, Answer, gateway_in, log_lines, logged, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("replaying") / "stage")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def staged(place: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(place.parent / "base") as running:
        yield running


def is_replay(answer: Answer) -> bool:
    return answer.headers.get(REPLAYED) == "true"


async def test_a_stream_is_replayed_as_it_was(staged: Gateway) -> None:
    payload = {"chunks": ["a\n\nb", "ü", {"n": 1}]}
    for fail in (False, True):
        key = {KEY: f"stream {fail}"}
        first, second = [
            await route_as(staged, TOKEN, "story", "ada", payload | {"fail": fail}, headers=EVENTS | key)
            for _ in range(2)
        ]
        assert (first.status, first.headers["Content-Type"]) == (200, "text/event-stream")
        assert (second.status, second.headers["Content-Type"]) == (200, "text/event-stream")
        assert first.text == second.text
        assert ("event: error" in first.text) == fail
        assert is_replay(second)


async def test_a_stream_beyond_the_bound_is_done_but_not_kept(staged: Gateway) -> None:
    payload = {"chunks": ["x" * (MAX_OUTCOME_BYTES // 2)] * 3}
    for headers in (EVENTS, {}):
        key = {KEY: f"large {len(headers)}"}
        first = await route_as(staged, TOKEN, "story", "ada", payload, headers=headers | key)
        assert first.status == 200
        assert len(first.text) > MAX_OUTCOME_BYTES
        second = await route_as(staged, TOKEN, "story", "ada", payload, headers=headers | key)
        assert "answered with 200" in second.problem(409, "outcome_not_kept")


async def test_a_stream_ends_with_its_reader_and_its_key_says_so(staged: Gateway, place: Path) -> None:
    payload = {"stage": str(place), "n": 5}
    headers = EVENTS | {KEY: "reader", "Authorization": f"Bearer {TOKEN}"}
    body = {"type": "tell", "userId": "ria", "payload": payload}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{staged.url}/api/route", json=body, headers=headers) as response,
    ):
        await response.content.readuntil(b"\r\n\r\n")
    await logged(place, "cancelled ria 5")
    answer = await settled(staged, body, "reader")
    assert "may have run" in answer.problem(499, "cancelled")
    assert log_lines(place).count("begin ria 5") == 1


async def settled(gateway: Gateway, body: dict[str, Any], key: str) -> Answer:
    """Send it again, as the answer asks, until it is no longer under way."""
    while True:
        answer = await ask(gateway, "POST", "/api/route", TOKEN, json=body, headers=EVENTS | {KEY: key})
        if answer.status != 409 or answer.json["code"] != "idempotency_unfinished":
            return answer


async def test_a_secret_is_not_kept_for_the_second_answer(staged: Gateway) -> None:
    for path, secret in (("/api/tokens", "token"), ("/api/links", "path")):
        first, second = [
            await ask(staged, "POST", path, TOKEN, json={"userId": "ada"}, headers={KEY: f"secret {path}"})
            for _ in range(2)
        ]
        assert second.status == first.status == 201
        assert is_replay(second)
        assert second.json == first.json | {secret: None}
        assert first.json[secret] is not None
    file = staged.router.config.sandbox_base_dir / "moltbot.db"
    kept = b"".join(path.read_bytes() for path in file.parent.glob("moltbot.db*"))
    assert first.json["path"].rpartition("_")[2].encode() not in kept
    assert json.dumps(first.json["id"]).encode() in kept  # the answer itself is there


async def test_a_reader_that_takes_nothing_is_let_go_and_its_answer_is_not_mended(tmp_path: Path) -> None:
    """What has begun as a stream is cut off; no second answer is written into the middle of it."""
    place = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base", edge={"send_timeout": 100}) as gateway:
        body = {"type": "flood", "userId": "ada", "payload": {"stage": str(place), "chunks": 100_000}}
        for times, key in enumerate(((), (f"{KEY}: slow",)), start=1):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
            writer.write(
                spelled("POST /api/route", json.dumps(body).encode(), "Accept: text/event-stream", *key)
            )
            while log_lines(place).count("cancelled ada 0") < times:
                await asyncio.sleep(0.01)
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    received = received[-100:] + data
                    assert b"HTTP/1.1 5" not in received
                    assert b"problem+json" not in received
            writer.close()
        answer = await settled(gateway, body, "slow")
        answer.problem(499, "cancelled")


@pytest.mark.parametrize(
    "error", [ValueError("a mistake"), InvalidRequest("no"), ConnectionError(), TimeoutError()]
)
async def test_what_fails_after_its_head_was_sent_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"the beginning")
        raise error

    route = Route("POST", "/broken", broken, Scope.ROUTE, "users")
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, route))
    async with gateway_in(tmp_path / "base") as gateway:
        for key in ((), (f"{KEY}: broken",)):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(spelled("POST /api/broken", b"{}", "Accept: */*", *key))
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    received += data
            writer.close()
            assert received.count(b"HTTP/1.1") <= 1
            assert b"problem+json" not in received
        headers = {KEY: "broken", "Content-Type": "application/json"}
        answer = await ask(gateway, "POST", "/api/broken", TOKEN, data=b"{}", headers=headers)
        answer.problem(499, "cancelled")


def record(*pieces: int) -> list[bytes] | None:
    visit = Visit(Mock(), "id", recorded=[])
    for size in pieces:
        visit.record(b"x" * size)
    return visit.recorded


async def test_what_is_recorded_of_a_stream_is_bounded_while_it_runs() -> None:
    assert record(MAX_OUTCOME_BYTES // 2, MAX_OUTCOME_BYTES // 2) is not None
    assert record(MAX_OUTCOME_BYTES, 1, 1) is None
