"""The kinds of handlers, and what their Context shows."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.user_key import user_key
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from moltbot.worker.testing import HandlerTester
from tests.worker.conftest import WriteHandler
from tests.worker.peer import Peer

KINDS = """
    import asyncio, threading

    @handler("coroutine")
    async def coroutine(ctx, payload):
        await asyncio.sleep(0)
        return {"got": payload, "thread": threading.get_ident()}

    @handler("stream")
    async def stream(ctx, payload):
        for word in payload:
            await asyncio.sleep(0)
            yield word

    @handler("plain")
    def plain(ctx, payload):
        return {"got": payload, "thread": threading.get_ident()}

    @handler("generator")
    def generator(ctx, payload):
        for word in payload:
            yield word

    @handler("iterator")
    def iterator(ctx, payload):
        return map(str.upper, payload)

    class Callable:
        async def __call__(self, ctx, payload):
            return threading.get_ident()

    handler("object")(Callable())
"""


@pytest.mark.parametrize(
    "payload", [None, True, 5, -1.5, "text \U0001f600", b"\x00\xff", [1, [2]], {"a": {"b": 1}}]
)
async def test_a_coroutine_runs_on_the_loop_and_returns(
    write: WriteHandler, tmp_path: Path, payload: Any
) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        answer = await tester.call("coroutine", payload)
    assert answer.payload == {"got": payload, "thread": threading.get_ident()}
    assert answer.chunks == answer.events == []


async def test_a_plain_function_runs_in_a_thread_and_returns(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        answer = await tester.call("plain", [1])
    assert answer.payload["got"] == [1]
    assert answer.payload["thread"] != threading.get_ident()


@pytest.mark.parametrize("kind", ["stream", "generator"])
async def test_the_items_of_a_generator_are_streamed_in_order(
    write: WriteHandler, tmp_path: Path, kind: str
) -> None:
    words = [f"{number} " for number in range(500)]
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        answer = await tester.call(kind, words)
        assert answer.chunks == words
        assert answer.payload == "".join(words)
        mixed = await tester.call(kind, ["a", 1, None])
        assert mixed.payload == ["a", 1, None]
        nothing = await tester.call(kind, [])
        assert (nothing.chunks, nothing.payload) == ([], None)


async def test_any_iterator_that_a_plain_function_returns_is_streamed(
    write: WriteHandler, tmp_path: Path
) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        assert (await tester.call("iterator", ["a", "b"])).chunks == ["A", "B"]


async def test_an_object_with_an_async_call_runs_on_the_loop(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        assert (await tester.call("object")).payload == threading.get_ident()


async def test_a_partial_of_a_coroutine_function_runs_on_the_loop(tmp_path: Path) -> None:
    async def greet(greeting: str, ctx: Context, payload: Any) -> list[Any]:
        return [greeting, payload, threading.get_ident()]

    registry = Registry()
    registry.add("greet", functools.partial(greet, "hello"))
    async with HandlerTester(registry, tmp_path) as tester:
        assert (await tester.call("greet", "ada")).payload == ["hello", "ada", threading.get_ident()]


async def test_concurrent_requests_run_side_by_side(tmp_path: Path) -> None:
    registry = Registry()
    met = asyncio.Barrier(3)
    meeting = threading.Barrier(3, timeout=30)

    async def meet(ctx: Context, payload: Any) -> str:
        await met.wait()
        return ctx.user_id

    registry.add("meet", meet)
    registry.add("thread", lambda ctx, payload: (meeting.wait(), ctx.user_id)[1])
    async with HandlerTester(registry, tmp_path) as tester:
        for kind in ("meet", "thread"):
            answers = await asyncio.gather(*(tester.call(kind, user_id=user) for user in ("a", "b", "b")))
            assert [answer.payload for answer in answers] == ["a", "b", "b"]


async def test_an_unknown_type_is_told_with_the_known_ones(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        with pytest.raises(
            Exception, match="no handler answers type 'nope': there is coroutine, generator, health"
        ):
            await tester.call("nope")
        assert (await tester.call("health")).payload["ok"] is True


async def test_the_context_shows_the_request(tmp_path: Path) -> None:
    registry = Registry()
    seen: list[Context] = []

    async def look(ctx: Context, payload: Any) -> None:
        ctx.checkpoint()
        assert not ctx.cancelled
        seen.append(ctx)

    registry.add("look", look)
    before = time.monotonic()
    async with Peer(registry, tmp_path) as peer:
        peer.arrive("Ada/1", epoch=4)
        named = peer.request("look", user="Ada/1", epoch=4, request_id="r-7", trace="t")
        await peer.final(named)
        nameless = peer.request("look", user="Ada/1", epoch=4)
        await peer.final(nameless)
    ctx = seen[0]
    assert (ctx.user_id, ctx.epoch, ctx.worker_id, ctx.request_id) == ("Ada/1", 4, "worker-0", "r-7")
    assert dict(ctx.meta) == {"trace": "t"}
    assert before + 60 <= ctx.deadline <= time.monotonic() + 60
    assert seen[1].request_id == str(nameless)


@pytest.mark.parametrize("user", ["ada", "Ada", "../..", "a/b", "\0", "\u00e9"])
async def test_each_directory_is_the_users_own_and_private(tmp_path: Path, user: str) -> None:
    registry = Registry()
    seen: dict[str, Path] = {}

    async def look(ctx: Context, payload: Any) -> None:
        seen.update(sessions=ctx.session_dir, state=ctx.state_dir, cache=ctx.cache_dir, temp=ctx.temp_dir)

    registry.add("look", look)
    async with HandlerTester(registry, tmp_path) as tester:
        await tester.call("look", user_id=user)
    for name, path in seen.items():
        assert path == tmp_path / name / user_key(user)
        assert path.is_dir()
        assert path.stat().st_mode & 0o777 == 0o700


async def test_a_request_that_uses_no_directory_makes_none(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(KINDS), tmp_path) as tester:
        await tester.call("coroutine")
    assert os.listdir(tmp_path) == ["code"]


async def test_the_log_carries_the_requests_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    registry.add("talk", lambda ctx, payload: ctx.log.info("hello %s", payload))
    with caplog.at_level(logging.INFO):
        async with Peer(registry, tmp_path) as peer:
            peer.arrive()
            await peer.final(peer.request("talk", "ada", request_id="r-9"))
    (record,) = [record for record in caplog.records if record.name == "handler"]
    assert (record.getMessage(), getattr(record, "request", None)) == ("hello ada", "r-9")


def emitting(ctx: Context) -> None:
    ctx.emit("progress", {"percent": 50})
    ctx.emit("bare")
    ctx.report_usage(input_tokens=3, cost=0.5)
    ctx.report_usage(input_tokens=4)
    assert ctx.usage == {"input_tokens": 4, "cost": 0.5}


async def on_loop(ctx: Context, payload: Any) -> str:
    emitting(ctx)
    return "end"


def in_thread(ctx: Context, payload: Any) -> str:
    emitting(ctx)
    return "end"


@pytest.mark.parametrize("function", [on_loop, in_thread])
async def test_events_and_usage_reach_the_caller(tmp_path: Path, function: Any) -> None:
    registry = Registry()
    registry.add("emit", function)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("emit")
        final = await peer.final(id)
        events = [(frame["name"], frame["data"]) for frame in peer.streamed(id, "event")]
        amounts = [frame["amounts"] for frame in peer.streamed(id, "usage")]
    assert events == [("progress", {"percent": 50}), ("bare", None)]
    assert amounts == [{"input_tokens": 3, "cost": 0.5}, {"input_tokens": 4}]
    assert (final.frame["payload"], final.frame["usage"]) == ("end", {"input_tokens": 4, "cost": 0.5})


async def mixed_async(ctx: Context, payload: Any) -> AsyncIterator[int]:
    for number in range(20):
        ctx.emit("at", number)
        yield number


def mixed_plain(ctx: Context, payload: Any) -> Iterator[int]:
    for number in range(20):
        ctx.emit("at", number)
        yield number


@pytest.mark.parametrize("function", [mixed_async, mixed_plain])
async def test_events_keep_their_place_between_the_chunks(tmp_path: Path, function: Any) -> None:
    registry = Registry()
    registry.add("mixed", function)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        await peer.final(peer.request("mixed"))
        order = [
            (frame["kind"], frame["data"])
            for frame in (event.frame for event in peer.events)
            if "data" in frame
        ]
    assert order == [(kind, number) for number in range(20) for kind in ("event", "chunk")]


@pytest.mark.parametrize("amount", ["5", True, None, [1]])
async def test_usage_that_is_no_number_is_refused_and_not_kept(tmp_path: Path, amount: Any) -> None:
    registry = Registry()

    async def report(ctx: Context, payload: Any) -> str:
        with pytest.raises(TypeError, match="usage 'tokens' must be a number"):
            ctx.report_usage(tokens=amount)
        with pytest.raises(OverflowError):
            ctx.report_usage(tokens=1 << 64)
        with pytest.raises(TypeError, match="an event's name must be a string"):
            ctx.emit(5)  # type: ignore[arg-type]
        return "fine"

    registry.add("report", report)
    async with HandlerTester(registry, tmp_path) as tester:
        answer = await tester.call("report")
    assert (answer.payload, answer.usage) == ("fine", {})
