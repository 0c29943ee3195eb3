"""Handlers of every bad kind, through HTTP: each costs its own request at most, and its answer says what happened."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moltbot.gateway.server import Gateway
from moltbot.sandbox import pool, requests
from tests.fakes import change_to, eventually
from tests.support import MISBEHAVIOURS, gateway_in, log_lines, logged, post, stage

BAD, GOOD = "user-a", "user-b"  # on worker-0 and worker-1


@asynccontextmanager
async def two_workers(tmp_path: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway in which `GOOD` must be served by one process from first to last, whatever `BAD` does."""
    base: dict[str, Any] = {"worker_count": 2, "restart_delay": 0, "handler": MISBEHAVIOURS}
    async with gateway_in(tmp_path / "base", **(base | settings)) as gateway:
        assert (await post(gateway, "count", BAD)).json["workerId"] == "worker-0"
        assert (await post(gateway, "count", GOOD)).json["workerId"] == "worker-1"
        pid = (status := gateway.router.get_status()) and status.workers[1].pid
        yield gateway
        assert (await post(gateway, "count", GOOD)).json["payload"] == 2
        status = gateway.router.get_status()
        assert status is not None
        assert (status.workers[1].pid, status.workers[1].restart_count) == (pid, 0)


async def still_works(gateway: Gateway, restarts: int) -> None:
    """The bad user is served again, on the same worker, with the state of before."""
    assert (await post(gateway, "count", BAD)).json["payload"] == 2
    status = gateway.router.get_status()
    assert status is not None
    assert status.workers[0].restart_count == restarts


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("garbage", "broke the frame protocol"),
        ("forges", "broke the frame protocol"),
        ("closes", "worker-0"),
        ("exits", "worker-0"),
        ("aborts", "worker-0"),
    ],
)
async def test_what_ends_the_process_is_told_and_mended(tmp_path: Path, kind: str, says: str) -> None:
    async with two_workers(tmp_path) as gateway:
        answer = await post(gateway, kind, BAD)
        assert says in answer.problem(502, "worker_died")
        assert (answer.json["verdict"], answer.json["worker"]) == ("maybe_ran", "worker-0")
        assert answer.json["reason"] == "crashed"
        await still_works(gateway, restarts=1)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sys_exits", "raised SystemExit: 3"),
        ("sys_exits_in_a_thread", "raised SystemExit: leaving"),
        ("interrupts", "raised KeyboardInterrupt"),
        ("recurses", "raised RecursionError"),
        ("allocates", "raised MemoryError"),
    ],
)
async def test_what_is_only_an_exception_costs_no_process(tmp_path: Path, kind: str, says: str) -> None:
    async with two_workers(tmp_path) as gateway:
        assert says in (await post(gateway, kind, BAD)).problem(500, "handler_error")
        await still_works(gateway, restarts=0)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("unprintable", "Unprintable: (its message cannot be shown)"),
        ("surrogate", "ValueError: ?"),
        ("long", "ValueError: xxx"),
        ("group", "several (2 sub-exceptions)"),
        ("exit", "SystemExit: 5"),
        ("generator", "GeneratorExit"),
        ("cancelled", "raised CancelledError by itself"),
        ("timeout", "TimeoutError"),
        ("memory", "MemoryError"),
        ("recursion", "RecursionError: too deep"),
    ],
)
async def test_every_exception_is_told_in_a_sentence_and_spoils_no_state(
    tmp_path: Path, what: str, says: str
) -> None:
    async with two_workers(tmp_path) as gateway:
        sentence = (await post(gateway, "raises", BAD, what)).problem(500, "handler_error")
        assert says in sentence
        assert len(sentence) < 2200
        await still_works(gateway, restarts=0)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("object", "a value that msgpack cannot carry"),
        ("function", "a value that msgpack cannot carry"),
        ("set", "a value that msgpack cannot carry"),
        ("huge int", "a value that msgpack cannot carry"),
        ("itself", "a value that msgpack cannot carry"),
        ("deep", "a value that msgpack cannot carry"),
        ("surrogate", "a value that msgpack cannot carry"),
        ("bytes", "bytes cannot be carried as JSON: return text"),
        ("nan", "nan and infinity cannot be carried as JSON"),
        ("infinity", "cannot be carried as JSON"),
        ("key of bytes", "a key that is no text cannot be carried as JSON"),
    ],
)
async def test_an_answer_that_cannot_go_out_is_an_error_of_the_handler(
    tmp_path: Path, what: str, says: str
) -> None:
    async with two_workers(tmp_path) as gateway:
        assert says in (await post(gateway, "returns", BAD, what)).problem(500, "handler_error")
        await still_works(gateway, restarts=0)


async def test_an_answer_over_the_frame_limit_is_an_error_too(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as gateway:
        (await post(gateway, "returns", BAD, "too large")).problem(500, "reply_too_large")
        await still_works(gateway, restarts=0)


@pytest.mark.parametrize("what", ["object", "bytes", "nan"])
async def test_a_chunk_that_cannot_go_out_is_an_error_of_the_handler(tmp_path: Path, what: str) -> None:
    async with two_workers(tmp_path) as gateway:
        (await post(gateway, "yields", BAD, what)).problem(500, "handler_error")
        await still_works(gateway, restarts=0)


@pytest.mark.parametrize(("what", "says"), [("object", "msgpack"), ("large", "ctx.state has")])
async def test_state_that_cannot_be_kept_fails_the_request_and_keeps_the_old(
    tmp_path: Path, what: str, says: str
) -> None:
    async with two_workers(tmp_path) as gateway:
        assert says in (await post(gateway, "spoils_state", BAD, what)).problem(500, "handler_error")
        await still_works(gateway, restarts=0)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("blocks", {"max_loop_lag": 300, "heartbeat_interval": 100}, "wedged"),
        ("holds_the_lock", {"heartbeat_interval": 100}, "unresponsive"),
    ],
)
async def test_a_stuck_worker_is_killed_for_the_right_reason(
    tmp_path: Path, kind: str, settings: dict[str, Any], reason: str
) -> None:
    at = stage(tmp_path / "stage")
    async with two_workers(tmp_path, **settings) as gateway:
        answer = await post(gateway, kind, BAD, {"stage": str(at)})
        answer.problem(502, "worker_died")
        assert answer.json["reason"] == reason
        await still_works(gateway, restarts=1)
        log = tmp_path / "base" / "worker-0" / "logs" / "worker.log"
        await eventually(lambda: kind in contents(log))  # the stacks were written down before the kill


@pytest.mark.parametrize("kind", ["ignores_cancellation", "never_ends"])
async def test_a_request_that_ignores_its_end_costs_its_worker_and_counts_against_its_user(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "CANCEL_GRACE", 0.1)
    at = stage(tmp_path / "stage")
    async with two_workers(tmp_path, drain_timeout=0) as gateway:
        with gateway.router.events() as events:
            answer = await post(gateway, kind, BAD, {"stage": str(at)}, timeout=100)
            answer.problem(504, "timeout")
            assert gateway.router.where(BAD).running == 1  # its lane is held until it has really ended
            await change_to(events, "ready")  # the grace is over
        await eventually(lambda: gateway.router.where(BAD).overdue == 1)
        await still_works(gateway, restarts=1)
        status = gateway.router.get_status()
        assert status is not None
        assert status.workers[0].last_exit is not None
        assert status.workers[0].last_exit.reason == "overdue"


async def test_a_worker_that_uses_too_much_memory_is_killed(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    settings = {"max_memory": "64MB", "soft_memory": "63MB", "drain_timeout": "10m"}
    async with two_workers(tmp_path, **settings) as gateway:
        answer = await post(gateway, "grows", BAD, {"stage": str(at)})
        answer.problem(502, "worker_died")
        assert answer.json["reason"] in ("over_memory", "recycled")
        await still_works(gateway, restarts=1)


def contents(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def log_size(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "base" / "worker-0" / "logs").iterdir())


async def test_a_handler_that_prints_a_gigabyte_fills_no_disk_and_delays_nobody(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as gateway:
        printing = asyncio.create_task(post(gateway, "prints", BAD))
        log = tmp_path / "base" / "worker-0" / "logs" / "worker.log"
        served = 0
        while not printing.done() and "bytes were dropped here" not in contents(log):
            assert (await post(gateway, "count", "user-c")).status == 200
            served += 1
        assert served > 0
        printing.cancel()
        await eventually(lambda: gateway.router.where(BAD).running == 0)
        assert log_size(tmp_path) < 16 << 20
        await still_works(gateway, restarts=0)


async def test_what_a_handler_prints_plays_no_tricks_on_a_terminal(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as gateway:
        await post(gateway, "fills_the_log", BAD)
        log = tmp_path / "base" / "worker-0" / "logs" / "worker.log"
        await eventually(lambda: "and \\x00 bytes" in contents(log))
        assert not [byte for byte in log.read_bytes() if byte < 32 and byte != 10]


async def test_three_thousand_nested_folders_in_temp_hinder_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "HEALTH_SECONDS", 3600)  # this is about restarts: no measurement may come first
    async with two_workers(tmp_path) as gateway:
        start = (await post(gateway, "nests", BAD, 3000)).json["payload"]
        assert start.endswith(BAD)
        nested = tmp_path / "base" / "worker-0" / "temp" / "1" / Path(start).name / "d" / "d"
        assert nested.is_dir()
        with gateway.router.events() as events:
            (await post(gateway, "exits", BAD)).problem(502, "worker_died")
            await change_to(events, "ready")
        await still_works(gateway, restarts=1)
        assert not nested.exists()
        await eventually(lambda: not os.listdir(tmp_path / "base" / "trash"))  # and deleted in the end


async def test_a_user_whose_handler_hangs_is_the_only_one_who_waits(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with two_workers(tmp_path, drain_timeout=0) as gateway:
        hanging = asyncio.create_task(post(gateway, "ignores_cancellation", BAD, {"stage": str(at)}))
        await logged(at, "begin")
        on_the_same_worker = next(
            user
            for user in (f"user-{n}" for n in range(100))
            if gateway.router.get_worker_for_user(user) == "worker-0" and user != BAD
        )
        assert (await post(gateway, "count", on_the_same_worker)).json["workerId"] == "worker-0"
        hanging.cancel()
        await eventually(lambda: "ignored" in log_lines(at))
        assert (await post(gateway, "count", on_the_same_worker)).json["payload"] == 2
