"""A process tree behind `bwrap`, of which we see the outside only: how its end is told, which process is the worker, what is left.

The same without a namespace, with a guard, is in `test_boot.py`. What a worker can reach from inside is in `tests/escape/`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from moltbot.core.errors import IsolationUnavailable
from moltbot.sandbox import process as process_module
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.choice import choose_wall
from moltbot.sandbox.isolation.plan import Wall
from moltbot.sandbox.launch import STATUS_PIPE, LaunchSpec, Word, launch_spec
from tests.fakes import all_gone, descendants, pid_inside, pids_outside, watch
from tests.legit.walls import unavailable
from tests.sandbox.spawned import Spawned, config_of, made, python, spawned, spawned_from
from tests.sandbox.test_boot import RUNAWAY, SAY, WAIT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's own")


@asynccontextmanager
async def behind_bwrap(tmp_path: Path, program: str) -> AsyncIterator[Spawned]:
    """A program behind the strongest wall; skips if it does not work on this machine."""
    command = python(program)
    wall = await wall_for(tmp_path, command)
    async with spawned(made(tmp_path / "base", wall.owner("worker-0")), command, wall=wall) as child:
        yield child


async def wall_for(tmp_path: Path, command: list[str]) -> Wall:
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    try:
        return (await choose_wall(config_of(command, isolation="bubblewrap"), base)).wall
    except IsolationUnavailable as error:
        unavailable(str(error))


@pytest.fixture
def worker(tmp_path: Path) -> WorkerDirectories:
    return made(tmp_path)


# --- how the end is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 70, 127, 128, 255])
async def test_an_exit_status_is_the_workers_own(tmp_path: Path, status: int) -> None:
    async with behind_bwrap(tmp_path, f"import os; os._exit({status})") as child:
        assert await child.ended() == (status, None, False)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
async def test_a_signal_is_told_as_one(tmp_path: Path, number: signal.Signals) -> None:
    async with behind_bwrap(tmp_path, f"import os; os.kill(os.getpid(), {int(number)})") as child:
        assert (await child.ended())[:2] == (None, number)


async def test_a_worker_killed_from_outside_is_told_as_killed(tmp_path: Path) -> None:
    async with behind_bwrap(tmp_path, SAY + "say(os.getpid()); " + WAIT) as child:
        await child.said()
        child.process.identify()
        assert child.process.worker_pid is not None
        os.kill(child.process.worker_pid, signal.SIGKILL)
        assert (await child.ended())[:2] == (None, signal.SIGKILL)
        assert not child.process.running


async def test_the_gateway_sees_at_once_that_a_worker_closed_its_socket(tmp_path: Path) -> None:
    """So nobody else behind the wall may hold it."""
    async with behind_bwrap(tmp_path, SAY + "say(0); os.close(3); import time; time.sleep(1000)") as child:
        await child.said()
        assert await child.at_end()


# --- which process is the worker -------------------------------------------------------------------------------


async def test_the_worker_is_known_without_being_asked(tmp_path: Path) -> None:
    async with behind_bwrap(tmp_path, SAY + "say(os.getpid()); " + WAIT) as child:
        inside = await child.said()
        child.process.identify()
        assert child.process.worker_pid is not None
        assert pid_inside(child.process.worker_pid) == inside
        assert pids_outside(child.process.worker_pid, inside) == [child.process.worker_pid]


async def test_what_runs_away_is_never_taken_for_the_worker(tmp_path: Path) -> None:
    """A process whose parent has ended stands beside the worker."""
    async with behind_bwrap(tmp_path, RUNAWAY + SAY + "say(os.getpid()); " + WAIT) as child:
        inside, runaway = sorted(
            [await child.said(), await child.said()]
        )  # either may be the first to say so
        child.process.identify()
        worker = child.process.worker_pid
        assert worker is not None
        assert pids_outside(worker, runaway, inside)[1] == worker != pids_outside(worker, runaway)[0]


# --- nothing is left -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 11)"])
async def test_the_end_is_told_only_after_the_last_process_is_gone(tmp_path: Path, end: str) -> None:
    async with behind_bwrap(tmp_path, RUNAWAY * 3 + SAY + "say(os.getpid()); " + WAIT + "; " + end) as child:
        numbers = [await child.said() for _ in range(4)]
        child.process.identify()
        assert child.process.worker_pid is not None
        everything = watch(*pids_outside(child.process.worker_pid, *numbers))
        await child.say(b"x")
        await child.ended()
        assert await all_gone(everything, 0) == [], "the first process of the namespace ends last"


@pytest.mark.parametrize("known", [True, False], ids=["known", "before it said who it is"])
async def test_a_kill_takes_the_whole_namespace(tmp_path: Path, known: bool) -> None:
    ignore = "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15)]; "
    program = RUNAWAY * 2 + ignore + SAY + "say(os.getpid()); " + WAIT
    async with behind_bwrap(tmp_path, program) as child:
        for _ in range(3):
            await child.said()
        if known:
            child.process.identify()
        everything = watch(*child.pids())
        assert len(child.pids()) >= 5, "bwrap twice, the worker, and two that ran away"
        child.process.kill()
        code, number, _ = await child.ended()
        assert code is None
        assert number in (signal.SIGKILL, signal.SIGTERM), "of the namespace or of bwrap, whichever was first"
        assert await all_gone(everything, 0) == []


async def test_a_bwrap_that_is_killed_takes_everything_with_it(tmp_path: Path) -> None:
    async with behind_bwrap(tmp_path, RUNAWAY + SAY + "say(os.getpid()); " + WAIT) as child:
        await child.said()
        await child.said()
        everything = watch(*(child.pids() - {child.process.root_pid}))
        os.kill(child.process.root_pid, signal.SIGKILL)
        assert (await child.ended())[:2] == (None, signal.SIGKILL)
        assert await all_gone(everything, 0) == [], "we waited for the namespace itself"


async def test_a_stopped_namespace_is_killed_all_the_same(tmp_path: Path) -> None:
    async with behind_bwrap(tmp_path, SAY + "say(0); os.kill(os.getpid(), 19)") as child:
        await child.said()
        everything = watch(*child.pids())
        os.kill(child.process.root_pid, signal.SIGSTOP)
        child.process.kill()
        child.process.kill_tree()
        await child.ended()
        assert await all_gone(everything, 0) == []


# --- a program in front that does not do its work ------------------------------------------------------------------


def behind(worker: WorkerDirectories, *prefix: Word) -> LaunchSpec:
    """A worker that is to be started by another program."""
    spec = launch_spec(worker, 1, config_of(python("raise SystemExit('must not run')")), {}, os.getpid())
    return replace(spec, prefix=prefix, guarded=False)


@pytest.mark.parametrize("status", [1, 200])
async def test_one_that_ends_before_it_made_a_namespace_is_told_as_it_is(
    worker: WorkerDirectories, status: int
) -> None:
    spec = behind(worker, "sh", "-c", f"echo 'no namespaces here' >&2; exit {status}", STATUS_PIPE)
    async with spawned_from(spec) as child:
        assert await child.ended() == (status, None, False)
        assert child.printed() == "no namespaces here\n"


@pytest.mark.parametrize("pid", [1, 4_000_000])
async def test_a_pid_that_is_not_its_child_is_not_taken_for_one(worker: WorkerDirectories, pid: int) -> None:
    told = f'eval "echo \'{{\\"child-pid\\": {pid}}}\' >&$0"; exit 5'
    async with spawned_from(behind(worker, "bash", "-c", told, STATUS_PIPE)) as child:
        assert await child.ended() == (5, None, False)


async def test_one_that_does_not_exist_cannot_be_started(worker: WorkerDirectories) -> None:
    with pytest.raises(FileNotFoundError):
        async with spawned_from(behind(worker, "/no/such/bwrap", STATUS_PIPE)):
            raise AssertionError("it was started")


async def test_one_that_tells_nothing_is_killed(
    worker: WorkerDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_STATUS_SECONDS", 0.2)
    before = descendants()
    with pytest.raises(TimeoutError):
        async with spawned_from(behind(worker, "sh", "-c", "exec sleep 1000", STATUS_PIPE)):
            raise AssertionError("it was taken for a worker")
    assert descendants() <= before
