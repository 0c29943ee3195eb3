"""Handlers that fail in every way: one clear final frame each, and the worker goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import InvalidRequest
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from tests.worker.peer import Peer


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Dictionary(dict[str, int]):
    def items(self) -> Any:
        raise LookupError("not today")


ERRORS: dict[str, tuple[BaseException, str]] = {
    "an exception": (ValueError("bad text"), "handler 'fail' raised ValueError: bad text"),
    "sys.exit": (SystemExit(3), "handler 'fail' raised SystemExit: 3"),
    "an interrupt": (KeyboardInterrupt(), "handler 'fail' raised KeyboardInterrupt: "),
    "no text": (Unshowable(), "handler 'fail' raised Unshowable: (its message cannot be shown)"),
    "half a character": (ValueError("a\ud800b"), "handler 'fail' raised ValueError: a?b"),
    "a long text": (ValueError("x" * 5000), "handler 'fail' raised ValueError: " + "x" * 5000),
    "its own cancellation": (asyncio.CancelledError(), "the handler raised CancelledError by itself"),
    "a timeout": (TimeoutError(), "handler 'fail' raised TimeoutError: "),
}


def registry_of(error: BaseException) -> Registry:
    async def coroutine(ctx: Context, payload: Any) -> None:
        raise error

    async def stream(ctx: Context, payload: Any) -> AsyncIterator[int]:
        yield 1
        raise error

    def plain(ctx: Context, payload: Any) -> None:
        raise error

    def generator(ctx: Context, payload: Any) -> Iterator[int]:
        yield 1
        raise error

    registry = Registry()
    for function in (coroutine, stream, plain, generator):
        registry.add(function.__name__, function)
    registry.add("fine", lambda ctx, payload: "fine")
    return registry


async def outcome(peer: Peer, kind: str) -> tuple[str, str]:
    """The error of one call, and the proof that the worker lives on."""
    final = await peer.final(peer.request(kind))
    assert final.kind == "error"
    after = await peer.final(peer.request("fine"))
    assert after.frame["payload"] == "fine"
    return final.frame["code"], final.frame["message"]


@pytest.mark.parametrize("kind", ["coroutine", "stream", "plain", "generator"])
@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS.keys())
async def test_whatever_is_raised_becomes_one_error_frame(
    tmp_path: Path, kind: str, error: BaseException, message: str
) -> None:
    async with Peer(registry_of(error), tmp_path) as peer:
        peer.arrive()
        code, told = await outcome(peer, kind)
    assert (code, told) == ("handler_error", message.replace("'fail'", repr(kind))[: len(told)])
    assert len(told) < 2100


@pytest.mark.parametrize("kind", ["coroutine", "stream", "plain", "generator"])
async def test_a_stray_stop_iteration_is_an_error_like_any_other(tmp_path: Path, kind: str) -> None:
    async with Peer(registry_of(StopIteration()), tmp_path) as peer:
        peer.arrive()
        code, told = await outcome(peer, kind)
    assert code == "handler_error"
    assert "StopIteration" in told


TEXTS: list[tuple[Any, str]] = [
    ("send a message", "send a message"),
    ("half \ud800", "half ?"),
    ({"not": "text"}, "{'not': 'text'}"),
    (Unshowable(), "(its message cannot be shown)"),
    ("x" * (17 << 20), "x" * 2000),
]


@pytest.mark.parametrize("kind", ["coroutine", "plain"])
@pytest.mark.parametrize(("text", "told"), TEXTS, ids=range(len(TEXTS)))
async def test_a_refused_request_has_its_sentence_whatever_it_is(
    tmp_path: Path, kind: str, text: Any, told: str
) -> None:
    async with Peer(registry_of(InvalidRequest(text)), tmp_path) as peer:
        peer.arrive()
        assert await outcome(peer, kind) == ("invalid_request", told)


UNSENDABLE: dict[str, Any] = {
    "an object": object(),
    "a set": {1, 2},
    "a map with a tuple as key": {(1, 2): 3},
    "a huge int": 1 << 64,
    "half a character": "\ud800",
    "a function": len,
    "nested": {"a": [{"b": object()}]},
    "a map that raises": Dictionary(a=1),
}


def registry_returning(value: Any) -> Registry:
    async def coroutine(ctx: Context, payload: Any) -> Any:
        return value

    def plain(ctx: Context, payload: Any) -> Any:
        return value

    async def stream(ctx: Context, payload: Any) -> AsyncIterator[Any]:
        yield value

    def generator(ctx: Context, payload: Any) -> Iterator[Any]:
        yield value

    async def emit(ctx: Context, payload: Any) -> None:
        ctx.emit("event", value)

    registry = Registry()
    for function in (coroutine, plain, stream, generator, emit):
        registry.add(function.__name__, function)
    registry.add("fine", lambda ctx, payload: "fine")
    return registry


@pytest.mark.parametrize("kind", ["coroutine", "plain", "stream", "generator", "emit"])
@pytest.mark.parametrize("value", UNSENDABLE.values(), ids=UNSENDABLE.keys())
async def test_what_msgpack_cannot_carry_is_the_handlers_error(tmp_path: Path, kind: str, value: Any) -> None:
    async with Peer(registry_returning(value), tmp_path) as peer:
        peer.arrive()
        code, message = await outcome(peer, kind)
    assert code == "handler_error"
    assert message.startswith(f"handler {kind!r} r")


@pytest.mark.parametrize("kind", ["coroutine", "plain", "stream", "generator", "emit"])
async def test_a_value_over_the_frame_limit_is_told_as_such(tmp_path: Path, kind: str) -> None:
    async with Peer(registry_returning("x" * (16 << 20)), tmp_path) as peer:
        peer.arrive()
        code, message = await outcome(peer, kind)
    assert code == "reply_too_large"
    assert "is over the limit of 16777216: send less, or stream it in pieces" in message


async def test_a_context_that_outlives_its_request_refuses_to_send(tmp_path: Path) -> None:
    kept: list[Context] = []
    registry = Registry()
    registry.add("keep", lambda ctx, payload: kept.append(ctx))
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("keep")
        await peer.final(id)
        late: list[Callable[[], None]] = [
            lambda: kept[0].emit("late"),
            lambda: kept[0].report_usage(tokens=1),
        ]
        for emit in late:
            with pytest.raises(RuntimeError, match="this request has ended: nobody listens any more"):
                emit()
            with pytest.raises(RuntimeError, match="this request has ended: nobody listens any more"):
                await asyncio.to_thread(emit)
        await peer.final(peer.request("keep"))
        assert peer.streamed(id, "event") == []


async def test_a_thread_that_emits_while_its_request_ends_is_released(tmp_path: Path) -> None:
    """A coroutine handler that left a thread behind, which waits for a reader who never reads."""
    registry = Registry()
    outcomes: list[BaseException | None] = []
    waiting = asyncio.Event()
    ended = threading.Event()

    def left_behind(ctx: Context) -> None:
        try:
            while True:
                ctx.emit("much", "x" * 100_000)
        except BaseException as error:
            outcomes.append(error)
        ended.set()

    async def leave(ctx: Context, payload: Any) -> None:
        threading.Thread(target=left_behind, args=(ctx,), daemon=True).start()
        await waiting.wait()

    registry.add("leave", leave)
    async with Peer(registry, tmp_path, reading=False) as peer:
        peer.arrive()
        id = peer.request("leave")
        await peer.until(lambda: len(peer.streamed(id, "event")) == 3)
        waiting.set()
        assert await asyncio.to_thread(ended.wait, 20)
        peer.reading = True
        peer.read(id)
        assert (await peer.final(id)).kind == "reply"
    assert [type(error) for error in outcomes] == [RuntimeError]
