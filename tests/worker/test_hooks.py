"""Hooks: once each, in their order, sync or not, and what it means when they raise."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from moltbot.core.errors import HandlerError
from moltbot.worker.context import Context
from moltbot.worker.handlers import HOOKS, Registry
from moltbot.worker.testing import HandlerTester
from moltbot.worker.users import User
from tests.worker.conftest import WriteHandler
from tests.worker.peer import Peer

CODE = """
    import asyncio
    told = []

    @on_start
    def start():
        told.append("start")

    @on_start
    async def start_too():
        await asyncio.sleep(0)
        told.append("start too")

    @on_arrive
    def arrive(user):
        told.append(f"arrive {user.user_id} {user.epoch}")

    @on_arrive
    async def arrive_too(user):
        await asyncio.sleep(0)
        user.state.setdefault("arrivals", 0)
        user.state["arrivals"] += 1
        told.append(f"arrive too {user.user_id}")

    @on_leave
    async def leave(user):
        await asyncio.sleep(0)
        told.append(f"leave {user.user_id}")

    @on_leave
    def leave_too(user):
        user.state["left"] = True
        user.session.append("bye")

    @on_stop
    async def stop():
        told.append("stop")

    @on_stop
    def stop_too():
        told.append("stop too")

    @handler("agent")
    async def agent(ctx, payload):
        told.append(f"request {ctx.user_id}")
        return dict(ctx.state)
"""


async def test_hooks_run_once_in_order_around_the_requests(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        told: list[str] = sys.modules["the_handler"].told
        assert told == ["start", "start too"]
        await tester.call("agent", user_id="ada")
        await tester.call("agent", user_id="ada")
        await tester.leave("ada")
        assert (await tester.call("agent", user_id="ada")).payload == {"arrivals": 2, "left": True}
    arrive = ["arrive ada 1", "arrive too ada"]
    assert told == [
        "start",
        "start too",
        *arrive,
        "request ada",
        "request ada",
        "leave ada",
        *arrive,
        "request ada",
        "leave ada",
        "stop",
        "stop too",
    ]
    state = msgpack.unpackb((tmp_path / "state" / "ada" / "state.msgpack").read_bytes())
    assert state == {"arrivals": 2, "left": True}
    assert (tmp_path / "sessions" / "ada" / "record.jsonl").read_text() == '"bye"\n"bye"\n'


async def test_a_leave_of_a_user_who_is_not_here_does_nothing(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        await tester.leave("nobody")
        await tester.call("agent")
        assert "leave nobody" not in sys.modules["the_handler"].told


@pytest.mark.parametrize(
    "body", ["raise ValueError('no')", "raise SystemExit(3)", "import sys; sys.exit()", "1 / 0"]
)
@pytest.mark.parametrize("keyword", ["def", "async def"])
async def test_a_start_hook_that_raises_fails_the_boot_with_its_words(
    write: WriteHandler, tmp_path: Path, keyword: str, body: str
) -> None:
    path = write(f"@on_start\n{keyword} start():\n    {body}\n@handler('a')\ndef a(ctx, payload): ...\n")
    with pytest.raises(HandlerError, match=r"the_handler.py does not load: (ValueError: no|SystemExit|Zero)"):
        async with HandlerTester(path, tmp_path):
            pass


def registry_with(**hooks: Any) -> Registry:
    async def agent(ctx: Context, payload: Any) -> str:
        return ctx.user_id

    registry = Registry()
    registry.add("agent", agent)
    for name, hook in hooks.items():
        registry.hooks[name].append(hook)
    return registry


ERRORS: list[BaseException] = [ValueError("no"), SystemExit(3), asyncio.CancelledError(), TimeoutError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_arrive_hook_that_raises_refuses_that_user_only(
    tmp_path: Path, asynchronous: bool, error: BaseException
) -> None:
    def raising(user: User) -> None:
        if user.user_id == "bad":
            raise error

    async def raising_later(user: User) -> None:
        await asyncio.sleep(0)
        raising(user)

    async with Peer(registry_with(on_arrive=raising_later if asynchronous else raising), tmp_path) as peer:
        peer.arrive("bad")
        early = peer.request("agent", user="bad")
        peer.arrive("good")
        assert (await peer.final(peer.request("agent", user="good"))).frame["payload"] == "good"
        final = await peer.final(early)
        assert (final.kind, final.frame["code"]) == ("error", "handler_error")
        assert final.frame["message"].startswith(f"on_arrive raised {type(error).__name__}: ")
        notices = {frame["user_id"]: frame["error"] for frame in peer.notices("arrived")}
        assert notices == {"bad": final.frame["message"], "good": None}
        late = await peer.final(peer.request("agent", user="bad"))
        assert late.frame["code"] == "not_loaded"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_leave_hook_that_raises_is_told_and_the_user_is_gone_all_the_same(
    tmp_path: Path, error: BaseException
) -> None:
    def raising(user: User) -> None:
        raise error

    async with Peer(registry_with(on_leave=raising), tmp_path) as peer:
        peer.arrive()
        peer.caller.leave("ada")
        peer.flush()
        left = await peer.notice("left")
        assert left["error"].startswith(f"on_leave raised {type(error).__name__}: ")
        assert (await peer.final(peer.request("agent"))).frame["code"] == "not_loaded"
        peer.arrive()
        assert (await peer.final(peer.request("agent"))).kind == "reply"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_stop_hook_that_raises_does_not_keep_the_worker(tmp_path: Path, error: BaseException) -> None:
    def raising() -> None:
        raise error

    peer = Peer(registry_with(on_stop=raising), tmp_path)
    async with peer:
        peer.caller.shutdown(60_000)
        peer.flush()
        await peer.until(lambda: peer.closed)
    assert await peer.worker == 0


async def test_a_stop_hook_that_hangs_is_given_the_grace_and_no_more(tmp_path: Path) -> None:
    peer = Peer(registry_with(on_stop=asyncio.Event().wait), tmp_path)
    async with peer:
        peer.caller.shutdown(1)
        peer.flush()
        await peer.until(lambda: peer.closed)
    assert await peer.worker == 0


async def test_a_tester_tries_a_user_again_whose_arrival_failed(tmp_path: Path) -> None:
    attempts: list[str] = []

    def picky(user: User) -> None:
        attempts.append(user.user_id)
        if len(attempts) == 1:
            raise ValueError("not yet")

    async with HandlerTester(registry_with(on_arrive=picky), tmp_path) as tester:
        with pytest.raises(HandlerError, match="on_arrive raised ValueError: not yet"):
            await tester.call("agent")
        assert (await tester.call("agent")).payload == "user"


async def test_requests_wait_for_the_arrival_and_a_leave_too(tmp_path: Path) -> None:
    order: list[str] = []
    welcome = asyncio.Event()

    async def slow(user: User) -> None:
        await welcome.wait()
        order.append("arrived")

    async def agent(ctx: Context, payload: Any) -> None:
        order.append("request")

    registry = Registry()
    registry.add("agent", agent)
    registry.hooks["on_arrive"].append(slow)
    registry.hooks["on_leave"].append(lambda user: order.append("left"))
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("agent")
        peer.caller.leave("ada")
        await peer.round_trip()
        assert (order, peer.notices("arrived")) == ([], [])
        welcome.set()
        await peer.notice("left")
        await peer.final(id)
    assert order[0] == "arrived"
    assert sorted(order) == ["arrived", "left", "request"]


async def test_an_arrival_waits_until_the_same_user_has_left(tmp_path: Path) -> None:
    order: list[str] = []
    farewell = asyncio.Event()

    async def slow_leave(user: User) -> None:
        order.append(f"leaving {user.epoch}")
        await farewell.wait()
        user.state["epoch"] = user.epoch
        order.append(f"left {user.epoch}")

    def arrive(user: User) -> None:
        order.append(f"arrive {user.epoch} {user.state.get('epoch')}")

    async with Peer(registry_with(on_leave=slow_leave, on_arrive=arrive), tmp_path) as peer:
        peer.arrive(epoch=1)
        await peer.notice("arrived")
        peer.caller.leave("ada")
        peer.arrive(epoch=2)
        id = peer.request("agent", epoch=2)
        await peer.round_trip()
        assert order == ["arrive 1 None", "leaving 1"]
        farewell.set()
        assert (await peer.final(id)).kind == "reply"
        assert [frame["epoch"] for frame in peer.notices("arrived")] == [1, 2]
    assert order[:4] == ["arrive 1 None", "leaving 1", "left 1", "arrive 2 1"]


async def test_a_request_under_another_epoch_is_refused(tmp_path: Path) -> None:
    async with Peer(registry_with(), tmp_path) as peer:
        peer.arrive(epoch=3)
        for epoch in (2, 4):
            final = await peer.final(peer.request("agent", epoch=epoch))
            assert final.frame["code"] == "not_loaded"
        assert (await peer.final(peer.request("agent", epoch=3))).kind == "reply"


def test_the_names_of_the_hooks_are_those_of_the_registry() -> None:
    assert tuple(Registry().hooks) == HOOKS == ("on_start", "on_stop", "on_arrive", "on_leave")
