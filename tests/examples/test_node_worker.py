"""`examples/node_worker.js`: a worker without Python keeps the same promises, through the same router."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from moltbot import Chunk, GatewayRouter, Reply, Request, UnknownType, Usage
from moltbot.core.events import WorkerChanged
from moltbot.core.user_key import user_key
from tests.examples.running import EXAMPLES, router_with, say

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed here")


def settings() -> dict[str, Any]:
    return {"worker_command": [str(NODE), str(EXAMPLES / "node_worker.js")]}


async def is_ready(router: GatewayRouter, incarnation: int) -> None:
    with router.events() as events:
        async for event in events:
            if isinstance(event, WorkerChanged) and (event.incarnation, event.state) == (
                incarnation,
                "ready",
            ):
                return


async def test_streams_an_answer_with_usage(tmp_path: Path) -> None:
    async with router_with(tmp_path, **settings()) as router:
        items = [item async for item in router.stream(Request("agent", "ada", {"message": "hi you"}))]
        assert [item.data for item in items if isinstance(item, Chunk)] == [
            "worker-0 runs Node, turn 1 with you.",
            " You",
            " said:",
            " hi",
            " you",
        ]
        assert items[-2] == Usage({"words": 2})
        assert isinstance(items[-1], Reply)
        assert items[-1].usage == {"words": 2}
        health = (await router.route(Request("health", "ada"))).payload
        assert health["ok"] is True
        with pytest.raises(UnknownType, match="there is agent, health"):
            await router.route(Request("toString", "ada"))


@pytest.mark.parametrize("user", ["ada", "..", ".hidden", "A/b", "ü💥\0", "x" * 512])
async def test_keeps_state_where_the_gateway_expects_it(tmp_path: Path, user: str) -> None:
    async with router_with(tmp_path, **settings()) as router:
        await say(router, user, "one")
        reply = await say(router, user, "two")
        assert reply.payload == "worker-0 runs Node, turn 2 with you. You said: two"
        directory = router.where(user).directories["state"]
    assert directory.name == user_key(user)
    assert (directory / "turns.json").read_text() == "2"


async def test_reads_every_form_of_msgpack(tmp_path: Path) -> None:
    text = "".join(f"{number} " for number in range(20_000))  # longer than 16 bits can tell
    odd = [
        0,
        -1,
        -33,
        200,
        70_000,
        -70_000,
        2**40,
        -(2**40),
        2**63,
        0.5,
        True,
        None,
        b"x" * 300,
        list(range(20)),
    ]
    async with router_with(tmp_path, **settings()) as router:
        payload = {"message": text, "odd": odd, "many": {str(number): number for number in range(20)}}
        reply = await router.route(Request("agent", "ada", payload))
        assert reply.payload.endswith(f"You said: {text}")


async def test_a_slow_reader_stops_only_its_own_stream(tmp_path: Path) -> None:
    words = "word " * 200_000  # some megabytes of frames: far over the credit of 256 KiB
    async with router_with(tmp_path, **settings()) as router:
        stream = router.stream(Request("agent", "ada", {"message": words}))
        assert isinstance(await anext(stream), Chunk)
        assert (await say(router, "user-a", "hi")).payload.endswith("You said: hi")
        rest = [item async for item in stream]
        assert isinstance(rest[-1], Reply)
        assert len(rest) > 200_000


async def test_cancel_ends_a_stream_that_waits_for_credit(tmp_path: Path) -> None:
    async with router_with(tmp_path, **settings()) as router:
        stream = router.stream(Request("agent", "ada", {"message": "word " * 200_000}))
        await anext(stream)
        await stream.aclose()
        # The lane opens only after the worker's final frame; the interrupted turn was not counted.
        assert "turn 1 " in (await say(router, "ada", "hi")).payload


async def test_comes_back_after_sigkill_with_the_users_state(tmp_path: Path) -> None:
    async with router_with(tmp_path, **settings()) as router:
        await say(router, "ada", "one")
        status = router.get_status()
        assert status is not None
        pid = status.workers[0].pid
        assert pid is not None
        back = asyncio.create_task(is_ready(router, 2))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        await back
        assert "turn 2 " in (await say(router, "ada", "two")).payload


async def test_drains_before_a_recycling(tmp_path: Path) -> None:
    async with router_with(tmp_path, **settings(), max_requests=2) as router:
        back = asyncio.create_task(is_ready(router, 2))
        await asyncio.sleep(0)
        await say(router, "ada", "one")
        await say(router, "ada", "two")
        await back
        assert "turn 3 " in (await say(router, "ada", "three")).payload
        status = router.get_status()
        assert status is not None
        assert status.workers[0].last_exit is not None
        assert status.workers[0].last_exit.reason == "recycled"


async def test_an_orderly_stop_is_no_crash(tmp_path: Path) -> None:
    events = []
    async with router_with(tmp_path, **settings()) as router:
        await say(router, "ada", "one")
        subscription = router.events()
    with subscription:
        subscription.close()
        events = [event async for event in subscription if isinstance(event, WorkerChanged)]
    assert [event.state for event in events] == ["draining", "stopping", "stopped"]
