"""Server-sent events on `/api/route`, and clients that read slowly or go away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moltbot.gateway.server import Gateway
from tests.support import BEHAVIOURS, call, gateway_in, log_lines, logged, post, request_bytes, stage

EVENTS = {"Accept": "text/event-stream"}


def parse(text: str) -> list[tuple[str, Any]]:
    """The events of a whole stream, `(name, data)`."""
    found = []
    for block in text.strip().split("\r\n\r\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\r\n"))
        assert fields.keys() == {"event", "data"}
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def body(kind: str, user: str, payload: Any) -> bytes:
    return json.dumps({"type": kind, "userId": user, "payload": payload}).encode()


async def test_a_stream_is_chunks_events_usage_and_at_last_the_reply(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        document = {
            "type": "story",
            "userId": "ada",
            "id": "my-id",
            "payload": {"chunks": ["a\n\nb", "ü", {"n": 1}]},
        }
        answer = await call(gateway, "POST", "/api/route", json=document, headers=EVENTS)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        *items, (name, reply) = parse(answer.text)
    assert items == [
        ("event", {"name": "begun", "data": {"user": "ada"}}),
        ("chunk", {"data": "a\n\nb"}),
        ("chunk", {"data": "ü"}),
        ("chunk", {"data": {"n": 1}}),
        ("usage", {"tokens": 2}),
    ]
    assert name == "reply"
    assert (reply["success"], reply["requestId"], reply["payload"]) == (True, "my-id", None)
    assert reply["usage"] == {"tokens": 2}


async def test_a_handler_that_returns_is_a_stream_of_one_reply(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        answer = await call(gateway, "POST", "/api/route", data=body("echo", "ada", 5), headers=JSON_EVENTS)
        [(name, reply)] = parse(answer.text)
        assert (name, reply["payload"]) == ("reply", 5)


JSON_EVENTS = EVENTS | {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (body("nothing", "ada", None), 400, "unknown_type"),
        (body("echo", "", None), 400, "invalid_request"),
        (b"hello", 400, "invalid_request"),
        (body("die", "ada", None), 502, "worker_died"),
    ],
)
async def test_an_error_before_the_first_item_is_a_plain_problem(
    tmp_path: Path, data: bytes, status: int, code: str
) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        (await call(gateway, "POST", "/api/route", data=data, headers=JSON_EVENTS)).problem(status, code)


async def test_an_error_after_the_first_item_is_the_last_event(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        data = body("story", "ada", {"chunks": ["a"], "fail": True})
        answer = await call(gateway, "POST", "/api/route", data=data, headers=JSON_EVENTS)
        assert answer.status == 200
        *items, (name, problem) = parse(answer.text)
    assert [item[0] for item in items] == ["event", "chunk", "usage"]
    assert name == "error"
    assert (problem["status"], problem["code"]) == (500, "handler_error")
    assert problem["detail"] == "handler 'story' raised ValueError: the story has a bad end"


async def test_a_slow_reader_of_a_stream_delays_nobody_and_loses_nothing(tmp_path: Path) -> None:
    at, chunks = stage(tmp_path / "stage"), 2500  # 25 MB: more than all buffers on the way
    async with gateway_in(tmp_path / "base") as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1 << 12)
        writer.write(
            request_bytes(
                body("flood", "slow", {"stage": str(at), "chunks": chunks}), "Accept: text/event-stream"
            )
        )
        await logged(at, "begin slow 0")
        for user in ("ada", "ben"):
            for number in range(20):
                assert (await post(gateway, "echo", user, number)).json["payload"] == number
        assert log_lines(at) == ["begin slow 0"], "the handler should wait for its reader"
        text = b""
        while b"event: reply" not in text[-2000:]:
            piece = await reader.read(1 << 20)
            assert piece
            text += piece
        writer.close()
        assert text.count(b"event: chunk") == chunks
        assert log_lines(at) == ["begin slow 0", "end slow 0"]


async def leave(gateway: Gateway, kind: str, payload: dict[str, Any], *, stream: bool) -> None:
    """Send a request, wait until it runs, and close the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    headers = ["Accept: text/event-stream"] if stream else []
    writer.write(request_bytes(body(kind, "ada", payload), *headers))
    await logged(Path(payload["stage"]), "begin ada 0")
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_its_request(tmp_path: Path, stream: bool) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway:
        await leave(gateway, "hold", {"stage": str(at)}, stream=stream)
        await logged(at, "cancelled ada 0")
        assert (await post(gateway, "echo", "ada", 1)).json["payload"] == 1


async def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_it(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway:
        await leave(gateway, "flood", {"stage": str(at), "chunks": 1 << 30}, stream=True)
        await logged(at, "cancelled ada 0")
        assert (await post(gateway, "echo", "ada", 1)).json["payload"] == 1


async def test_a_client_that_leaves_while_it_waits_takes_its_request_along(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway:
        running = asyncio.create_task(post(gateway, "hold", "ada", {"stage": str(at)}))
        await logged(at, "begin ada 0")
        waiting = asyncio.create_task(post(gateway, "step", "ada", {"stage": str(at), "n": 1}))
        while gateway.router.where("ada").waiting != 1:
            await asyncio.sleep(0.005)
        waiting.cancel()
        while gateway.router.where("ada").waiting != 0:
            await asyncio.sleep(0.005)
        (at / "go").touch()
        await running
        await post(gateway, "echo", "ada")
        assert log_lines(at) == ["begin ada 0", "end ada 0"]


async def test_many_requests_share_one_connection(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", handler=BEHAVIOURS) as gateway:
        headers = {"Authorization": f"Bearer {gateway.token}"}
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(gateway.url, headers=headers, connector=connector) as session:
            for number in range(20):
                document = {"type": "echo" if number % 2 else "nothing", "userId": "ada", "payload": number}
                async with session.post("/api/route", json=document) as response:
                    assert response.status == (200 if number % 2 else 400)
