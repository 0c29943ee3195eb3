"""The typed client against a real gateway: documents, streams, and errors with their code and sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moltbot import InvalidRequest, Request, Unavailable
from moltbot.client.http import GatewayClient, GatewayError
from tests.support import TOKEN, gateway_in, logged, stage


async def test_requests_streams_and_questions(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url + "/", TOKEN) as client:
        request = Request("story", "a/b?&", {}, id="mine", timeout=5000, idempotent=True, meta={"k": 1})
        reply = await client.route(request)
        assert (reply["payload"], reply["requestId"], reply["userId"]) == ("one two", "mine", "a/b?&")
        items = [item async for item in client.stream(request)]
        assert [name for name, _ in items] == ["event", "chunk", "chunk", "usage", "reply"]
        assert "".join(data["data"] for name, data in items if name == "chunk") == "one two"
        assert (await client.where("a/b?&"))["workerId"] == "worker-0"
        assert (await client.workers())["workerCount"] == 1
        assert (await client.health())["status"] == "healthy"


async def test_all_that_a_request_carries_arrives(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url, TOKEN) as client:
        reply = await client.route(Request("whoami", "ada", meta={"trace": "x"}))
        assert reply["payload"]["meta"] == {"trace": "x"}
        assert (await client.route(Request("echo", "ada", None)))["payload"] is None


async def test_an_error_has_its_status_code_and_sentence(tmp_path: Path) -> None:
    async with (
        gateway_in(tmp_path / "base", max_restart_attempts=0) as gateway,
        GatewayClient(gateway.url, TOKEN) as client,
    ):
        with pytest.raises(GatewayError, match="no handler answers") as caught:
            await client.route(Request("nothing", "ada"))
        assert (caught.value.status, caught.value.code, caught.value.retryable) == (
            400,
            "unknown_type",
            False,
        )
        with pytest.raises(GatewayError) as caught:
            await client.route(Request("die", "ada"))
        assert (caught.value.code, caught.value.worker, caught.value.reason) == (
            "worker_died",
            "worker-0",
            "crashed",
        )
        while gateway.router.where("ada").worker_state != "quarantined":
            await asyncio.sleep(0.005)
        with pytest.raises(GatewayError) as caught:
            await client.route(Request("echo", "ada"))
        assert caught.value.retryable
        assert caught.value.retry_after is not None
        assert (await client.health())["status"] == "unhealthy"


async def test_an_error_in_a_stream_is_raised_after_what_came(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url, TOKEN) as client:
        seen = []
        with pytest.raises(GatewayError, match="the story has a bad end") as caught:
            async for name, _ in client.stream(Request("story", "ada", {"fail": True})):
                seen.append(name)
        assert seen == ["event", "chunk", "chunk", "usage"]
        assert (caught.value.status, caught.value.code) == (500, "handler_error")
        with pytest.raises(GatewayError) as caught:
            async for _ in client.stream(Request("nothing", "ada")):
                raise AssertionError("nothing should come")
        assert caught.value.code == "unknown_type"


async def test_chunks_of_any_size_and_content_come_whole(tmp_path: Path) -> None:
    chunks = ["", "\n", "\r\n\r\n", "data: x", "x" * 300_000, "\u2028", "ü" * 100_000, {"a": [1, None]}]
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url, TOKEN) as client:
        request = Request("story", "ada", {"chunks": chunks})
        assert [d["data"] async for name, d in client.stream(request) if name == "chunk"] == chunks


async def test_leaving_a_stream_cancels_the_handler(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url, TOKEN) as client:
        items = client.stream(Request("flood", "ada", {"stage": str(at), "chunks": 1 << 30}))
        await anext(items)
        await items.aclose()
        await logged(at, "cancelled ada 0")


async def test_where_nobody_answers_it_says_so(tmp_path: Path) -> None:
    async with GatewayClient("http://127.0.0.1:1", TOKEN) as client:
        for work in (
            client.workers(),
            client.health(),
            client.where("ada"),
            client.route(Request("echo", "ada")),
        ):
            with pytest.raises(Unavailable, match="no gateway answers at http://127.0.0.1:1"):
                await work
        with pytest.raises(Unavailable):
            await anext(client.stream(Request("echo", "ada")))


async def test_a_wrong_token_or_address_is_told(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway, GatewayClient(gateway.url, "wrong") as client:
        with pytest.raises(GatewayError, match="credential") as caught:
            await client.workers()
        assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    async with GatewayClient("nonsense", TOKEN) as client:
        with pytest.raises(InvalidRequest, match="nonsense is not the address"):
            await client.workers()


async def test_outside_its_with_block_it_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await GatewayClient("http://127.0.0.1:1", TOKEN).workers()
