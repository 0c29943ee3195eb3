"""What is read from outside of a running worker: real processes, and a /proc that the test wrote."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.isolation.seccomp import assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.isolation.witness import Evidence, shortcomings
from moltbot.sandbox.launch import PACKAGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's own")

UID, PID = 2_000_000_003, 77
KINDS = ("pid", "ipc", "uts", "net", "mnt", "user")
GOOD = {
    "Name": "python",
    "Uid": f"{UID}\t{UID}\t{UID}\t{UID}",
    "CapInh": "0000000000000000",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
}
ALL = Evidence(UID, frozenset(KINDS), seccomp=True, no_capabilities=True)


def proc(tmp_path: Path, shared: tuple[str, ...] = (), **changed: Any) -> Path:
    """A /proc with ourselves and a worker that is walled but for what is `shared` and `changed`."""
    lines = "".join(f"{name}:\t{value}\n" for name, value in (GOOD | changed).items() if value)
    for name in (str(PID), "self"):
        (tmp_path / name / "ns").mkdir(parents=True)
        (tmp_path / name / "status").write_text(lines)
    for kind in KINDS:
        (tmp_path / "self" / "ns" / kind).symlink_to(f"{kind}:[4026531836]")
        number = "4026531836" if kind in shared else "4026532999"
        (tmp_path / str(PID) / "ns" / kind).symlink_to(f"{kind}:[{number}]")
    return tmp_path


# --- a /proc of our own ---------------------------------------------------------------------------------


def test_a_walled_worker_lacks_nothing(tmp_path: Path) -> None:
    assert shortcomings(PID, ALL, proc(tmp_path)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_namespace_is_named(tmp_path: Path, kind: str) -> None:
    there = proc(tmp_path, shared=(kind,))
    assert shortcomings(PID, ALL, there) == [f"it shares the gateway's {kind} namespace"]
    assert shortcomings(PID, Evidence(UID, frozenset(KINDS) - {kind}), there) == [], "it was not to be apart"


@pytest.mark.parametrize("position", range(4))
def test_every_one_of_its_uids_counts(tmp_path: Path, position: int) -> None:
    uids = [str(UID)] * 4
    uids[position] = "0"
    there = proc(tmp_path, Uid="\t".join(uids))
    assert shortcomings(PID, ALL, there) == [f"its uid is not {UID}"]


@pytest.mark.parametrize("mode", ["0", "1", ""])
def test_a_filter_must_be_there(tmp_path: Path, mode: str) -> None:
    there = proc(tmp_path, Seccomp=mode)
    assert shortcomings(PID, ALL, there) == ["no seccomp filter is in force"]


@pytest.mark.parametrize("name", ["CapEff", "CapPrm", "CapInh", "CapAmb"])
def test_one_capability_is_too_many(tmp_path: Path, name: str) -> None:
    there = proc(tmp_path, (), **{name: "0000000000000080"})
    assert shortcomings(PID, ALL, there) == ["it has capabilities"]


@pytest.mark.parametrize("flag", ["0", ""])
def test_it_must_not_be_able_to_gain_any(tmp_path: Path, flag: str) -> None:
    assert shortcomings(PID, ALL, proc(tmp_path, NoNewPrivs=flag)) == ["it may gain privileges"]


def test_all_that_is_missing_is_told_together(tmp_path: Path) -> None:
    there = proc(tmp_path, shared=("net", "ipc"), Uid="0\t0\t0\t0", Seccomp="0", CapEff="1", NoNewPrivs="0")
    assert len(shortcomings(PID, ALL, there)) == 6


def test_what_cannot_be_examined_is_no_wall(tmp_path: Path) -> None:
    assert shortcomings(PID, ALL, tmp_path) == ["it cannot be examined (No such file or directory)"]
    there = proc(tmp_path)
    (there / str(PID) / "ns" / "net").unlink()
    assert shortcomings(PID, ALL, there) == ["it cannot be examined (No such file or directory)"]


def test_where_nothing_is_expected_nothing_is_read(tmp_path: Path) -> None:
    assert shortcomings(PID, Evidence(), tmp_path / "no such folder") == []


def test_a_name_with_colons_and_line_breaks_forges_nothing(tmp_path: Path) -> None:
    there = proc(tmp_path, Name="x\\nSeccomp:\\t2", Seccomp="0")
    assert shortcomings(PID, ALL, there) == ["no seccomp filter is in force"]


# --- real processes ------------------------------------------------------------------------------------

CHILD = "import sys; print('ready', flush=True); sys.stdin.read()"
CONFINED = (
    "import sys; sys.path.insert(0, sys.argv[1]); from moltbot.worker.confine import confine;"
    "confine({'uid': None, 'landlock': None, 'seccomp': sys.argv[2]});" + CHILD
)
MACHINE = platform.machine()


@contextmanager
def child(program: str, *arguments: str) -> Iterator[int]:
    """A process that has done what it had to and waits."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_an_ordinary_child_is_not_taken_for_a_worker() -> None:
    with child(CHILD) as pid:
        assert shortcomings(pid, Evidence(os.geteuid())) == []
        assert shortcomings(pid, Evidence(os.geteuid() + 1)) == [f"its uid is not {os.geteuid() + 1}"]
        found = shortcomings(pid, Evidence(namespaces=frozenset(KINDS), seccomp=True, no_capabilities=True))
    assert found[:6] == [f"it shares the gateway's {kind} namespace" for kind in sorted(KINDS)]
    status = dict(
        line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
    )
    if status["Seccomp"] == "0":
        assert "no seccomp filter is in force" in found
    if status["NoNewPrivs"] == "0":
        assert "it may gain privileges" in found
    assert ("it has capabilities" in found) is (int(status["CapEff"], 16) != 0)


def test_a_confined_child_is(tmp_path: Path) -> None:
    if MACHINE not in ("x86_64", "aarch64"):
        pytest.skip(f"there is no filter for {MACHINE}")
    program = assemble(rules(namespaced=False, inet=True, unix=True), MACHINE)
    with child(CONFINED, str(PACKAGE.parent), program.hex()) as pid:
        evidence = Evidence(os.geteuid(), seccomp=True, no_capabilities=True)
        assert shortcomings(pid, evidence) == []
        assert shortcomings(pid, Evidence(namespaces=frozenset({"net"}))) == [
            "it shares the gateway's net namespace"
        ]


def test_a_process_that_is_gone_is_told() -> None:
    with child(CHILD) as pid:
        pass
    assert shortcomings(pid, Evidence(seccomp=True)) == ["it cannot be examined (No such file or directory)"]
