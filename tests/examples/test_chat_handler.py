"""`examples/chat_handler.py` streams, remembers per user, reports usage, and keeps no half of an interrupted turn."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from moltbot import Chunk, Event, InvalidRequest, Reply, Request, Usage
from moltbot.core.events import WorkerChanged
from tests.examples.running import EXAMPLES, router_with, say

HANDLER = str(EXAMPLES / "chat_handler.py")


async def test_streams_words_an_event_and_usage(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        items = [item async for item in router.stream(Request("agent", "ada", {"message": "hello"}))]

    assert items[0] == Event("thinking", {"turn": 1, "remembered": 0})
    words = [item.data for item in items if isinstance(item, Chunk)]
    assert "".join(words) == "You said: hello It is the first thing you tell me."
    assert len(words) == 11
    assert Usage({"input_words": 1, "output_words": 11}) in items
    assert isinstance(items[-1], Reply)
    assert items[-1].usage == {"input_words": 1, "output_words": 11}


async def test_remembers_each_user_apart_and_across_a_crash(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        await say(router, "ada", "My name is Ada")
        assert (await say(router, "user-a", "What is my name?")).payload == "You have not told me."
        status = router.get_status()
        assert status is not None
        assert status.workers[0].pid is not None
        with router.events() as events:
            os.kill(status.workers[0].pid, signal.SIGKILL)
            async for event in events:
                if isinstance(event, WorkerChanged) and event.state == "ready":
                    break

        assert (await say(router, "ada", "What is my name?")).payload == "Your name is Ada."
        history = (await router.route(Request("history", "ada"))).payload
    assert [turn["user"] for turn in history] == ["My name is Ada", "What is my name?"]


async def test_an_interrupted_turn_leaves_nothing_in_the_history(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        long = "word " * 200_000  # more than the window of credit, so the handler waits for a reader
        stream = router.stream(Request("agent", "ada", {"message": long}))
        async for item in stream:
            if isinstance(item, Chunk):
                break
        await stream.aclose()
        assert (await router.route(Request("history", "ada"))).payload == []
        assert (await say(router, "ada", "hi")).payload == "You said: hi It is the first thing you tell me."


async def test_a_missing_message_is_the_callers_fault(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        for payload in (None, {}, {"message": "  "}, {"message": 3}, ["message"]):
            with pytest.raises(InvalidRequest, match=r"payload\.message is missing"):
                await router.route(Request("agent", "ada", payload))


async def test_many_at_once_stay_in_order(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        await asyncio.gather(*(say(router, "ada", f"message {number}") for number in range(10)))
        history = (await router.route(Request("history", "ada"))).payload
    assert [turn["user"] for turn in history] == [f"message {number}" for number in range(10)]
