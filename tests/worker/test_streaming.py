"""Slow readers: who streams waits, who cannot wait is told, and nobody else notices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from moltbot.worker.testing import HandlerTester
from tests.worker.peer import Peer

PIECE = "x" * 50_000
WINDOW_OF_PIECES = 6  # 256 KiB, and below zero by one frame


async def stream(ctx: Context, payload: Any) -> AsyncIterator[str]:
    for _ in range(payload):
        yield PIECE


def generator(ctx: Context, payload: Any) -> Iterator[str]:
    for _ in range(payload):
        yield PIECE


def emitter(ctx: Context, payload: Any) -> str:
    for _ in range(payload):
        ctx.emit("piece", PIECE)
    return "end"


def registry_of(function: Any) -> Registry:
    registry = Registry()
    registry.add("much", function)
    registry.add("fine", lambda ctx, payload: "fine")
    return registry


def pieces(peer: Peer, id: int) -> int:
    return len(peer.streamed(id)) + len(peer.streamed(id, "event"))


@pytest.mark.parametrize("function", [stream, generator, emitter])
async def test_a_handler_waits_for_a_slow_reader_and_others_go_on(tmp_path: Path, function: Any) -> None:
    async with Peer(registry_of(function), tmp_path, reading=False) as peer:
        peer.arrive()
        slow = peer.request("much", 40)
        await peer.until(lambda: pieces(peer, slow) == WINDOW_OF_PIECES)
        for _ in range(3):
            assert (await peer.final(peer.request("fine"))).frame["payload"] == "fine"
        assert pieces(peer, slow) == WINDOW_OF_PIECES
        peer.reading = True
        peer.read(slow)
        assert (await peer.final(slow)).kind == "reply"
        assert pieces(peer, slow) == 40


@pytest.mark.parametrize("function", [stream, generator, emitter])
async def test_megabytes_are_streamed_whole(tmp_path: Path, function: Any) -> None:
    async with HandlerTester(registry_of(function), tmp_path) as tester:
        answer = await tester.call("much", 200)
    assert answer.chunks == [PIECE] * 200 or answer.events == [("piece", PIECE)] * 200


async def test_a_coroutine_that_emits_without_waiting_is_stopped_a_mebibyte_ahead(tmp_path: Path) -> None:
    sent: list[int] = []

    async def flood(ctx: Context, payload: Any) -> None:
        while True:
            ctx.emit("piece", PIECE)
            sent.append(len(PIECE))

    async with Peer(registry_of(flood), tmp_path) as peer:
        peer.arrive()
        final = await peer.final(peer.request("much"))
        assert final.frame["code"] == "handler_error"
        assert "BufferError: this request is 1 MiB ahead of its reader" in final.frame["message"]
        assert (await peer.final(peer.request("fine"))).kind == "reply"
    assert (1 << 20) < sum(sent) < (1 << 20) + (256 << 10) + 3 * len(PIECE)


async def test_a_coroutine_may_catch_that_and_still_reply_behind_what_it_sent(tmp_path: Path) -> None:
    async def flood(ctx: Context, payload: Any) -> int:
        count = 0
        try:
            while True:
                ctx.emit("piece", PIECE)
                count += 1
        except BufferError:
            return count

    async with Peer(registry_of(flood), tmp_path, reading=False) as peer:
        peer.arrive()
        id = peer.request("much")
        await peer.until(lambda: pieces(peer, id) == WINDOW_OF_PIECES)
        assert peer.finals(id) == []
        peer.reading = True
        peer.read(id)
        assert (await peer.final(id)).frame["payload"] == pieces(peer, id) > 20


async def test_many_small_events_in_a_row_reach_the_same_bound(tmp_path: Path) -> None:
    async def flood(ctx: Context, payload: Any) -> int:
        count = 0
        try:
            while True:
                ctx.emit("n", count)
                count += 1
        except BufferError:
            return count

    async with HandlerTester(registry_of(flood), tmp_path) as tester:
        answer = await tester.call("much")
    assert [data for _, data in answer.events] == list(range(answer.payload))
    assert answer.payload > 30_000


async def test_many_streams_at_once_do_not_mix(tmp_path: Path) -> None:
    async def count(ctx: Context, payload: Any) -> AsyncIterator[list[int]]:
        for number in range(300):
            yield [payload, number]

    async with Peer(registry_of(count), tmp_path) as peer:
        peer.arrive()
        ids = [peer.request("much", number) for number in range(10)]
        for number, id in enumerate(ids):
            await peer.final(id)
            assert [frame["data"] for frame in peer.streamed(id)] == [[number, each] for each in range(300)]
