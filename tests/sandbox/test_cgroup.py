"""What is found of cgroups on made-up machines: files as the kernel shows them. Real ones: `test_cgroup_real.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moltbot.sandbox import cgroup
from moltbot.sandbox.cgroup import (
    CONTROLLERS,
    GATEWAY,
    Delegation,
    find_delegation,
    take_over,
)

OWN = 4711
NONE: frozenset[str] = frozenset()


class Machine:
    """Files as the kernel shows them."""

    def __init__(self, directory: Path) -> None:
        self.proc = directory / "proc"
        self.mount = directory / "a cgroup"
        self.proc.mkdir()
        self.write("/")

    def line(
        self, root: str = "/", options: str = "rw", kind: str = "cgroup2", superblock: str = "rw"
    ) -> str:
        point = str(self.mount).replace(" ", "\\040")
        return f"41 31 0:38 {root} {point} {options},nosuid shared:9 - {kind} cgroup {superblock}\n"

    def write(self, own: str, *mounts: str) -> None:
        """Where the process is, and what is mounted."""
        (self.proc / "cgroup").write_text(f"9:name=systemd:/x\n4:memory:/y\n0::{own}\n")
        (self.proc / "mountinfo").write_text("31 23 0:28 / /sys rw - tmpfs tmpfs rw\n" + "".join(mounts))

    def cgroup(self, path: str, *processes: int, has: str = "memory pids cpu", enabled: str = "") -> Path:
        """A cgroup with its processes, what it may use and what its children have."""
        directory = self.mount / path
        directory.mkdir(parents=True, exist_ok=True)
        if path:
            (directory / "cgroup.events").touch()
        (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
        (directory / "cgroup.controllers").write_text(has)
        (directory / "cgroup.subtree_control").write_text(enabled)
        return directory

    def find(self) -> Delegation | str:
        return find_delegation(self.proc, OWN)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_delegated_cgroup_of_our_own_gives_both_limits(machine: Machine) -> None:
    directory = machine.cgroup("system.slice/gateway.service", OWN)
    machine.write("/system.slice/gateway.service", machine.line())
    assert machine.find() == Delegation(directory, CONTROLLERS)


def test_in_a_container_the_mount_begins_at_our_own_cgroup(machine: Machine) -> None:
    directory = machine.cgroup("inner", OWN)
    machine.write("/docker/abc/inner", machine.line("/docker/other"), machine.line("/docker/abc"))
    assert machine.find() == Delegation(directory, CONTROLLERS)


def test_the_root_may_hold_other_processes_too(machine: Machine) -> None:
    directory = machine.cgroup("", 1, 2, OWN)
    machine.write("/", machine.line())
    assert machine.find() == Delegation(directory, CONTROLLERS)


def test_after_a_take_over_the_cgroup_above_is_found_again(machine: Machine) -> None:
    directory = machine.cgroup("service", enabled="memory pids")
    machine.cgroup(f"service/{GATEWAY}", OWN, has="memory pids")
    machine.write(f"/service/{GATEWAY}", machine.line())
    assert machine.find() == Delegation(directory, CONTROLLERS)


def test_controllers_that_v1_has_are_missing_and_the_rest_is_offered(machine: Machine) -> None:
    directory = machine.cgroup("", 1, OWN, has="hugetlb pids")
    machine.write("/", machine.line(kind="cgroup"), machine.line())
    assert machine.find() == Delegation(
        directory,
        frozenset({"pids"}),
        f"no memory in {directory}: cgroup v1 has it, or it is not delegated",
    )


@pytest.mark.parametrize(("other", "named"), [(12, "process 12"), (0, "a process of another namespace")])
def test_no_limits_where_somebody_shares_our_cgroup(machine: Machine, other: int, named: str) -> None:
    directory = machine.cgroup("session.scope", other, OWN, enabled="")
    machine.write("/session.scope", machine.line())
    found = machine.find()
    assert isinstance(found, Delegation)
    assert found.controllers == NONE
    assert found.lacking.startswith(
        f"{named} shares the cgroup {directory}: start the gateway in one of its own"
    )


def no_v2(machine: Machine) -> str:
    machine.write("/", machine.line(kind="cgroup"))
    return "no cgroup v2 is mounted"


def no_v2_in_the_kernel(machine: Machine) -> str:
    machine.write("/", machine.line())
    (machine.proc / "cgroup").write_text("4:memory:/y\n")
    return "no cgroup v2 is mounted"


def no_proc(machine: Machine) -> str:
    (machine.proc / "mountinfo").unlink()
    return "there are no cgroups"


def elsewhere(machine: Machine) -> str:
    machine.cgroup("", OWN)
    machine.write("/../outside", machine.line())
    return "the cgroup /../outside of this process is not to be found in"


def removed(machine: Machine) -> str:
    machine.cgroup("", OWN)
    machine.write("/gone (deleted)", machine.line())
    return "the cgroup /gone (deleted) of this process is not to be found in"


def read_only_mount(machine: Machine) -> str:
    machine.cgroup("", OWN)
    machine.write("/", machine.line(options="ro"))
    return f"cgroup v2 is mounted read-only at {machine.mount}"


def read_only_superblock(machine: Machine) -> str:
    machine.cgroup("", OWN)
    machine.write("/", machine.line(superblock="ro,nsdelegate"))
    return f"cgroup v2 is mounted read-only at {machine.mount}"


REASONS = [no_v2, no_v2_in_the_kernel, no_proc, elsewhere, removed, read_only_mount, read_only_superblock]


@pytest.mark.parametrize("make", REASONS)
def test_why_there_is_none(machine: Machine, make: Callable[[Machine], str]) -> None:
    expected = make(machine)
    found = machine.find()
    assert isinstance(found, str)
    assert found.startswith(expected)


@pytest.mark.parametrize("closed", [".", "cgroup.procs", "cgroup.subtree_control"])
def test_a_cgroup_of_somebody_else_is_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    directory = machine.cgroup("session.scope", OWN)
    machine.write("/session.scope", machine.line())
    monkeypatch.setattr(os, "access", lambda path, _: path != directory / closed)  # to root nothing is closed
    assert machine.find() == f"the cgroup {directory} is not writable: run under systemd with Delegate=yes"


def test_taking_over_moves_us_first_and_enables_what_is_missing(machine: Machine) -> None:
    directory = machine.cgroup("service", OWN, enabled="pids")
    (directory / GATEWAY).mkdir()
    (directory / GATEWAY / "cgroup.procs").touch()
    delegation = Delegation(directory, CONTROLLERS)
    assert take_over(delegation) == delegation
    assert (directory / GATEWAY / "cgroup.procs").read_text() == str(os.getpid())
    assert (directory / "cgroup.subtree_control").read_text() == "+memory", "a command to the real one"


def test_what_cannot_be_enabled_is_no_longer_promised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(cgroup, "_write", busy)
    directory = machine.cgroup("", OWN, enabled="pids")
    assert take_over(Delegation(directory, CONTROLLERS)) == Delegation(
        directory, frozenset({"pids"}), f"memory cannot be enabled in {directory} (Device or resource busy)"
    )
