"""One real worker in every kind of trouble: it ends for the right reason, its requests get verdicts, and it comes back."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import Cancelled, InvalidRequest, RequestTimeout, Unavailable, WorkerDied
from moltbot.core.events import RequestOverdue
from moltbot.core.messages import Request
from moltbot.sandbox import pool as pool_module
from moltbot.sandbox import requests as requests_module
from moltbot.sandbox.lifecycle import State
from tests.fakes import change_to, eventually, first_event
from tests.sandbox.pools import OBEDIENT, Running, answer, failure, running_pool


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.2)


async def back_after(running: Running, reason: str, *, worker: str = "worker-0") -> str:
    """Wait until the second incarnation is READY; returns the detail of the first one's end, which was for `reason`."""
    await change_to(running.events, State.READY, worker=worker, incarnation=2)
    exit = running.pool[worker].last_exit
    assert exit is not None
    assert (exit.incarnation, exit.reason) == (1, reason), exit
    return exit.detail or ""


# --- deaths ------------------------------------------------------------------------------------------------------


async def test_a_killed_worker_is_back_under_its_name_with_its_directories(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as running:
        worker = running[0]
        first = await running.ask("pid")
        assert worker.pid == first, "the pid that is shown is the worker's, not its guard's"
        kept = running.base / "worker-0" / "sessions" / "kept"
        kept.write_text("kept")
        call = running.send("wait")
        os.kill(first, signal.SIGKILL)
        error = await failure(call)
        assert isinstance(error, WorkerDied)
        assert (error.verdict, error.reason, error.worker) == ("maybe_ran", "crashed", "worker-0")
        await back_after(running, "crashed")
        assert (worker.worker_id, worker.slot.incarnation, worker.counters.restarts) == ("worker-0", 2, 1)
        assert await running.ask("pid") == worker.pid != first
        assert kept.read_text() == "kept"
        assert running.send("hello").id > call.id, (
            "no late frame can be taken for the answer to another request"
        )
        await eventually(lambda: os.listdir(running.base / "worker-0" / "temp") == ["2"])


async def test_a_handler_that_exits_is_a_crash_with_its_status(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as running:
        error = await failure(running.send("exit"))
        assert isinstance(error, WorkerDied)
        detail = await back_after(running, "crashed")
        assert "exit status 9" in detail


async def test_a_stopped_worker_is_unresponsive(tmp_path: Path) -> None:
    async with running_pool(tmp_path, heartbeatInterval="100ms") as running:
        pid = running[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await back_after(running, "unresponsive")


async def test_a_worker_whose_interpreter_is_locked_is_unresponsive_and_shows_its_stacks(
    tmp_path: Path,
) -> None:
    async with running_pool(tmp_path, heartbeatInterval="300ms") as running:
        error = await failure(running.send("hold the interpreter's lock"))
        assert error.reason == "unresponsive"
        await back_after(running, "unresponsive")
        await eventually(lambda: "in agent" in running.log())


async def test_a_blocked_loop_with_work_is_wedged_and_shows_its_stacks(tmp_path: Path) -> None:
    async with running_pool(tmp_path, heartbeatInterval="1s", maxLoopLag="200ms") as running:
        error = await failure(running.send("block the loop"))
        assert (error.reason, error.verdict) == ("wedged", "maybe_ran")
        await back_after(running, "wedged")
        await eventually(lambda: "obedient.py" in running.log() and "in agent" in running.log())


async def test_a_worker_over_its_memory_is_killed(tmp_path: Path) -> None:
    source = (
        OBEDIENT
        + '\n@handler("hold")\nasync def hold(ctx, size):\n    block = b"x" * size\n    await asyncio.sleep(1000)\n'
    )
    async with running_pool(tmp_path, source, maxMemory="64MB") as running:
        call = running[0].dispatch(Request("hold", "a", 200 << 20), "r1", 1, lambda _: None)
        error = await failure(call)
        assert error.reason == "over_memory"
        detail = await back_after(running, "over_memory")
        assert str(64 << 20) in detail


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, b"\x00\x00\x00\x01\x80", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["oversized", "empty map", "http"],
)
async def test_garbage_on_the_socket_restarts_that_worker_and_no_other(tmp_path: Path, data: bytes) -> None:
    async with running_pool(tmp_path, workerCount=2) as running:
        neighbour = running[1].pid
        release = tmp_path / "release"
        held = running.send(["until", str(release)], index=1)
        error = await failure(running.send(["write to descriptor 3", data]))
        assert isinstance(error, WorkerDied)
        detail = await back_after(running, "crashed")
        assert "it broke the frame protocol" in detail
        assert not held.ended
        release.touch()
        assert await answer(held) == "done"
        assert (running[1].pid, running[1].slot.incarnation) == (neighbour, 1)


# --- giving up --------------------------------------------------------------------------------------------------------


async def test_a_crash_loop_ends_in_quarantine(tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    source = OBEDIENT + f"\nif os.path.exists({str(poison)!r}): os._exit(5)\n"
    async with running_pool(tmp_path, source, maxRestartAttempts=2) as running:
        poison.touch()
        await failure(running.send("exit"))
        last = await change_to(running.events, State.QUARANTINED)
        assert (last.incarnation, last.reason) == (3, "boot_failed")
        worker = running[0]
        assert (worker.connected, worker.has_room, worker.pid, worker.root_pid) == (False, False, None, None)
        with pytest.raises(Unavailable, match="worker-0 is quarantined"):
            running.send("pid")


# --- in order ------------------------------------------------------------------------------------------------------------


async def test_a_worker_over_its_soft_memory_is_recycled_after_its_requests(tmp_path: Path) -> None:
    async with running_pool(tmp_path, softMemory="96MB") as running:
        release = tmp_path / "release"
        held = running.send(["until", str(release)])
        await running.ask(["allocate", 150 << 20])
        await change_to(running.events, State.DRAINING)
        with pytest.raises(Unavailable):
            running.send("pid")
        assert not held.ended, "what runs may end"
        release.touch()
        assert await answer(held) == "done"
        await back_after(running, "recycled")
        assert running[0].slot.budget.deaths == 0


async def test_a_handler_that_ignores_its_cancellation_is_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "CANCEL_GRACE", 0.1)
    async with running_pool(tmp_path, requestTimeout="300ms", drainTimeout="200ms") as running:
        call = running.send("ignore cancellation")
        error = await failure(call)
        assert isinstance(error, RequestTimeout)
        assert (error.verdict, call.ended) == ("maybe_ran", False), (
            "its caller waits no longer, its lane is held"
        )
        overdue = await first_event(running.events, RequestOverdue)
        assert (overdue.user_id, overdue.request_id, overdue.worker_id) == ("a", "r1", "worker-0")
        await back_after(running, "overdue")
        assert call.ended
        assert running[0].slot.budget.deaths == 0, "that is the user's doing, not the worker's"


async def test_a_handler_that_obeys_its_cancellation_costs_nothing(tmp_path: Path) -> None:
    async with running_pool(tmp_path, requestTimeout="100ms") as running:
        call = running.send("wait")
        assert isinstance(await failure(call), RequestTimeout)
        await eventually(lambda: call.ended)
        assert await running.ask("pid") == running[0].pid
        assert running[0].slot.incarnation == 1


async def test_a_request_may_be_shorter_but_not_longer_than_the_limit(tmp_path: Path) -> None:
    async with running_pool(tmp_path, requestTimeout="100ms") as running:
        for timeout, shown in ((50, "50ms"), (1_000_000, "100ms")):
            request = Request("agent", "a", "wait", timeout=timeout)
            call = running[0].dispatch(request, "r1", 1, lambda _: None)
            assert f"longer than {shown}" in str(await failure(call))


# --- small things -------------------------------------------------------------------------------------------------------


async def test_a_payload_that_cannot_be_sent_harms_nobody(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as running:
        with pytest.raises(InvalidRequest):
            running.send(object())
        assert (await running.ask("hello"), running[0].in_flight) == ("hello", 0)


async def test_a_user_arrives_once_and_again_under_a_new_epoch(tmp_path: Path) -> None:
    source = OBEDIENT + (
        "\nfrom moltbot import on_arrive, on_leave\n"
        "@on_arrive\ndef hello(user): print('arrive', user.user_id, user.epoch, flush=True)\n"
        "@on_leave\ndef bye(user): print('leave', user.user_id, flush=True)\n"
    )
    async with running_pool(tmp_path, source) as running:
        worker = running[0]
        await running.ask(1)
        await running.ask(2)
        assert worker.loaded_users == ["a"]
        worker.unload("a")
        assert not worker.is_loaded("a")
        await eventually(lambda: "leave a" in running.log())
        call = worker.dispatch(Request("agent", "a", 3), "r1", 2, lambda _: None)
        assert (await call.next()).frame["payload"] == 3
        await eventually(lambda: "arrive a 2" in running.log())
        assert running.log().count("arrive a 1") == 1


async def test_a_full_worker_has_no_room(tmp_path: Path) -> None:
    async with running_pool(tmp_path, maxConcurrent=2) as running:
        calls = [running.send("wait") for _ in range(2)]
        assert (running[0].in_flight, running[0].has_room) == (2, False)
        for call in calls:
            call.abandon(Cancelled("enough"))
            assert isinstance(await failure(call), Cancelled)
        await eventually(lambda: running[0].has_room)


async def test_what_is_planted_for_the_next_incarnation_does_not_stop_it(tmp_path: Path) -> None:
    async with running_pool(tmp_path) as running:
        temp = running.base / "worker-0" / "temp"
        for number in range(2, 20):
            (temp / str(number)).mkdir()
        await failure(running.send("exit"))
        await change_to(running.events, State.READY, incarnation=2)
        await eventually(lambda: os.listdir(temp) == ["2"])


UNASKED = """
import asyncio, os
import msgpack
from moltbot import handler

def frame(**fields):
    body = msgpack.packb(fields)
    return len(body).to_bytes(4, "big") + body

@handler("agent")
async def agent(ctx, payload):
    os.write(3, frame(**payload) * 100)
    await asyncio.Event().wait()
"""


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "ready", "v": 1, "pid": 1, "handlers": []},
        {"kind": "pong"},
        {"kind": "drained"},
        {"kind": "arrived", "user_id": "stranger", "epoch": 1},
        {"kind": "left", "user_id": "stranger", "epoch": 1},
        {"kind": "beat", "lag_ms": 0, "in_flight": 0, "at": 0},
        {"kind": "error", "id": 0, "code": "x", "message": "a\nforged line", "details": None},
    ],
    ids=lambda fields: str(fields["kind"]),
)
async def test_a_worker_that_says_what_nobody_asked_is_ended(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with running_pool(tmp_path, UNASKED) as running:
        error = await failure(running.send(fields))
        assert "\n" not in str(error)
        assert error.worker == "worker-0"
        await change_to(running.events, State.READY, incarnation=2)
