"""A pool of real workers: all or nothing at the start, one at a time when recycled, nothing left at the end."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import BaseDirectoryError, BootError, NotFound, NotRunning
from moltbot.core.events import WorkerChanged
from moltbot.core.messages import Request
from moltbot.sandbox import pool as pool_module
from moltbot.sandbox.lifecycle import State
from tests.fakes import PATIENCE, all_gone, change_to, descendants, eventually, first_event, watch
from tests.sandbox.pools import OBEDIENT, Running, answer, failure, make_pool, running_pool

HANGING = (
    OBEDIENT + "\nfrom moltbot import on_start\n@on_start\nasync def hang(): await asyncio.sleep(1000)\n"
)


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.2)


async def boot_error(running: Running) -> BootError:
    """Start a pool that cannot boot; no process, thread or log handler of it may be left."""
    before = descendants()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(BootError) as caught:
            await running.pool.start()
    assert_nothing_left(running, before)
    return caught.value


def assert_nothing_left(running: Running, before: set[int]) -> None:
    assert descendants() <= before
    assert running.pool.workers == {}
    assert not running.pool.running
    assert "worker-logs" not in {thread.name for thread in threading.enumerate()}


# --- the start -----------------------------------------------------------------------------------------------


async def test_a_started_pool_has_every_worker_ready_and_described_on_disk(tmp_path: Path) -> None:
    async with running_pool(tmp_path, workerCount=3) as running:
        assert list(running.pool.workers) == ["worker-0", "worker-1", "worker-2"]
        for name, worker in running.pool.workers.items():
            assert (worker.state, worker.connected, worker.has_room) == (State.READY, True, True)
            described = json.loads((running.base / name / "sandbox.json").read_text())
            assert described["workerId"] == name
            assert described["incarnation"] == 1
            assert described["isolation"] == "directories"
            assert (running.base / name / "temp" / "1").is_dir()
        assert len({worker.pid for worker in running.pool.workers.values()}) == 3
        with pytest.raises(
            NotFound, match="there is no worker 'worker-9': there is worker-0, worker-1, worker-2"
        ):
            running.pool["worker-9"]
    assert "new -> starting" in (running.base / "logs" / "worker-pool.log").read_text()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("this is no python", "SyntaxError"),
        ("raise RuntimeError('tired')", "RuntimeError: tired"),
        ("x = 1", "registers no handler"),
        (
            OBEDIENT + "\nfrom moltbot import on_start\n@on_start\ndef fail(): raise ValueError('no key')",
            "no key",
        ),
    ],
    ids=["import", "syntax", "raises", "registers nothing", "on_start"],
)
async def test_a_handler_that_cannot_be_used_fails_the_start_and_says_why(
    tmp_path: Path, source: str, says: str
) -> None:
    error = await boot_error(make_pool(tmp_path, source, workerCount=2))
    assert says in str(error)
    assert (error.reason, error.code) == ("boot_failed", "boot_failed")
    assert error.worker is not None
    assert f"{error.worker} cannot boot" in str(error)
    assert f"{error.worker}/logs/worker.log" in str(error)


async def test_what_a_failed_worker_printed_is_in_its_log(tmp_path: Path) -> None:
    running = make_pool(tmp_path, "print('so far so good')\nraise RuntimeError('tired')")
    await boot_error(running)
    assert "#1 out so far so good" in running.log()
    assert "#1 err RuntimeError: tired" in running.log()


async def test_a_handler_that_exits_while_it_loads_fails_the_start(tmp_path: Path) -> None:
    error = await boot_error(make_pool(tmp_path, "import os; os._exit(4)"))
    assert error.reason == "boot_failed"


async def test_a_worker_that_is_never_ready_fails_the_start_at_the_boot_timeout(tmp_path: Path) -> None:
    error = await boot_error(make_pool(tmp_path, HANGING, bootTimeout="300ms"))
    assert error.reason == "boot_timeout"
    assert "not ready within 0.3 s" in str(error)


async def test_a_command_that_does_not_exist_fails_the_start(tmp_path: Path) -> None:
    running = make_pool(tmp_path, workerCommand=["/no/such/program"])
    error = await boot_error(running)
    assert error.reason == "boot_failed"
    assert "cannot run the worker command /no/such/program" in running.log()


async def test_a_directory_that_cannot_be_made_fails_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def make_no_trash(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "trash":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, *args, **kwargs)

    running = make_pool(tmp_path, workerCount=2)
    monkeypatch.setattr(Path, "mkdir", make_no_trash)
    before = descendants()
    with pytest.raises(BaseDirectoryError, match=r"trash cannot be made \(No space left on device\)"):
        await running.pool.start()
    assert_nothing_left(running, before)


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_stop_during_the_start_ends_it(tmp_path: Path) -> None:
    before = descendants()
    running = make_pool(tmp_path, HANGING, workerCount=2)
    starting = asyncio.create_task(running.pool.start())
    await change_to(running.events, State.STARTING, worker="worker-1")
    async with asyncio.timeout(PATIENCE):
        await running.pool.stop()
        with pytest.raises(NotRunning):
            await starting
    assert_nothing_left(running, before)


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    before = descendants()
    running = make_pool(tmp_path, HANGING, workerCount=2)
    starting = asyncio.create_task(running.pool.start())
    await change_to(running.events, State.STARTING, worker="worker-1")
    await eventually(lambda: len(descendants() - before) >= 2)
    starting.cancel()
    starting.cancel()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert_nothing_left(running, before)


async def test_stops_may_be_repeated_and_a_stopped_pool_starts_again(tmp_path: Path) -> None:
    running = make_pool(tmp_path)
    await running.pool.stop()
    for incarnation in (1, 2):
        before = descendants()
        async with asyncio.timeout(PATIENCE):
            await running.pool.start()
            assert running[0].slot.incarnation == incarnation, "numbers go on over a restart of the gateway"
            await asyncio.gather(running.pool.stop(), running.pool.stop())
            await running.pool.stop()
        assert_nothing_left(running, before)


async def test_a_stop_lets_running_requests_end(tmp_path: Path) -> None:
    release = tmp_path / "release"
    async with running_pool(tmp_path) as running:
        call = running.send(["until", str(release)])
        stopping = asyncio.create_task(running.pool.stop())
        await change_to(running.events, State.DRAINING)
        release.touch()
        assert await answer(call) == "done"
        await stopping


async def test_a_stop_does_not_wait_longer_than_the_drain_timeout(tmp_path: Path) -> None:
    async with running_pool(tmp_path, drainTimeout="200ms") as running:
        calls = [running.send(what) for what in ("wait", "block the loop")]
        async with asyncio.timeout(PATIENCE):
            await running.pool.stop()
        for call in calls:
            assert (await failure(call)).reason == "stopped"


async def test_a_stop_also_ends_what_the_handler_left_running(tmp_path: Path) -> None:
    source = OBEDIENT + (
        "\nimport subprocess\n"
        "@handler('spawn')\n"
        "async def spawn(ctx, payload):\n"
        "    return subprocess.Popen(['sleep', '1000'], start_new_session=True).pid\n"
    )
    async with running_pool(tmp_path, source) as running:
        call = running[0].dispatch(Request("spawn", "a", None), "r1", 1, lambda _: None)
        left_behind = watch(await answer(call))
    assert await all_gone(left_behind, 0) == [], "it is gone before the stop returns"


# --- recycling -------------------------------------------------------------------------------------------------------------


async def test_workers_that_are_due_together_are_recycled_one_at_a_time(tmp_path: Path) -> None:
    async with running_pool(tmp_path, workerCount=3, maxRequests=2) as running:
        calls = [running.send("hello", index) for index in range(3) for _ in range(2)]
        assert [await answer(call) for call in calls] == ["hello"] * 6
        states = {f"worker-{index}": str(State.READY) for index in range(3)}
        renewed: set[str] = set()

        def all_renewed(event: WorkerChanged) -> bool:
            if event.previous == State.NEW or (event.incarnation == 1 and event.state == State.READY):
                return False  # of the start
            states[event.worker_id] = event.state
            assert sum(state != State.READY for state in states.values()) <= 1, states
            if event.state == State.READY:
                renewed.add(event.worker_id)
            return len(renewed) == 3

        await first_event(running.events, WorkerChanged, all_renewed)
        for worker in running.pool.workers.values():
            assert (worker.slot.incarnation, worker.slot.budget.deaths) == (2, 0)
            assert worker.last_exit is not None
            assert (worker.last_exit.reason, worker.last_exit.detail) == ("recycled", "2 requests served")
            assert worker.life is not None
            assert worker.life.served == 0


async def test_a_worker_that_dies_while_it_drains_gives_the_turn_on(tmp_path: Path) -> None:
    async with running_pool(tmp_path, workerCount=2, maxRequests=1) as running:
        release = tmp_path / "release"
        running.send("wait", 0)
        await change_to(running.events, State.DRAINING, worker="worker-0")
        second = running.send(["until", str(release)], 1)
        release.touch()
        assert await answer(second) == "done"
        assert running[1].state is State.READY, "it is due, but it is not its turn"
        pid = running[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await change_to(running.events, State.READY, worker="worker-1", incarnation=2)
        exit = running[0].last_exit
        assert exit is not None
        assert exit.reason == "crashed"


# --- measurements -----------------------------------------------------------------------------------------------------------


async def test_every_worker_is_measured_and_beats(tmp_path: Path) -> None:
    async with running_pool(tmp_path, heartbeatInterval="50ms") as running:
        life = running[0].life
        assert life is not None
        await eventually(lambda: life.usage.memory > 1 << 20)
        first = life.last_beat_at
        await eventually(lambda: life.last_beat_at not in (None, first))
        assert life.usage.cpu_seconds > 0
