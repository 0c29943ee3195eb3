"""Exports that are open: they end with the user, and after a time, whatever their reader does.

How archives are made is in `test_export.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import IO

import pytest

from moltbot import GatewayRouter, MoltbotError, Request, Unavailable, UserForgetting
from moltbot.router.exporting import OPEN_SECONDS, _UnderWay
from tests.fakes import PATIENCE, FakeClock, eventually
from tests.support import log_lines, logged, router_in, stage


class Reader:
    """Opens a user's export and reads nothing more after its first bytes."""

    def __init__(self, router: GatewayRouter, user_id: str) -> None:
        self.file: IO[bytes] | None = None
        self.opened = asyncio.Event()
        self.task = asyncio.create_task(self._read(router, user_id))

    async def _read(self, router: GatewayRouter, user_id: str) -> None:
        async with router.export(user_id) as export:
            self.file = export.file
            assert export.file.read(10)
            self.opened.set()
            await asyncio.Event().wait()


async def test_forgetting_takes_the_archive_from_its_reader(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        for user in ("ada", "ben"):
            await router.route(Request("count", user))
        readers = {user: Reader(router, user) for user in ("ada", "ben")}
        for reader in readers.values():
            await reader.opened.wait()
        forgotten = asyncio.create_task(router.forget("ada"))
        with pytest.raises(UserForgetting) as caught:
            await asyncio.wait_for(readers["ada"].task, PATIENCE)
        assert caught.value.retryable
        await forgotten
        ada, ben = readers["ada"].file, readers["ben"].file
        assert ada is not None
        assert ada.closed
        assert ben is not None
        assert ben.read(10), "somebody else's goes on"
        readers["ben"].task.cancel()
        await asyncio.wait([readers["ben"].task])
        assert readers["ben"].task.cancelled(), "who is cancelled from outside is not told a reason"


async def test_a_reader_who_only_reads_meets_a_closed_file(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("count", "ada"))
        with pytest.raises(UserForgetting):
            async with router.export("ada") as export:
                router._users._exports.abort("ada", UserForgetting("-"))  # type: ignore[union-attr]
                export.file.read(1)


async def test_nobody_keeps_an_export_open_for_ever(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("count", "ada"))
        assert router._users is not None
        clock = router._users._exports._clock = FakeClock()
        reader = Reader(router, "ada")
        await reader.opened.wait()
        clock.advance(OPEN_SECONDS - 1)
        assert reader.file is not None
        assert not reader.file.closed
        clock.advance(2)
        with pytest.raises(Unavailable, match="was not read within 600 s"):
            await asyncio.wait_for(reader.task, PATIENCE)
        assert reader.file.closed
        async with router.export("ada"):
            pass
        assert clock.pending == 0


async def test_waiting_for_what_runs_is_timed_by_the_clock(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        running = asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        assert router._users is not None
        clock = router._users._exports._clock = FakeClock()
        reader = Reader(router, "ada")
        await eventually(lambda: clock.pending > 0)
        clock.advance(31)
        with pytest.raises(Unavailable, match="still runs after 30 s"):
            await asyncio.wait_for(reader.task, PATIENCE)
        (at / "go").touch()
        assert (await running).success
        assert log_lines(at) == ["begin ada 0", "end ada 0"]


def test_what_ends_it_first_is_its_reason() -> None:
    one = _UnderWay()
    one.check()
    one.end(MoltbotError("first"))
    one.end(MoltbotError("second"))
    with pytest.raises(MoltbotError, match="first"):
        one.check()
