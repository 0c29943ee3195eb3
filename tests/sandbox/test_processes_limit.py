"""How many processes and threads a worker may have: by sampling, and at once where the kernel counts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from moltbot.core.errors import WorkerDied
from moltbot.sandbox import pool as pool_module
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.health import Sample, judge
from moltbot.sandbox.isolation.checkup import examine
from moltbot.sandbox.lifecycle import ExitReason, State
from moltbot.sandbox.memory import Usage, measure
from moltbot.sandbox.policies import limits_of
from tests.fakes import all_gone, change_to, eventually, watch
from tests.sandbox.pools import failure, running_pool

FEW: dict[str, Any] = {"maxProcesses": 8}
SAMPLED: dict[str, Any] = {"maxProcesses": 20, "workerCount": 3}
"""An ordinary user's workers are bounded by the kernel too, but all together: one alone by sampling."""
HEALTHY = Sample(since_beat=1.0, lag=0.0, in_flight=0, memory=100, tasks=3)
BUSY = """
import asyncio, subprocess, threading
from moltbot import handler

@handler("agent")
async def agent(ctx, payload):
    match payload:
        case ["processes", count]:
            pids, refused = [], 0
            for _ in range(count):
                try:
                    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                    pids.append(child.pid)
                except BlockingIOError:
                    refused += 1
            return [pids, refused]
        case ["processes and wait", count]:
            for _ in range(count):
                subprocess.Popen(["sleep", "1000"], start_new_session=True)
        case ["threads and wait", count]:
            for _ in range(count):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        case _:
            return "hello"
    await asyncio.sleep(1000)
"""


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.1)


# --- by sampling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["processes and wait", "threads and wait"])
async def test_a_worker_with_too_many_is_killed_and_comes_back(tmp_path: Path, kind: str) -> None:
    async with running_pool(tmp_path, BUSY, isolation="directories", **SAMPLED) as running:
        error = await failure(running.send([kind, 25]))
        assert isinstance(error, WorkerDied)
        assert (error.reason, error.verdict) == ("over_processes", "maybe_ran")
        await change_to(running.events, State.READY, incarnation=2)
        last = running[0].last_exit
        assert last is not None
        assert last.reason == "over_processes"
        assert last.detail is not None
        assert last.detail.endswith("processes and threads, the limit is 22"), (
            "with room for what runs the worker"
        )
        assert await running.ask("hello") == "hello"


async def test_what_it_had_started_is_gone_with_it(tmp_path: Path) -> None:
    async with running_pool(tmp_path, BUSY, isolation="directories", **SAMPLED) as running:
        root = running[0].root_pid
        assert root is not None
        running.send(["processes and wait", 25])
        await eventually(lambda: len(psutil.Process(root).children(recursive=True)) > 8)
        family = watch(*(child.pid for child in psutil.Process(root).children(recursive=True)))
        await change_to(running.events, State.READY, incarnation=2)
        assert await all_gone(family) == []


async def test_a_worker_within_its_limit_is_let_be(tmp_path: Path) -> None:
    async with running_pool(tmp_path, BUSY, isolation="directories", **FEW) as running:
        life = running[0].life
        assert life is not None
        before = life.usage.tasks
        pids, refused = await running.ask(["processes", 3])
        assert (len(pids), refused) == (3, 0)
        await eventually(lambda: life.usage.tasks >= before + 3)
        assert await running.ask("hello") == "hello"
        assert running[0].slot.incarnation == 1


async def test_where_the_kernel_counts_no_more_are_made_and_the_worker_lives(
    tmp_path: Path,
) -> None:
    if not (
        await examine(PoolConfig.read({"sandbox_base_dir": tmp_path, "isolation": "bubblewrap"}))
    ).sufficient:
        pytest.skip("bubblewrap does not work here")
    async with running_pool(tmp_path, BUSY, isolation="bubblewrap", **FEW) as running:
        pids, refused = await running.ask(["processes", 40])
        assert 0 < len(pids) < 8
        assert len(pids) + refused == 40
        life = running[0].life
        assert life is not None
        await eventually(lambda: life.usage.tasks > len(pids))
        assert await running.ask("hello") == "hello"
        assert running[0].slot.incarnation == 1, "it may use what it may have"


# --- the judgement, and the measurement ----------------------------------------------------------------


def test_the_limit_itself_is_allowed_and_what_runs_the_worker_is_not_counted() -> None:
    limits = limits_of(PoolConfig.read(FEW))
    assert limits.max_tasks == 10
    within, beyond = (judge(sample, limits) for sample in (with_tasks(10), with_tasks(11)))
    assert within is None
    assert beyond is not None
    assert (beyond.reason, beyond.detail) == (
        ExitReason.OVER_PROCESSES,
        "11 processes and threads, the limit is 10",
    )


def with_tasks(tasks: int) -> Sample:
    return replace(HEALTHY, tasks=tasks)


PARENT = (
    "import subprocess, sys, threading\n"
    "for _ in range({processes}): subprocess.Popen(['sleep', '1000'])\n"
    "for _ in range({threads}): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read()\n"
)


@contextmanager
def family(processes: int, threads: int) -> Iterator[int]:
    program = PARENT.format(processes=processes, threads=threads)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        children = psutil.Process(process.pid).children()
        yield process.pid
        for child in children:
            child.kill()
        process.kill()


def test_processes_and_their_threads_are_counted() -> None:
    with family(processes=3, threads=2) as pid:
        usage = measure(pid, 100)
    assert usage is not None
    assert usage.tasks == 1 + 2 + 3
    assert usage.memory > 1 << 20


def test_so_many_that_each_cannot_be_looked_at_are_counted_only() -> None:
    with family(processes=6, threads=0) as pid:
        assert measure(pid, 6) == Usage(memory=0, cpu_seconds=0.0, tasks=7)
        looked_at = measure(pid, 7)
    assert looked_at is not None
    assert looked_at.memory > 0
