"""`ctx.state`: one dict per user, on disk before the reply, read anew after a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgpack
import pytest

from moltbot.core.errors import HandlerError
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from moltbot.worker.state import FILE_NAME, MAX_STATE_BYTES
from moltbot.worker.testing import HandlerTester
from tests.worker.conftest import WriteHandler
from tests.worker.peer import Peer

CODE = """
    @handler("set")
    async def set_(ctx, payload):
        ctx.state.update(payload)

    @handler("set_in_thread")
    def set_in_thread(ctx, payload):
        ctx.state.update(payload)

    @handler("get")
    async def get(ctx, payload):
        return dict(ctx.state)

    @handler("clear")
    async def clear(ctx, payload):
        ctx.state.clear()

    @handler("set_and_fail")
    async def set_and_fail(ctx, payload):
        ctx.state.update(payload)
        raise ValueError("after a change")

    @handler("set_and_return_nonsense")
    async def set_and_return_nonsense(ctx, payload):
        ctx.state.update(payload)
        return object()

    @handler("break")
    async def break_(ctx, payload):
        ctx.state["bad"] = object()

    @handler("idle")
    async def idle(ctx, payload):
        return "idle"
"""


def on_disk(tmp_path: Path, user: str = "user") -> Any:
    return msgpack.unpackb((tmp_path / "state" / user / FILE_NAME).read_bytes(), strict_map_key=False)


@pytest.mark.parametrize("kind", ["set", "set_in_thread"])
async def test_it_is_on_disk_before_the_reply(write: WriteHandler, tmp_path: Path, kind: str) -> None:
    registry = Registry()

    async def count(ctx: Context, payload: Any) -> None:
        ctx.state["n"] = payload

    registry.add("count", count)
    async with Peer(registry, tmp_path / "peer") as peer:
        found: list[Any] = []
        peer.on_event = lambda event: (
            found.append(on_disk(tmp_path / "peer", "ada")) if event[1] == "reply" else None
        )
        peer.arrive()
        for number in range(5):
            await peer.final(peer.request("count", number))
        assert found == [{"n": number} for number in range(5)]
    async with HandlerTester(write(CODE), tmp_path) as tester:
        await tester.call(kind, {"a": [1, {"b": b"\xff"}], "\U0001f600": None})
        assert on_disk(tmp_path) == {"a": [1, {"b": b"\xff"}], "\U0001f600": None}


async def test_it_survives_a_leave_and_a_restart(write: WriteHandler, tmp_path: Path) -> None:
    path = write(CODE)
    async with HandlerTester(path, tmp_path) as tester:
        await tester.call("set", {"a": 1, "b": True})
        await tester.leave()
        assert (await tester.call("get")).payload == {"a": 1, "b": True}
    async with HandlerTester(path, tmp_path) as tester:
        assert (await tester.call("get")).payload == {"a": 1, "b": True}


async def test_each_user_has_their_own(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        for user in ("a/b", "a_b", "A", "a"):
            await tester.call("set", {"me": user}, user_id=user)
        for user in ("a/b", "a_b", "A", "a"):
            assert (await tester.call("get", user_id=user)).payload == {"me": user}


async def test_a_request_that_does_not_change_it_does_not_write(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        await tester.call("idle")
        await tester.call("get")
        await tester.call("clear")
        assert not (tmp_path / "state" / "user" / FILE_NAME).exists()
        await tester.call("set", {"a": 1})
        before = (tmp_path / "state" / "user" / FILE_NAME).stat()
        await tester.call("get")
        await tester.call("set", {"a": 1})
        after = (tmp_path / "state" / "user" / FILE_NAME).stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        await tester.call("clear")
        assert on_disk(tmp_path) == {}


@pytest.mark.parametrize("kind", ["set_and_fail", "set_and_return_nonsense", "break"])
async def test_after_an_error_it_is_read_anew(write: WriteHandler, tmp_path: Path, kind: str) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        await tester.call("set", {"kept": 1})
        with pytest.raises(HandlerError):
            await tester.call(kind, {"kept": 2, "lost": 3})
        assert on_disk(tmp_path) == {"kept": 1}
        assert (await tester.call("get")).payload == {"kept": 1}


async def test_after_a_cancel_it_is_read_anew(tmp_path: Path) -> None:
    registry = Registry()

    async def change(ctx: Context, payload: Any) -> None:
        ctx.state["n"] = 2
        ctx.emit("changed")
        await asyncio.Event().wait()

    async def get(ctx: Context, payload: Any) -> Any:
        return ctx.state.setdefault("n", 1)

    registry.add("change", change)
    registry.add("get", get)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        await peer.final(peer.request("get"))
        id = peer.request("change")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        peer.cancel(id)
        await peer.final(id)
        assert (await peer.final(peer.request("get"))).frame["payload"] == 1


async def test_concurrent_requests_share_it_and_a_failure_waits_for_its_siblings(tmp_path: Path) -> None:
    registry = Registry()
    seen: list[Any] = []
    failed, go_on = asyncio.Event(), asyncio.Event()

    async def sibling(ctx: Context, payload: Any) -> None:
        state = ctx.state
        state["sibling"] = 1
        ctx.emit("running")
        await go_on.wait()
        assert ctx.state is state
        seen.append(dict(ctx.state))
        raise ValueError("it fails too")

    async def fail(ctx: Context, payload: Any) -> None:
        ctx.state["failed"] = 1
        raise ValueError

    async def get(ctx: Context, payload: Any) -> Any:
        return dict(ctx.state)

    for function in (sibling, fail, get):
        registry.add(function.__name__, function)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("sibling")
        await peer.until(lambda: bool(peer.streamed(id, "event")))
        await peer.final(peer.request("fail"))
        failed.set()
        go_on.set()
        await peer.final(id)
        assert seen == [{"sibling": 1, "failed": 1}]
        assert (await peer.final(peer.request("get"))).frame["payload"] == {}


async def test_over_a_mebibyte_is_refused_and_the_old_one_stays(write: WriteHandler, tmp_path: Path) -> None:
    async with HandlerTester(write(CODE), tmp_path) as tester:
        await tester.call("set", {"a": "x" * (MAX_STATE_BYTES - 9)})
        with pytest.raises(HandlerError, match="at most 1048576 are kept: use files in ctx.state_dir"):
            await tester.call("set", {"b": 1})
        assert list((await tester.call("get")).payload) == ["a"]


DAMAGED = {
    "nothing": b"",
    "cut": b"\x81\xa1a",
    "no map": b"\x93\x01\x02\x03",
    "noise": b"\xc1\xc1",
    "text": b"{}",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
async def test_a_damaged_file_is_an_error_and_stays_as_it_is(
    write: WriteHandler, tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "state" / "user" / FILE_NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    async with HandlerTester(write(CODE), tmp_path) as tester:
        for kind in ("get", "set"):
            with pytest.raises(HandlerError, match=r"state.msgpack of this user is damaged \(\d+ bytes\)"):
                await tester.call(kind, {"a": 1})
        assert (await tester.call("idle")).payload == "idle"
        assert file.read_bytes() == data
        file.unlink()
        assert (await tester.call("get")).payload == {}
