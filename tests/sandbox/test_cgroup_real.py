"""Real cgroups, where this machine lets us make them; limits, where it has the controllers for them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moltbot.sandbox.cgroup import (
    CONTROLLERS,
    GATEWAY,
    Delegation,
    WorkerCgroup,
    entering,
    find_delegation,
    remove_leftovers,
)
from tests.fakes import eventually

NONE: frozenset[str] = frozenset()
# A gateway in miniature: it takes over its cgroup, makes a worker's and tells what the worker could do in it.
GATEWAY_PROGRAM = """
import json, subprocess, sys
from moltbot.sandbox.cgroup import *

found = find_delegation()
held = take_over(found)
group = WorkerCgroup.make(held, "worker-0", max_memory=64 << 20, max_processes=8)
worker = subprocess.run(entering(group.path, sys.argv[1:]), capture_output=True, text=True)
print(json.dumps({
    "directory": str(found.directory), "found": sorted(found.controllers), "held": sorted(held.controllers),
    "lacking": held.lacking, "own": open("/proc/self/cgroup").read(), "again": str(find_delegation().directory),
    "status": worker.returncode, "printed": worker.stdout, "oom_kills": group.oom_kills(), "removed": group.remove(),
}))
"""
FORKS = """
import os, time
count = 0
try:
    while count < 50:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except BlockingIOError:
    pass
print(count, flush=True)
os.kill(0, 9)
"""


@pytest.fixture
def real() -> Iterator[Delegation]:
    """A cgroup for one test below the one that we have."""
    found = find_delegation()
    if isinstance(found, str):
        pytest.skip(found)
    directory = found.directory / f"moltbot-test-{secrets.token_hex(4)}"
    directory.mkdir()
    yield Delegation(directory, NONE)
    assert WorkerCgroup(directory).remove()


def make(delegation: Delegation, name: str = "worker-0") -> WorkerCgroup:
    return WorkerCgroup.make(delegation, name, max_memory=64 << 20, max_processes=8)


def pids(group: WorkerCgroup) -> list[int]:
    return [int(word) for word in (group.path / "cgroup.procs").read_text().split()]


def run_inside(group: WorkerCgroup, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        entering(group.path, argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=30)
    return process.returncode


def test_a_process_is_inside_from_its_first_instruction_with_nothing_added(real: Delegation) -> None:
    group = make(real)
    show = (
        "import os, sys; print(open('/proc/self/cgroup').read(), os.getpid(), dict(os.environ), sys.argv[1:])"
    )
    command = entering(group.path, [sys.executable, "-I", "-c", show, "a b", "$(id)", ""])
    process = subprocess.Popen(command, env={"LC_CTYPE": "C.UTF-8"}, stdout=subprocess.PIPE, text=True)
    output = process.communicate(timeout=30)[0]
    assert f"/{group.path.name}\n" in output
    assert f" {process.pid} " in output, "the shell has become the program"
    environment = json.loads(output[output.index("{") : output.index("}") + 1].replace("'", '"'))
    assert {name for name in environment if name != "_"} == {"LC_CTYPE"}
    assert output.endswith("['a b', '$(id)', '']\n")
    assert group.remove()


def test_a_process_that_cannot_enter_does_not_run(tmp_path: Path) -> None:
    command = entering(tmp_path / "missing", ["touch", str(tmp_path / "ran")])
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
    assert not (tmp_path / "ran").exists()


async def test_killing_takes_those_who_left_the_session_too(real: Delegation) -> None:
    group, other = make(real), make(real, "worker-1")
    bystander = run_inside(other, "sleep", "1000")
    process = run_inside(
        group, "sh", "-c", "setsid sleep 1000 & setsid sh -c 'setsid sleep 1000 & exit' & sleep 1000"
    )
    await eventually(lambda: len(pids(group)) == 4 and len(pids(other)) == 1)
    inside = [psutil.Process(pid) for pid in pids(group)]
    group.kill()
    assert end(process) == -signal.SIGKILL
    await eventually(lambda: not pids(group))
    assert all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in inside)
    assert bystander.poll() is None, "the neighbour is untouched"
    other.kill()
    assert end(bystander) == -signal.SIGKILL
    await eventually(lambda: group.remove() and other.remove())
    group.kill()
    assert group.remove(), "gone already"


def test_two_gateways_and_two_starts_do_not_collide(real: Delegation) -> None:
    groups = [make(real) for _ in range(5)]
    assert len({group.path for group in groups}) == 5
    program = (
        "import sys; from moltbot.sandbox.cgroup import *; from pathlib import Path\n"
        "d = Delegation(Path(sys.argv[1]), frozenset()); remove_leftovers(d)\n"
        "print(WorkerCgroup.make(d, 'worker-0', max_memory=None, max_processes=None).path)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", program, str(real.directory)], text=True)
    assert all(group.path.is_dir() for group in groups), "those of a gateway that lives are left alone"
    left = Path(output.strip())
    assert left.is_dir()
    remove_leftovers(Delegation(real.directory, NONE))
    assert not left.exists(), "its gateway is gone"
    assert all(group.path.is_dir() for group in groups), "a second pool in this process leaves them alone too"


def test_leftovers_are_removed_unless_somebody_is_in_them(real: Delegation) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    names = {
        f"moltbot-{gone.pid}-00000000-worker-0": False,
        f"moltbot-{gone.pid}-00000001-worker-0": True,  # somebody is in it
        f"moltbot-{os.getpid()}-00000000-worker-0": False,
        "moltbot-1-00000000-worker-0": True,
        GATEWAY: True,
        f"other-{gone.pid}-00000000-worker-0": True,
    }
    for name in names:
        (real.directory / name).mkdir()
    (real.directory / f"moltbot-{gone.pid}-00000000-worker-0" / "below" / "it").mkdir(parents=True)
    process = run_inside(WorkerCgroup(real.directory / f"moltbot-{gone.pid}-00000001-worker-0"), "cat")
    assert process.stdin is not None
    process.stdin.write("inside\n")
    process.stdin.flush()
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    remove_leftovers(real)
    assert {name: (real.directory / name).exists() for name in names} == names
    assert end(process) == 0


async def test_removal_ends_whoever_is_left_inside(real: Delegation) -> None:
    group = make(real)
    process = run_inside(group, "sleep", "1000")
    await eventually(lambda: len(pids(group)) == 1)
    (group.path / "below").mkdir()
    await eventually(group.remove)
    assert end(process) == -signal.SIGKILL
    assert group.oom_kills() == 0


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-", "a b", "a\n", "."])
def test_a_name_stays_a_name(real: Delegation, name: str) -> None:
    with pytest.raises(ValueError, match="not a name"):
        make(real, name)


def test_what_cannot_be_limited_is_not_left_behind(real: Delegation) -> None:
    with pytest.raises(OSError, match=r"memory\.max|pids\.max"):
        make(Delegation(real.directory, CONTROLLERS))  # nobody has enabled them there
    assert not list(real.directory.glob("moltbot-*"))


# --- limits -----------------------------------------------------------------------------------------------------


def as_gateway(real: Delegation, *worker: str, controller: str) -> dict[str, Any]:
    """Run the gateway in miniature in the test's cgroup; skips where the controller is not to be had."""
    available = (real.directory / "cgroup.controllers").read_text().split()
    if controller not in available:
        pytest.skip(
            f"the {controller} controller is not in {real.directory.parent}'s children: v1 may have it"
        )
    process = run_inside(WorkerCgroup(real.directory), sys.executable, "-c", GATEWAY_PROGRAM, *worker)
    output = process.communicate(timeout=60)[0]
    said: dict[str, Any] = json.loads(output)
    return said


def test_a_fork_bomb_ends_at_the_limit(real: Delegation) -> None:
    said = as_gateway(real, "setsid", "-w", sys.executable, "-c", FORKS, controller="pids")
    assert 4 <= int(said["printed"]) <= 7, "of 8, itself and what started it included"
    assert said["removed"]


def test_a_memory_hog_is_killed_and_counted(real: Delegation) -> None:
    said = as_gateway(real, sys.executable, "-c", "b'x' * (200 << 20)", controller="memory")
    assert (said["status"], said["oom_kills"], said["removed"]) == (-signal.SIGKILL, 1, True)


def test_the_gateway_moves_aside_and_finds_its_cgroup_again(real: Delegation) -> None:
    said = as_gateway(real, "true", controller="pids")
    assert said["directory"] == said["again"] == str(real.directory)
    assert said["own"].endswith(f"/{real.directory.name}/{GATEWAY}\n")
    assert (said["status"], said["held"]) == (0, said["found"])


def test_no_limits_beside_a_stranger(real: Delegation) -> None:
    with run_inside(WorkerCgroup(real.directory), "cat") as stranger:
        said = as_gateway(real, "true", controller="pids")
        assert end(stranger) == 0
    assert (said["status"], said["held"]) == (0, [])
    assert f"process {stranger.pid} shares the cgroup" in said["lacking"]
