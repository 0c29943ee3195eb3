"""The boot code with real processes: what a worker inherits, how its end is told, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import launch_spec
from tests.fakes import all_gone, watch
from tests.sandbox.spawned import spawned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is read here from /proc is Linux's own")

SAY = "import json, os, sys; say = lambda what: os.write(3, json.dumps(what).encode() + b'\\n'); "
WAIT = "os.read(3, 1)"
# A grandchild that left its family: forked twice, in a session of its own. Its pid is told, then it sleeps for ever.
RUNAWAY = """
import json, os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(3, json.dumps(os.getpid()).encode() + b'\\n')
        while True:
            time.sleep(1000)
    os._exit(0)
os.wait()
"""


@pytest.fixture
def worker(tmp_path: Path) -> WorkerDirectories:
    directories = WorkerDirectories(tmp_path, "worker-0")
    directories.create()
    directories.open_temp(1)
    return directories


def proc(pid: int, name: str) -> bytes:
    """What the kernel tells of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


# --- what is inherited -----------------------------------------------------------------------------------------


async def test_only_descriptors_zero_to_three_are_inherited(worker: WorkerDirectories) -> None:
    ours = [os.open("/etc", os.O_RDONLY) for _ in range(3)]
    ours.append(os.dup2(ours[0], 200))
    for descriptor in ours:
        os.set_inheritable(descriptor, True)
    try:
        listing = "found = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]; "
        tell = "say({name[14:]: os.readlink(name) for name in found if os.path.lexists(name)}); "
        async with spawned(worker, python(SAY + listing + tell + WAIT)) as child:
            found = await child.said()
    finally:
        for descriptor in ours:
            os.close(descriptor)
    assert sorted(found) == ["0", "1", "2", "3"]
    assert found["0"] == "/dev/null"
    assert found["3"].startswith("socket:")


async def test_the_guard_holds_nothing_of_its_worker(worker: WorkerDirectories) -> None:
    """Or the gateway would wait for the end of a socket that only the guard still holds."""
    async with spawned(
        worker, python(SAY + "say(0); os.close(3); sys.stdin.read(); import time; time.sleep(1000)")
    ) as child:
        await child.said()
        assert await child.at_end()
        assert os.listdir(f"/proc/{child.process.guard_pid}/fd") == []


async def test_no_new_privileges_for_the_guard_and_the_worker(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        for pid in (child.process.guard_pid, await child.said()):
            assert b"NoNewPrivs:\t1\n" in proc(pid, "status")


async def test_the_limits_are_those_of_the_configuration(worker: WorkerDirectories) -> None:
    tell = "import resource; say([resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in ('NOFILE', 'CORE', 'DATA')]); "
    async with spawned(worker, python(SAY + tell + WAIT), maxOpenFiles=100, maxMemory="64MB") as child:
        data = (256 << 20) + (1 << 30)
        assert await child.said() == [[100, 100], [0, 0], [data, data]]


async def test_nothing_of_our_environment_is_readable_in_guard_or_worker(
    worker: WorkerDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLTBOT_TOKEN", "leak-1")
    monkeypatch.setenv("SECRET", "leak-2")
    monkeypatch.setenv("ALLOWED", "passes")
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT), environment=["ALLOWED"]) as child:
        for pid in (child.process.guard_pid, await child.said()):
            environment = proc(pid, "environ")
            assert b"leak" not in environment
            assert b"ALLOWED=passes" in environment
            assert b"leak" not in proc(pid, "cmdline")


async def test_a_worker_starts_in_its_temp_directory_without_blocked_signals(
    worker: WorkerDirectories,
) -> None:
    tell = (
        "import signal; say([os.getcwd(), [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])]]); "
    )
    async with spawned(worker, python(SAY + tell + WAIT)) as child:
        assert await child.said() == [str(worker.temp(1)), []]


# --- how the end is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3, 70, 255])
async def test_the_guard_ends_with_the_status_of_its_worker(worker: WorkerDirectories, status: int) -> None:
    async with spawned(worker, python(f"import os; os._exit({status})")) as child:
        assert await child.ended() == (status, None, False)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
async def test_the_guard_ends_by_the_signal_of_its_worker(
    worker: WorkerDirectories, number: signal.Signals
) -> None:
    async with spawned(worker, python(f"import os; os.kill(os.getpid(), {int(number)})")) as child:
        exit = await child.ended()
        assert (exit.code, exit.signal) == (None, number)


async def test_a_worker_killed_from_outside_is_told_as_killed(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        child.process.identify(await child.said())
        child.process.kill()
        assert (await child.ended())[:2] == (None, signal.SIGKILL)


async def test_a_missing_command_ends_with_127_and_a_sentence(worker: WorkerDirectories) -> None:
    async with spawned(worker, ["/no/such/program", "argument"]) as child:
        assert (await child.ended())[:2] == (127, None)
    assert child.printed() == "cannot run the worker command /no/such/program: No such file or directory\n"


async def test_a_command_of_another_language_is_executed_as_it_is(worker: WorkerDirectories) -> None:
    async with spawned(worker, ["sh", "-c", 'echo "$0 $1 is $MOLTBOT_WORKER_ID" >&3', "a b", "c"]) as child:
        assert (await child.line()) == "a b c is worker-0"
        assert (await child.ended())[:2] == (0, None)


def test_boot_ends_at_once_if_its_gateway_is_gone_already(worker: WorkerDirectories) -> None:
    config = PoolConfig.read({"workerCommand": python("raise SystemExit('must not run')")})
    spec = launch_spec(worker, 1, config, {}, parent=1)
    run = subprocess.run(
        spec.argv, check=False, env=dict(spec.environment), stdin=subprocess.DEVNULL, capture_output=True
    )
    assert (run.returncode, run.stderr) == (72, b"")


@pytest.mark.parametrize(("claimed", "right"), [(0, 0), (-5, 0), (2**70, 0), ("own", 0)])
async def test_the_worker_is_known_whatever_pid_it_claims(
    worker: WorkerDirectories, claimed: Any, right: int
) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        pid = await child.said()
        child.process.identify(pid if claimed == "own" else claimed)
        assert child.process.worker_pid == pid
        child.process.identify(os.getpid())
        assert child.process.worker_pid == pid, "nobody makes us kill a stranger"


# --- nothing is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 11)"])
async def test_orphans_die_with_their_worker(worker: WorkerDirectories, end: str) -> None:
    async with spawned(worker, python(RUNAWAY + WAIT + "; " + end)) as child:
        runaway = watch(await child.said())
        await child.say(b"x")
        await child.ended()
        assert await all_gone(runaway, 0) == [], "the guard ends last, so its end is the end of all"


async def test_a_kill_takes_the_whole_tree(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(RUNAWAY * 3 + WAIT)) as child:
        runaways = watch(*[await child.said() for _ in range(3)])
        child.process.kill()  # as one whose pid is not known yet
        await child.ended()
        assert await all_gone(runaways, 0) == []


async def test_a_guard_that_does_nothing_is_killed_with_its_tree(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(RUNAWAY + WAIT)) as child:
        everything = watch(await child.said(), *child.pids())
        os.kill(child.process.guard_pid, signal.SIGSTOP)
        child.process.kill()
        child.process.kill_tree()
        assert (await child.ended())[:2] == (None, signal.SIGKILL)
        assert await all_gone(everything) == []


GATEWAY = """
import asyncio, json, os, pathlib, socket, sys
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import launch_spec
from moltbot.sandbox.process import WorkerProcess

async def main():
    worker = WorkerDirectories(pathlib.Path(sys.argv[1]), "worker-0")
    config = PoolConfig.read({"workerCommand": json.loads(sys.argv[2])})
    spec = launch_spec(worker, 1, config, os.environ, os.getpid())
    ours, theirs = socket.socketpair()
    process = await WorkerProcess.spawn(spec, theirs, 2, 2)
    theirs.close()
    pids = [json.loads(line) for line in [ours.makefile().readline()]]
    print(json.dumps([process.guard_pid, *pids]), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "doing",
    ["os.read(3, 1)", "os.kill(os.getpid(), signal.SIGSTOP)", "\nwhile True: pass"],
    ids=["waiting", "stopped", "blocked"],
)
async def test_nothing_outlives_a_killed_gateway(worker: WorkerDirectories, doing: str) -> None:
    ignore = "[signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15)]\n"
    command = json.dumps(python(RUNAWAY + ignore + doing))
    arguments = [sys.executable, "-c", GATEWAY, str(worker.root.parent), command]
    gateway = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert gateway.stdout is not None
        guard, runaway = json.loads(await gateway.stdout.readline())
        tree = {guard, runaway, *(child.pid for child in psutil.Process(guard).children(recursive=True))}
        assert len(tree) >= 3, (
            "guard, worker and the one that ran away (whose dead parent may still be there)"
        )
        everything = watch(*tree)
    finally:
        gateway.kill()
        await gateway.wait()
    assert await all_gone(everything) == []


async def test_a_worker_dies_with_its_guard(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        everything = watch(await child.said())
        os.kill(child.process.guard_pid, signal.SIGKILL)
        await child.ended()
        assert await all_gone(everything) == []
