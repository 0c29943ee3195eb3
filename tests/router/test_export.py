"""Exports: a user's files in one archive, made while none of their requests runs, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import tarfile
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest

from moltbot import NotFound, NotRunning, Request, StorageFull, Unavailable, UserForgetting
from moltbot.router.exporting import MAX_EXPORTS, Export
from moltbot.sandbox.archive import write_archive
from tests.fakes import PATIENCE, eventually
from tests.support import log_lines, logged, router_in, stage


def members(export: Export) -> dict[str, bytes]:
    """What is in the archive, by name; folders are empty."""
    with tarfile.TarFile(fileobj=export.file) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            found[member.name] = file.read() if file is not None else b""
        return found


async def test_an_archive_has_all_that_moves_with_a_user(tmp_path: Path) -> None:
    base = tmp_path / "base"
    async with router_in(base, worker_count=2) as router:
        await router.route(Request("leave_traces", "ada", "x"))
        await router.route(Request("leave_traces", "ben", "other"))
        names = sorted(os.listdir(base))
        async with router.export("ada") as export:
            assert sorted(os.listdir(base)) == names, "the file has no name"
            assert export.file.tell() == 0
            assert os.fstat(export.file.fileno()).st_size == export.size
            found = members(export)
        assert export.file.closed
        assert msgpack.unpackb(found["state/state.msgpack"]) == {"kept": "x"}
        assert sorted(found) == [
            *("sessions", "sessions/record.jsonl", "sessions/x", "sessions/x.txt"),
            *("state", "state/state.msgpack", "state/x", "state/x.txt", "user.json"),
        ]
        document = json.loads(found["user.json"])
        receipt = router.where("ada").to_json()
        told = {name: receipt[name] for name in ("epoch", "workerId", "since", "why")}
        assert document == {"userId": "ada", **told, "history": [told], "skipped": [], "skippedCount": 0}


WRITER = """
import asyncio
from pathlib import Path
from moltbot import handler

@handler("write")
async def write(ctx, payload):
    with open(Path(payload) / "log", "a") as log:
        log.write("begin\\n")
    for name in ("a", "b"):
        (ctx.state_dir / name).write_text(str(ctx.state.get("count", 0) + 1))
        await asyncio.sleep(0.002)
    ctx.state["count"] = ctx.state.get("count", 0) + 1
"""


async def test_it_is_whole_while_the_user_keeps_writing(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    (tmp_path / "writer.py").write_text(WRITER)
    async with router_in(tmp_path / "base", handler=str(tmp_path / "writer.py")) as router:
        stop = asyncio.Event()

        async def keep_writing() -> int:
            count = 0
            while not stop.is_set():
                await router.route(Request("write", "ada", str(at)))
                count += 1
            return count

        writing = [asyncio.create_task(keep_writing()) for _ in range(3)]
        await logged(at, "begin")
        seen = []
        for _ in range(20):
            async with router.export("ada") as export:
                found = members(export)
            count = msgpack.unpackb(found["state/state.msgpack"])["count"]
            assert found["state/a"] == found["state/b"] == str(count).encode()
            seen.append(count)
        assert seen == sorted(set(seen)), "requests run between exports"
        stop.set()
        total = sum(await asyncio.gather(*writing))
        assert len(log_lines(at)) == total


async def test_what_comes_meanwhile_waits_in_order_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = stage(tmp_path / "stage")
    gate, copying = threading.Event(), threading.Event()

    def slow(*args: Any, original: Any = write_archive, **options: Any) -> int:
        copying.set()
        assert gate.wait(PATIENCE)
        size: int = original(*args, **options)
        return size

    monkeypatch.setattr("moltbot.router.exporting.write_archive", slow)
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("count", "ada"))

        async def export() -> None:
            async with router.export("ada"):
                pass

        exported = asyncio.create_task(export())
        await eventually(copying.is_set)
        requests = [
            asyncio.create_task(router.route(Request("step", "ada", {"stage": str(at), "n": number})))
            for number in range(3)
        ]
        await eventually(lambda: router.where("ada").waiting == 3)
        assert (await router.route(Request("count", "ben"))).payload == 1
        assert log_lines(at) == []
        gate.set()
        await exported
        await asyncio.gather(*requests)
        assert log_lines(at) == [f"{what} ada {number}" for number in range(3) for what in ("begin", "end")]


async def test_a_request_that_goes_on_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        running = asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        waiting = asyncio.create_task(router.route(Request("count", "ada")))
        with pytest.raises(Unavailable, match="still runs after") as caught:
            async with router.export("ada", 0.02):
                pytest.fail("it runs")
        assert caught.value.retryable
        (at / "go").touch()
        assert (await running).success
        assert (await waiting).payload == 1, "the lane goes on"
        async with router.export("ada"):
            pass


async def test_one_for_each_user_and_a_few_at_once(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        for number in range(MAX_EXPORTS + 1):
            await router.route(Request("count", f"user-{number}"))
        async with AsyncExitStack() as opened:
            for number in range(MAX_EXPORTS):
                await opened.enter_async_context(router.export(f"user-{number}"))
            with pytest.raises(Unavailable, match="exported already"):
                await opened.enter_async_context(router.export("user-0"))
            with pytest.raises(Unavailable, match="exports are under way"):
                await opened.enter_async_context(router.export(f"user-{MAX_EXPORTS}"))
            assert (await router.route(Request("count", "user-0"))).payload == 2, "an open file holds no lane"
        async with router.export(f"user-{MAX_EXPORTS}"):
            pass


async def test_whom_and_what_it_refuses(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", max_disk=1 << 20) as router:
        with pytest.raises(NotFound):
            async with router.export("nobody"):
                pass
        await router.route(Request("count", "ada"))
        hole = tmp_path / "base" / "worker-0" / "state" / "ada" / "hole"
        hole.touch()
        os.truncate(hole, 1 << 40)
        with pytest.raises(StorageFull, match="too many for an archive"):
            async with router.export("ada"):
                pass
        assert (await router.route(Request("count", "ada"))).payload == 2
    with pytest.raises(NotRunning):
        router.export("ada")


@pytest.mark.parametrize("how", ["forgotten", "cancelled"])
async def test_a_copy_under_way_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    copying, ended = threading.Event(), threading.Event()

    def endless(*_: Any, check: Any, **__: Any) -> int:
        copying.set()
        try:
            while True:
                check()
        finally:
            ended.set()

    monkeypatch.setattr("moltbot.router.exporting.write_archive", endless)
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("count", "ada"))

        async def export() -> None:
            async with router.export("ada"):
                pass

        exported = asyncio.create_task(export())
        await eventually(copying.is_set)
        if how == "forgotten":
            await router.forget("ada")
            with pytest.raises(UserForgetting):
                await exported
        else:
            exported.cancel()
            await asyncio.wait([exported])
            assert exported.cancelled()
            assert ended.is_set(), "the thread has ended before the file was closed"
            assert (await router.route(Request("count", "ada"))).payload == 2
