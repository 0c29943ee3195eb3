"""Forgetting a user: nothing is left anywhere, and nobody else notices.

Crashes in the middle and lost keys are in `test_forgetting_crashes.py`, single steps in `test_forgetting_steps.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from moltbot import GatewayRouter, NotFound, NotRunning, Request, Unavailable, UserForgetting
from moltbot.core.events import RequestOverdue, UserForgotten
from moltbot.router.schema import metadata
from moltbot.sandbox.remains import delete_user_files
from tests.fakes import PATIENCE, change_to, eventually, first_event
from tests.router.support import held
from tests.sandbox.test_disk import nest
from tests.support import MISBEHAVIOURS, log_lines, logged, router_in, stage

MARK = "zebra-crossing-7141"
ADA = f"ada-{MARK}"

TABLES = (*(table.name for table in metadata.tables.values() if "user_id" in table.c), "tombstones")


def traces(base: Path, mark: str = MARK) -> list[str]:
    """Every name below the base directory that holds the mark, and every file whose bytes do."""
    found = []
    for path in sorted(base.rglob("*")):
        relative = str(path.relative_to(base))
        if mark in relative or (path.is_file() and mark.encode() in path.read_bytes()):
            found.append(relative)
    return found


def count_rows(base: Path, name: str = "moltbot.db") -> dict[str, int]:
    """How many rows another process sees."""
    with closing(sqlite3.connect(f"file:{base / name}?mode=ro", uri=True)) as connection:
        count = "SELECT count(*) FROM "
        return {table: connection.execute(count + table).fetchone()[0] for table in TABLES}


async def give_rows(router: GatewayRouter, user_id: str) -> None:
    """What the gateway keeps of a user: a token, an outcome."""
    key = user_id.encode()

    def work(connection: Any) -> None:
        for table, columns, values in (
            (
                "tokens",
                "id, kind, digest, user_id, scopes, label, created",
                (user_id, "token", b"-", key, "", user_id, 0),
            ),
            (
                "outcomes",
                "owner, key, user_id, fingerprint, created, body",
                (key, "k", key, b"-", 0, key * 500),
            ),
        ):
            marks = ", ".join("?" * len(values))
            connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)

    await router.database.transact(work)


async def count(router: GatewayRouter, user_id: str) -> tuple[int, int]:
    reply = await router.route(Request("count", user_id))
    return reply.payload, reply.epoch


# --- what is left -------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_a_forgotten_user(tmp_path: Path) -> None:
    base = tmp_path / "base"
    async with router_in(base, worker_count=2) as router:
        assert await count(router, "ben") == (1, 1)
        await router.route(Request("leave_traces", ADA, MARK))
        await give_rows(router, ADA)
        await give_rows(router, "ben")
        await router.database.backup()
        assert len(traces(base)) > 10
        with router.events() as events:
            await router.forget(ADA)
            assert (await first_event(events, UserForgotten)).user_id == ADA
        assert traces(base) == []
        expected = {"pins": 1, "outcomes": 1, "tokens": 1, "forgettings": 0, "tombstones": 1}
        assert count_rows(base) == count_rows(base, "moltbot.db.backup") == expected
        with pytest.raises(NotFound):
            router.where(ADA)
        with pytest.raises(NotFound):
            await router.forget(ADA)
        assert await count(router, "ben") == (2, 1)
    assert traces(base) == []
    async with router_in(base, worker_count=2) as router:
        assert await count(router, "ben") == (3, 1)


async def test_no_page_of_a_large_database_keeps_a_copy(tmp_path: Path) -> None:
    """Rows that once were moved within their pages by those of others."""
    base = tmp_path / "base"
    users = [f"{number * 7919 % 400}-{MARK}{number}-" + "x" * (number * 37 % 190) for number in range(400)]
    async with router_in(base, worker_count=2) as router:
        await asyncio.gather(*(router.route(Request("echo", user)) for user in users))
        for user in users:
            await give_rows(router, user)
        await asyncio.gather(*(router.forget(user, PATIENCE) for user in users[:-1]))
        assert traces(base, users[0].split("-")[0] + f"-{MARK}") == []
        with closing(sqlite3.connect(base / "moltbot.db")) as connection:
            assert connection.execute("SELECT count(*) FROM tombstones WHERE scrubbed").fetchone() == (399,)
        text = (base / "moltbot.db").read_bytes() + (base / "moltbot.db.backup").read_bytes()
        assert [user for user in users[:-1] if f"{MARK}{users.index(user)}-".encode() in text] == []
        assert users[-1].encode() in text


async def test_who_comes_back_goes_on_with_the_next_epoch_and_nothing_else(tmp_path: Path) -> None:
    base = tmp_path / "base"
    async with router_in(base) as router:
        assert await count(router, ADA) == (1, 1)
        await router.forget(ADA)
        assert await count(router, ADA) == (1, 2)
        await router.forget(ADA)
    async with router_in(base) as router:
        assert await count(router, ADA) == (1, 3)
        assert await count(router, "ben") == (1, 1)
    assert count_rows(base)["tombstones"] == 1


async def test_trees_that_nothing_else_could_delete(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    async with router_in(base) as router:
        await router.route(Request("leave_traces", ADA, MARK))
        root = base / "worker-0"
        nest(root / "state" / ADA, 3000)
        (root / "cache" / ADA / "link").symlink_to(outside)
        shutil.rmtree(root / "sessions" / ADA)
        (root / "sessions" / ADA).symlink_to(outside)
        await router.forget(ADA, PATIENCE)
        assert traces(base) == []
        assert (outside / "file").read_text() == "mine"


# --- what runs and waits ------------------------------------------------------------------------------------


async def test_what_waits_is_refused_and_what_runs_is_cancelled(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        running = asyncio.create_task(router.route(Request("hold", ADA, {"stage": str(at)})))
        other = asyncio.create_task(router.route(Request("hold", "ben", {"stage": str(at)})))
        await logged(at, f"begin {ADA} 0")
        await logged(at, "begin ben 0")
        waiting = asyncio.create_task(router.route(Request("step", ADA, {"stage": str(at), "n": 1})))
        await eventually(lambda: router.where(ADA).waiting == 1)
        await router.forget(ADA)
        with pytest.raises(UserForgetting) as caught:
            await waiting
        assert (caught.value.verdict, caught.value.retryable, caught.value.retry_after) == (
            "not_started",
            True,
            1.0,
        )
        with pytest.raises(UserForgetting) as caught:
            await running
        assert (caught.value.verdict, caught.value.retryable, caught.value.retry_after) == (
            "maybe_ran",
            False,
            None,
        )
        assert f"cancelled {ADA} 0" in log_lines(at)
        assert f"begin {ADA} 1" not in log_lines(at)
        assert not other.done()
        (at / "go").touch()
        assert (await other).success


async def test_who_ignores_the_cancellation_ends_with_the_worker(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    settings = {"handler": MISBEHAVIOURS, "worker_count": 2, "drain_timeout": 50}
    async with router_in(tmp_path / "base", **settings) as router:
        other = next(
            user for user in "bcdefgh" if router.get_worker_for_user(user) != router.get_worker_for_user(ADA)
        )
        await router.route(Request("count", other))
        running = asyncio.create_task(router.route(Request("ignores_cancellation", ADA, {"stage": str(at)})))
        await logged(at, "begin")
        with router.events() as events:
            await router.forget(ADA, PATIENCE)
            with pytest.raises(UserForgetting):
                await running
            await router.route(Request("count", "somebody"))
            while events._items:
                assert not isinstance(await anext(events), RequestOverdue)
        assert traces(tmp_path / "base") == []
        status = router.get_status()
        assert status is not None
        assert {worker.worker_id: worker.restart_count for worker in status.workers} == {
            router.where(other).worker_id: 0,
            **{w.worker_id: 1 for w in status.workers if w.worker_id != router.where(other).worker_id},
        }
        assert (await router.route(Request("count", other))).payload == 2


HOOK = """
import asyncio
from moltbot import handler, on_leave

@handler("echo")
async def echo(ctx, payload):
    ctx.state["a"] = payload
    return payload

@on_leave
async def stay(user):
    if user.user_id.startswith("ada"):
        await asyncio.sleep(600)
"""


async def test_a_worker_that_does_not_let_the_user_go_is_restarted(tmp_path: Path) -> None:
    (tmp_path / "stays.py").write_text(HOOK)
    settings = {"handler": str(tmp_path / "stays.py"), "drain_timeout": 50}
    async with router_in(tmp_path / "base", **settings) as router:
        await router.route(Request("echo", ADA, MARK))
        with router.events() as events:
            forgetting_it = asyncio.create_task(router.forget(ADA, PATIENCE))
            assert (await change_to(events, "draining")).reason == "overdue"
            await forgetting_it
        assert traces(tmp_path / "base") == []
        assert (await router.route(Request("echo", ADA, 1))).epoch == 2


SLOW_HOOK = """
import asyncio, pathlib
from moltbot import handler, on_leave

@handler("echo")
async def echo(ctx, payload):
    global go
    go = pathlib.Path(payload) / "go"

@on_leave
async def wait(user):
    while not go.exists():
        await asyncio.sleep(0.005)
"""


async def test_a_user_who_is_leaving_already_leaves_twice_and_the_worker_is_not_blamed(
    tmp_path: Path,
) -> None:
    at = stage(tmp_path / "stage")
    (tmp_path / "slow.py").write_text(SLOW_HOOK)
    settings = {"handler": str(tmp_path / "slow.py"), "user_idle_timeout": 20}
    async with router_in(tmp_path / "base", **settings) as router:
        await router.route(Request("echo", ADA, str(at)))
        await eventually(lambda: not router.where(ADA).loaded)
        again = asyncio.create_task(router.route(Request("echo", ADA, str(at))))
        await eventually(lambda: router.where(ADA).running == 1)
        asked = asyncio.create_task(router.forget(ADA, PATIENCE))
        with pytest.raises(UserForgetting):
            await again
        await eventually(lambda: not router.where(ADA).loaded)
        (at / "go").touch()
        await asked
        assert (await router.route(Request("echo", "ben", str(at)))).success
        status = router.get_status()
        assert status is not None
        assert status.workers[0].restart_count == 0


async def test_the_worker_may_be_down(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", restart_delay="1h") as router:
        await router.route(Request("leave_traces", ADA, MARK))
        status = router.get_status()
        assert status is not None
        assert status.workers[0].pid is not None
        with router.events() as events:
            os.kill(status.workers[0].pid, signal.SIGKILL)
            await change_to(events, "backoff")
        await router.forget(ADA)
        assert traces(tmp_path / "base") == []


async def test_the_worker_may_be_quarantined(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", max_restart_attempts=0) as router:
        await router.route(Request("leave_traces", ADA, MARK))
        with router.events() as events:
            status = router.get_status()
            assert status is not None
            assert status.workers[0].pid is not None
            os.kill(status.workers[0].pid, signal.SIGKILL)
            await change_to(events, "quarantined")
        await router.forget(ADA)
        assert traces(tmp_path / "base") == []


# --- who asks, and when -------------------------------------------------------------------------------------


async def test_two_who_ask_at_once_share_it_and_the_user_waits_outside(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        await count(router, ADA)
        assert router._directory is not None
        with held(router._directory):
            both = [asyncio.create_task(router.forget(ADA)) for _ in range(2)]
            for _ in range(5):
                await asyncio.sleep(0)
                with pytest.raises(UserForgetting) as caught:
                    await router.route(Request("echo", ADA))
                assert caught.value.code == "user_being_forgotten"
            assert router.where(ADA).epoch == 1
        await asyncio.gather(*both)
        assert count_rows(tmp_path / "base")["tombstones"] == 1
        assert await count(router, ADA) == (1, 2)


async def test_a_user_whose_first_pin_is_on_its_way(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        assert router._directory is not None
        with held(router._directory):
            first = asyncio.create_task(router.route(Request("count", ADA)))
            await eventually(lambda: router._directory is not None and bool(router._directory.loads()))
            asked = asyncio.create_task(router.forget(ADA))
            await asyncio.sleep(0)
            with pytest.raises(UserForgetting):
                await router.route(Request("count", ADA))
        with pytest.raises(UserForgetting) as caught:
            await first
        assert caught.value.verdict == "not_started"
        await asked
        assert traces(tmp_path / "base") == []
        assert await count(router, ADA) == (1, 2)


async def test_an_unknown_user(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        with pytest.raises(NotFound, match="not known here"):
            await router.forget("nobody")
        assert await count(router, "nobody") == (1, 1)
    with pytest.raises(NotRunning):
        await router.forget("nobody")


async def test_after_the_deadline_it_goes_on_and_failures_are_told_without_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    failures = [OSError(28, "No space left on device", f"/somewhere/{ADA}"), ValueError(ADA)]

    async def delete(base: Path, user_id: str, tag: str, original: Any = delete_user_files) -> None:
        await gate.wait()
        if failures:
            raise failures.pop()
        await original(base, user_id, tag)

    monkeypatch.setattr("moltbot.router.forgetting.delete_user_files", delete)
    caplog.set_level(logging.INFO)
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("leave_traces", ADA, MARK))
        with pytest.raises(Unavailable, match="goes on"):
            await router.forget(ADA, 0.01)
        with pytest.raises(UserForgetting):
            await count(router, ADA)
        gate.set()
        await router.forget(ADA, PATIENCE)
        assert traces(tmp_path / "base") == []
        assert "delete failed" in caplog.text
        assert router.keyed_hash.name(ADA) in caplog.text
        assert MARK not in caplog.text
