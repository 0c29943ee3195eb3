"""A worker whose directories grow too large: the rule, and what its callers and its handler see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import MoltbotError, StorageFull
from moltbot.core.events import StorageAlarm
from moltbot.gateway.server import Gateway
from moltbot.sandbox import pool as pool_module
from moltbot.sandbox.disk import DiskLimits, DiskUse
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.storage import StorageRule, StorageVerdict
from moltbot.sandbox.supervisor import Supervisor
from tests.fakes import PATIENCE, change_to, eventually, first_event
from tests.sandbox.pools import Running, answer, failure, running_pool
from tests.support import check_sentence, gateway_in, post

LIMITS = DiskLimits(max_size=1000, max_inodes=100)
FINE, NEAR, OVER = DiskUse(100, 10), DiskUse(800, 10), DiskUse(1001, 10)

GREEDY = """
import asyncio
from moltbot import handler

@handler("agent")
async def agent(ctx, payload):
    match payload:
        case ["fill", *places]:
            for place in places:
                for number in range(2):
                    (getattr(ctx, place) / f"{number}").write_bytes(b"x" * 900_000)
        case ["some", place]:
            (getattr(ctx, place) / "some").write_bytes(b"x" * 900_000)
            return "done"
        case ["many", place]:
            for number in range(1100):
                (getattr(ctx, place) / f"{number}").touch()
        case ["look", place]:
            return sorted(path.name for path in getattr(ctx, place).iterdir())
        case _:
            return "hello"
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError as error:
        print("told:", error, flush=True)
        raise
"""


# --- the rule ------------------------------------------------------------------------------------------


def judged(*uses: DiskUse, ready: bool = True) -> list[StorageVerdict]:
    rule = StorageRule(LIMITS)
    return [rule.judge(use, ready=ready) for use in uses]


def signs(verdicts: list[StorageVerdict]) -> list[str]:
    """Each verdict in letters: alarm (A if it is full), full, restart."""
    return [
        ("" if verdict.alarm is None else "A" if verdict.alarm.hard else "a")
        + ("f" if verdict.full else "")
        + ("r" if verdict.restart else "")
        for verdict in verdicts
    ]


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ([FINE, FINE], ["", ""]),
        ([NEAR, NEAR, NEAR], ["a", "", ""]),
        ([NEAR, FINE, NEAR], ["a", "", "a"]),
        ([NEAR, OVER, OVER], ["a", "Af", "fr"]),
        ([OVER, OVER, OVER, OVER], ["Af", "fr", "f", "f"]),
        ([OVER, FINE, OVER, OVER], ["Af", "", "Af", "fr"]),
        ([OVER, NEAR, OVER, OVER], ["Af", "", "Af", "fr"]),
        ([DiskUse(1000, 100), DiskUse(799, 79)], ["a", ""]),
        ([DiskUse(1, 101), DiskUse(1, 101)], ["Af", "fr"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else None,
)
def test_alarms_at_crossings_full_beyond_and_one_restart(uses: list[DiskUse], expected: list[str]) -> None:
    assert signs(judged(*uses)) == expected


@pytest.mark.parametrize(("size", "inodes"), [(1, 0), (0, 1)])
def test_who_still_grows_is_restarted_again(size: int, inodes: int) -> None:
    uses = [DiskUse(2000 + size * grown, 200 + inodes * grown) for grown in (0, 0, 0, 1, 1, 2)]
    assert signs(judged(*uses)) == ["Af", "fr", "f", "fr", "f", "fr"]


def test_who_shrinks_but_not_enough_is_let_be() -> None:
    assert signs(judged(*(DiskUse(size, 10) for size in (3000, 3000, 2000, 1500)))) == ["Af", "fr", "f", "f"]


def test_only_a_worker_that_is_up_is_restarted_and_nothing_is_forgotten_meanwhile() -> None:
    rule = StorageRule(LIMITS)
    verdicts = [rule.judge(OVER, ready=ready) for ready in (True, False, False, True, True)]
    assert signs(verdicts) == ["Af", "f", "f", "fr", "f"]


def test_the_reason_names_figures_and_setting() -> None:
    full, restart = judged(OVER, OVER)
    assert full.full == restart.restart
    assert full.full is not None
    assert "max_disk" in full.full
    [many] = judged(DiskUse(1, 101))
    assert many.full is not None
    assert "101 files and folders, the limit is 100 (max_inodes)" in many.full


# --- with real workers ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DiskUse]]:
    """Quick rounds, and every measurement that was made."""
    made: list[DiskUse] = []
    take_note = Supervisor.disk_measured

    def noted(self: Supervisor, use: DiskUse) -> None:
        made.append(use)
        take_note(self, use)

    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr(Supervisor, "disk_measured", noted)
    yield made  # noqa: PT022  # what is patched is restored after it


def greedy(tmp_path: Path, **settings: Any) -> Any:
    return running_pool(tmp_path, GREEDY, maxDisk="1MB", maxInodes=1000, **settings)


async def alarm(running: Running, *, full: bool) -> StorageAlarm:
    return await first_event(running.events, StorageAlarm, lambda event: event.full is full)


async def taken(running: Running, payload: Any) -> Any:
    """Ask again until requests are taken."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await running.ask(payload)
            except MoltbotError as error:
                if error.verdict != "not_started":
                    raise
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (["fill", "temp_dir", "cache_dir"], "the limit is 1MB (max_disk)"),
        (["many", "cache_dir"], "(max_inodes)"),
    ],
    ids=["bytes", "files"],
)
@pytest.mark.parametrize("level", ["auto", "directories"])
async def test_who_writes_too_much_is_told_why_and_starts_again_with_room(
    tmp_path: Path, level: str, request_: list[str], says: str
) -> None:
    async with greedy(tmp_path, isolation=level) as running:
        call = running.send(request_)
        error = await failure(call)
        assert isinstance(error, StorageFull)
        assert (error.verdict, error.retryable, error.worker) == ("maybe_ran", False, "worker-0")
        check_sentence(str(error))
        assert says in str(error)

        with pytest.raises(StorageFull) as refused:  # before anything else can happen
            running.send("hello")
        assert (refused.value.verdict, refused.value.retryable) == ("not_started", True)
        assert refused.value.retry_after
        assert says in str(refused.value)

        assert says in (await alarm(running, full=True)).detail
        await change_to(running.events, State.READY, incarnation=2)
        assert await taken(running, "hello") == "hello"
        assert await taken(running, ["look", "temp_dir"]) == []
        assert await taken(running, ["look", "cache_dir"]) == []
        last = running[0].last_exit
        assert last is not None
        assert last.reason == "over_disk"
        assert f"told: {error}" in running.log(), "the handler finds the reason in its CancelledError"


async def test_nearness_is_only_an_alarm(tmp_path: Path, rounds: list[DiskUse]) -> None:
    async with greedy(tmp_path) as running:
        assert await running.ask(["some", "state_dir"]) == "done"
        near = await alarm(running, full=False)
        assert (near.worker_id, "max_disk" in near.detail) == ("worker-0", True)
        since = len(rounds)
        await eventually(lambda: len(rounds) > since + 3)
        assert await running.ask("hello") == "hello"
        assert (running[0].slot.incarnation, running[0].last_exit) == (1, None)


async def test_what_is_kept_and_too_much_is_refused_without_restarts_until_there_is_room(
    tmp_path: Path, rounds: list[DiskUse]
) -> None:
    async with greedy(tmp_path) as running:
        assert isinstance(await failure(running.send(["fill", "state_dir"])), StorageFull)
        await change_to(running.events, State.READY, incarnation=2)
        since = len(rounds)
        await eventually(lambda: len(rounds) > since + 5)
        with pytest.raises(StorageFull, match="remove files, or raise the limit"):
            running.send("hello")
        assert running[0].slot.incarnation == 2, "a restart gained no room, and none will"
        for file in (running.base / "worker-0" / "state").rglob("[01]"):
            file.unlink()
        assert await taken(running, "hello") == "hello"
        assert running[0].slot.incarnation == 2


async def test_every_crossing_is_told_once(tmp_path: Path, rounds: list[DiskUse]) -> None:
    async with greedy(tmp_path) as running:
        with running.broadcast.subscribe() as events:
            assert isinstance(await failure(running.send(["fill", "state_dir"])), StorageFull)
            await change_to(running.events, State.READY, incarnation=2)
            since = len(rounds)
            await eventually(lambda: len(rounds) > since + 5)
            events.close()
            alarms = [event async for event in events if isinstance(event, StorageAlarm)]
        assert [event.full for event in alarms].count(True) == 1
        assert len(alarms) <= 2, "it may have come near before it went beyond"


def restarted(gateway: Gateway) -> bool:
    status = gateway.router.get_status()
    return status is not None and status.workers[0].restart_count == status.healthy_workers == 1


async def test_over_http_it_is_507(tmp_path: Path) -> None:
    handler = tmp_path / "greedy.py"
    handler.write_text(GREEDY)
    settings: dict[str, Any] = {"handler": str(handler), "max_disk": "1MB", "max_inodes": 1000}
    async with gateway_in(tmp_path / "base", **settings) as gateway:
        ran = await post(gateway, "agent", "ada", ["fill", "state_dir"])
        assert "max_disk" in ran.problem(507, "storage_full")
        assert ran.json["verdict"] == "maybe_ran"
        await eventually(lambda: restarted(gateway))
        refused = await post(gateway, "agent", "ada", "hello")
        assert "max_disk" in refused.problem(507, "storage_full")
        assert (refused.json["verdict"], refused.json["retryable"]) == ("not_started", True)
        assert int(refused.headers["Retry-After"]) > 0


async def test_a_worker_beyond_its_limit_costs_the_others_nothing(tmp_path: Path) -> None:
    async with greedy(tmp_path, workerCount=2) as running:
        call = running.send(["fill", "state_dir"], 0)
        beside = running.send(["some", "cache_dir"], 1)
        assert isinstance(await failure(call), StorageFull)
        assert await answer(beside) == "done"
        assert await running.ask("hello", 1) == "hello"
