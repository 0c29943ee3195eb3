"""Single steps of forgetting, where something else goes on at the same time or a step fails: other workers, late files, other tables.

What is left in the end is in `test_forgetting.py`; what crashes leave, in `test_forgetting_crashes.py`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from moltbot import Request
from moltbot.router.gateway_router import GatewayRouter
from moltbot.router.schema import metadata
from moltbot.router.tombstones import Tombstones
from moltbot.sandbox.remains import StillFilled, delete_user_files
from tests.fakes import PATIENCE, eventually
from tests.router.test_forgetting import ADA, MARK, count, traces
from tests.support import MISBEHAVIOURS, router_in


async def test_a_worker_that_is_ending_and_never_had_the_user_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with router_in(tmp_path / "base", worker_count=2) as router:
        await count(router, ADA)
        assert router._pool is not None
        home = router.where(ADA).worker_id
        other = next(worker for worker_id, worker in router._pool.workers.items() if worker_id != home)
        ending = copy.copy(other.life)
        assert ending is not None
        ending.channel = None  # its process still runs
        with monkeypatch.context() as patch:
            patch.setattr(other, "life", ending)
            await router.forget(ADA)
        assert "failed" not in caplog.text


async def test_another_try_finds_no_departure_of_the_one_before_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, at_work, gate = Counter[str](), Counter[str](), asyncio.Event()
    twice: list[str] = []

    async def depart(worker: Any, *_: Any, **__: Any) -> None:
        name = worker.worker_id
        if at_work[name]:
            twice.append(name)
        tries[name] += 1
        at_work[name] += 1
        try:
            if name == "worker-0" and tries[name] == 1:
                raise TimeoutError
            if name == "worker-1":
                await gate.wait()
        finally:
            at_work[name] -= 1

    monkeypatch.setattr("moltbot.router.forgetting.depart", depart)
    monkeypatch.setattr("moltbot.router.forgetting._FIRST_DELAY", 0.0)
    async with router_in(tmp_path / "base", worker_count=2) as router:
        await count(router, ADA)
        asked = asyncio.create_task(router.forget(ADA))
        await eventually(lambda: at_work["worker-1"] > 0)
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        await asked
        assert twice == []
        assert tries == {"worker-0": 2, "worker-1": 2}


async def test_what_is_written_by_path_until_the_user_is_buried_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"

    async def bury(self: Tombstones, *args: Any, original: Any = Tombstones.bury) -> bytes:
        digest: bytes = await original(self, *args)
        late = base / "worker-0" / "state" / ADA
        late.mkdir()
        (late / "file").write_text(MARK)
        return digest

    monkeypatch.setattr(Tombstones, "bury", bury)
    async with router_in(base) as router:
        await router.route(Request("leave_traces", ADA, MARK))
        await router.forget(ADA)
        assert traces(base) == []
        assert await count(router, ADA) == (1, 2)


@pytest.fixture
def later_table() -> Iterator[sa.Table]:
    """A table as one that comes with a later version."""
    table = sa.Table("later", metadata, sa.Column("user_id", sa.LargeBinary), sa.Column("text", sa.Text))
    yield table
    metadata.remove(table)


async def test_no_table_with_a_column_of_users_is_left_out(tmp_path: Path, later_table: sa.Table) -> None:
    async with router_in(tmp_path / "base") as router:
        for user in (ADA, "ben"):
            await count(router, user)
            row = sa.insert(later_table).values(user_id=user.encode(), text=user)
            await router.database.transact(partial(sa.Connection.execute, statement=row))
        await router.forget(ADA)
        found = await router.database.transact(
            lambda connection: connection.execute(sa.select(later_table.c.text)).scalars().all()
        )
        assert found == ["ben"]
        assert traces(tmp_path / "base") == []


async def test_who_fills_a_directory_for_ever_is_forgotten_and_delays_nobody(tmp_path: Path) -> None:
    settings = {"handler": MISBEHAVIOURS, "worker_count": 2, "drain_timeout": 100}
    async with router_in(tmp_path / "base", **settings) as router:
        for user in ("user-a", "user-b"):
            await router.route(Request("count", user))
        homes = [router.where(user).worker_id for user in ("user-a", "user-b")]
        assert homes[0] != homes[1]
        await router.route(Request("fills_by_descriptor", "user-a"))
        evil = asyncio.create_task(router.forget("user-a", PATIENCE))
        await router.forget("user-b", PATIENCE)
        await evil
        assert os.listdir(tmp_path / "base" / "trash") == []
        assert restarts(router)[homes[1]] == 0


async def test_a_worker_that_still_fills_what_was_put_aside_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    async def delete(base: Path, user_id: str, tag: str) -> None:
        tries.append(tag)
        if len(tries) == 1:
            raise StillFilled(0, "1 directories that were put aside cannot be deleted")
        await delete_user_files(base, user_id, tag)

    monkeypatch.setattr("moltbot.router.forgetting.delete_user_files", delete)
    async with router_in(tmp_path / "base", worker_count=2) as router:
        await count(router, ADA)
        home = router.where(ADA).worker_id
        await router.forget(ADA, PATIENCE)
        assert len(set(tries)) == 1
        expected = {worker: int(worker == home) for worker in ("worker-0", "worker-1")}
        await eventually(lambda: restarts(router) == expected)


def restarts(router: GatewayRouter) -> dict[str, int]:
    status = router.get_status()
    assert status is not None
    return {worker.worker_id: worker.restart_count for worker in status.workers}
