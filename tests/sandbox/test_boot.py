"""The boot code with real processes: what a worker inherits, how its end is told, and that nothing is left behind.

Both of its modes are run without a wall, so that this is about the boot code alone; behind `bwrap` it is in `test_process.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from moltbot.sandbox.descriptors import Descriptors
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import LaunchSpec, launch_spec
from tests.fakes import all_gone, watch
from tests.sandbox.spawned import config_of, made, python, spawned, spawned_from

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
    return made(tmp_path)


def proc(pid: int, name: str) -> bytes:
    """What the kernel tells of a process."""
    return Path(f"/proc/{pid}/{name}").read_bytes()


def run(spec: LaunchSpec) -> tuple[int, bytes]:
    """Run to its end, with nothing on standard input; returns the exit status and what was said on stderr."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Descriptors(theirs) as descriptors:
        done = subprocess.run(
            descriptors.resolve(spec.argv),
            check=False,
            env=spec.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=descriptors.passed,
        )
    return done.returncode, done.stderr


def walled(worker: WorkerDirectories, program: str, **fields: Any) -> LaunchSpec:
    """As it is started behind `bwrap`: without a guard."""
    spec = launch_spec(worker, 1, config_of(python(program)), os.environ, os.getpid())
    return replace(spec, guarded=False, **fields)


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
        assert os.listdir(f"/proc/{child.process.root_pid}/fd") == []


async def test_no_new_privileges_for_the_guard_and_the_worker(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        for pid in (child.process.root_pid, await child.said()):
            assert b"NoNewPrivs:\t1\n" in proc(pid, "status")


async def test_the_limits_are_those_of_the_configuration(worker: WorkerDirectories) -> None:
    tell = "import resource; say([resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in ('NOFILE', 'CORE', 'DATA')]); "
    async with spawned(worker, python(SAY + tell + WAIT), maxOpenFiles=100, maxMemory="64MB") as child:
        data = (256 << 20) + (1 << 30)
        assert await child.said() == [[100, 100], [1, 1], [data, data]]


async def test_nothing_of_our_environment_is_readable_in_guard_or_worker(
    worker: WorkerDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLTBOT_TOKEN", "leak-1")
    monkeypatch.setenv("SECRET", "leak-2")
    monkeypatch.setenv("ALLOWED", "passes")
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT), environment=["ALLOWED"]) as child:
        for pid in (child.process.root_pid, await child.said()):
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
        await child.said()
        child.process.identify()
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
    spec = launch_spec(worker, 1, config_of(python("raise SystemExit('must not run')")), {}, parent=1)
    assert run(spec) == (72, b"")


async def test_the_worker_is_known_without_being_asked(worker: WorkerDirectories) -> None:
    async with spawned(worker, python(SAY + "say(os.getpid()); " + WAIT)) as child:
        pid = await child.said()
        child.process.identify()
        assert child.process.worker_pid == pid
        child.process.identify()
        assert child.process.worker_pid == pid, "once is enough"


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
        os.kill(child.process.root_pid, signal.SIGSTOP)
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
    print(json.dumps([process.root_pid, *pids]), flush=True)
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
        os.kill(child.process.root_pid, signal.SIGKILL)
        await child.ended()
        assert await all_gone(everything) == []


# --- behind a wall, whose namespace does the guard's work ---------------------------------------------------------------


async def test_without_a_guard_the_process_we_started_is_the_worker(worker: WorkerDirectories) -> None:
    tell = "say([os.getpid(), os.getcwd(), sorted(os.listdir('/proc/self/fd'))]); "
    async with spawned_from(walled(worker, SAY + tell + WAIT)) as child:
        pid, directory, descriptors = await child.said()
        assert pid == child.process.root_pid
        assert child.pids() == {pid}
        assert directory == str(worker.temp(1))
        assert set(descriptors) <= {"0", "1", "2", "3", "4"}, "4 reads the list"
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/3").startswith("socket:")
        assert "4" not in os.listdir(f"/proc/{pid}/fd"), "its spec is closed"


@pytest.mark.parametrize("status", [0, 3, 255])
async def test_without_a_guard_the_status_is_the_workers_own(worker: WorkerDirectories, status: int) -> None:
    async with spawned_from(walled(worker, f"import os; os._exit({status})")) as child:
        assert await child.ended() == (status, None, False)


def test_without_a_guard_nobody_asks_who_the_parent_is(worker: WorkerDirectories) -> None:
    assert run(replace(walled(worker, "raise SystemExit(7)"), parent=1)) == (7, b"")


@pytest.mark.parametrize("guarded", [True, False])
def test_a_wall_that_cannot_be_put_up_from_inside_ends_the_worker_before_its_program(
    worker: WorkerDirectories, guarded: bool
) -> None:
    below_a_file = {"rules": [[f"{__file__}/below", "read"]], "tcp": True, "refused_ports": []}
    confinement = {"uid": None, "landlock": below_a_file, "seccomp": None}
    spec = replace(walled(worker, "print('must not run')"), confinement=confinement, guarded=guarded)
    status, said = run(spec)
    assert status == 73
    assert said.startswith(b"the wall cannot be put up from inside: ")
    assert said.count(b"\n") == 1


def test_a_limit_that_is_lower_already_stays_as_it_is(worker: WorkerDirectories) -> None:
    program = "import resource, sys; sys.exit(resource.getrlimit(resource.RLIMIT_NOFILE)[1] != 80)"
    spec = walled(worker, program)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert spec.limits["RLIMIT_NOFILE"] > 80
    shell = ("sh", "-c", 'ulimit -n 80 && exec "$@"', "sh")
    assert run(replace(spec, prefix=shell)) == (0, b"")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
