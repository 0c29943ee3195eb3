"""Cancellation: whenever it comes and whatever the handler does, there is exactly one final frame."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.worker.context import CancelledByCaller, Context
from moltbot.worker.handlers import Registry
from moltbot.worker.testing import HandlerTester
from tests.worker.peer import DEADLINE, Peer


async def finished(peer: Peer, id: int) -> tuple[str, Any]:
    """How the call ended; that no second final follows is proved by a whole round trip."""
    final = await peer.final(id)
    await peer.round_trip()
    assert len(peer.finals(id)) == 1
    return final.kind, final.frame.get("code") or final.frame["payload"]


async def test_a_coroutine_is_interrupted_where_it_waits(tmp_path: Path) -> None:
    registry = Registry()
    cleaned: list[str] = []

    async def wait(ctx: Context, payload: Any) -> None:
        try:
            ctx.emit("waiting")
            await asyncio.Event().wait()
        finally:
            cleaned.append(f"cancelled={ctx.cancelled}")

    registry.add("wait", wait)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("wait")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
    assert cleaned == ["cancelled=True"]


async def test_an_async_generator_is_closed_before_the_final_frame(tmp_path: Path) -> None:
    registry = Registry()
    order: list[str] = []

    async def stream(ctx: Context, payload: Any) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            order.append("closed")

    registry.add("stream", stream)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("stream")
        await peer.until(lambda: bool(peer.streamed(id)))
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
        assert order == ["closed"]


async def test_a_thread_sees_it_at_its_checkpoint(tmp_path: Path) -> None:
    registry = Registry()
    going_on = threading.Event()
    seen: list[bool] = []

    def look(ctx: Context, payload: Any) -> None:
        seen.append(ctx.cancelled)
        ctx.emit("waiting")
        assert going_on.wait(DEADLINE)
        seen.append(ctx.cancelled)
        ctx.checkpoint()
        seen.append(False)

    registry.add("look", look)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("look")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        await peer.round_trip()
        assert peer.finals(id) == []  # the thread still runs: its lane must stay held
        going_on.set()
        assert await finished(peer, id) == ("error", "cancelled")
    assert seen == [False, True]


async def test_a_generator_in_a_thread_is_closed_in_it_and_before_the_final_frame(tmp_path: Path) -> None:
    registry = Registry()
    closed_by: list[str] = []

    def stream(ctx: Context, payload: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed_by.append(threading.current_thread().name)

    registry.add("stream", stream)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("stream")
        await peer.until(lambda: len(peer.streamed(id)) > 3)
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
        assert [name.split("_")[0] for name in closed_by] == ["handler"]


async def test_a_coroutine_that_ignores_it_ends_with_its_own_reply(tmp_path: Path) -> None:
    registry = Registry()

    async def stubborn(ctx: Context, payload: Any) -> str:
        ctx.emit("waiting")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return "anyway"

    registry.add("stubborn", stubborn)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("stubborn")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        assert await finished(peer, id) == ("reply", "anyway")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_request_that_is_cancelled_before_it_starts_never_runs(
    tmp_path: Path, in_thread: bool
) -> None:
    registry = Registry()
    ran: list[str] = []

    async def coroutine(ctx: Context, payload: Any) -> None:
        ran.append("coroutine")

    registry.add("run", (lambda ctx, payload: ran.append("thread")) if in_thread else coroutine)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.caller.request("run", "ada", None, epoch=1, deadline_ms=1000, meta={})
        peer.cancel(id)  # in the same bytes as the request
        assert await finished(peer, id) == ("error", "cancelled")
    assert ran == []


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_request_that_is_cancelled_while_its_user_arrives_never_runs(
    tmp_path: Path, in_thread: bool
) -> None:
    registry = Registry()
    ran: list[str] = []
    welcome = asyncio.Event()
    registry.hooks["on_arrive"].append(lambda user: welcome.wait())

    async def coroutine(ctx: Context, payload: Any) -> None:
        ran.append("coroutine")

    registry.add("run", (lambda ctx, payload: ran.append("thread")) if in_thread else coroutine)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("run")
        await peer.round_trip()
        peer.cancel(id)
        await peer.round_trip()
        welcome.set()
        assert await finished(peer, id) == ("error", "cancelled")
    assert ran == []


async def test_a_cancel_after_the_end_is_harmless(tmp_path: Path) -> None:
    registry = Registry()
    registry.add("fine", lambda ctx, payload: "fine")
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("fine")
        assert (await peer.final(id)).frame["payload"] == "fine"
        peer.cancel(id)
        assert await finished(peer, id) == ("reply", "fine")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_handler_that_waits_for_its_reader_is_released(tmp_path: Path, in_thread: bool) -> None:
    registry = Registry()

    async def stream(ctx: Context, payload: Any) -> AsyncIterator[str]:
        while True:
            yield "x" * 50_000

    def generator(ctx: Context, payload: Any) -> Iterator[str]:
        while True:
            yield "x" * 50_000

    registry.add("stream", generator if in_thread else stream)
    async with Peer(registry, tmp_path, reading=False) as peer:
        peer.arrive()
        id = peer.request("stream")
        await peer.until(lambda: len(peer.streamed(id)) == 6)
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
        assert len(peer.streamed(id)) == 6


async def test_what_a_cancelled_handler_still_sends_is_dropped(tmp_path: Path) -> None:
    registry = Registry()

    async def talk(ctx: Context, payload: Any) -> None:
        ctx.emit("before")
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                ctx.emit("after", "x" * (1 << 20))

    registry.add("talk", talk)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("talk")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
        assert [frame["name"] for frame in peer.streamed(id, "event")] == ["before"]


async def test_checkpoint_raises_only_after_a_cancel(tmp_path: Path) -> None:
    registry = Registry()
    caught: list[str] = []

    async def check(ctx: Context, payload: Any) -> None:
        ctx.checkpoint()
        ctx.emit("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                ctx.checkpoint()
            except CancelledByCaller as error:
                caught.append(str(error))
                raise

    registry.add("check", check)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("check")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        assert await finished(peer, id) == ("error", "cancelled")
    assert caught == ["the caller gave up"]


async def test_a_tester_call_that_gives_up_cancels_its_handler(tmp_path: Path) -> None:
    registry = Registry()
    interrupted = asyncio.Event()
    started = asyncio.Event()

    async def wait(ctx: Context, payload: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    registry.add("wait", wait)
    async with HandlerTester(registry, tmp_path) as tester:
        call = asyncio.create_task(tester.call("wait"))
        await asyncio.wait_for(started.wait(), DEADLINE)
        call.cancel()
        await asyncio.wait_for(interrupted.wait(), DEADLINE)
        assert call.cancelled()
