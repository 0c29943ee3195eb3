"""What a process can still do after `confine`, in real children: each protection alone, and failures."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.descriptors import Descriptors
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.seccomp import SUPPORTED, assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.launch import PACKAGE, launch_spec
from moltbot.worker.boot import EXIT_UNCONFINED
from moltbot.worker.confine import landlock_abi
from tests.fakes import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's own")

ABI, MACHINE = landlock_abi(), platform.machine()
UID = 2_000_123_456
needs_landlock = pytest.mark.skipif(ABI < 1, reason="this kernel has no Landlock")
needs_tcp = pytest.mark.skipif(ABI < 4, reason="this kernel's Landlock knows no ports")
needs_scopes = pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock knows no scopes")
needs_filter = pytest.mark.skipif(MACHINE not in SUPPORTED, reason="there is no filter for this machine")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

CHILD = """
import ctypes, errno, json, os, signal, socket, sys, threading
job = json.load(sys.stdin)
sys.path.insert(0, job["code"])
from moltbot.worker.confine import confine

def status():
    lines = open("/proc/self/status").read().splitlines()
    return dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)

outcomes = []

def attempt(action, *arguments):
    try:
        outcome = action(*arguments)
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, "?")
    outcomes.append(outcome)

def read(path):
    with open(path) as file:
        return file.read()

def write(path):
    with open(path, "w") as file:
        file.write("changed")
    return "written"

try:
    confine(job["plan"])
except OSError as error:
    outcomes = ["refused", errno.errorcode.get(error.errno, "?"), str(error)]
else:
    exec(job["attempts"])
print(json.dumps(outcomes))
"""


def confined(attempts: str, *, groups: list[int] | None = None, **plan: Any) -> Any:
    """What `attempts` came to in a child behind `plan`; errors by their names. groups: those it has before."""
    whole = {"uid": None, "landlock": None, "seccomp": None} | plan
    job = {"code": str(PACKAGE.parent), "plan": whole, "attempts": attempts}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        extra_groups=groups,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def landlock(*allowed: list[str], tcp: bool = True, refused_ports: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"rules": allowed, "tcp": tcp, "refused_ports": refused_ports}


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """A folder with a file, and beside it one to which no rule speaks."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("content")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("secret")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "file")
    return tmp_path / "here"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


# --- files ---------------------------------------------------------------------------------------------


@needs_landlock
def test_what_may_be_read_cannot_be_changed_and_nothing_else_is_open(ground: Path) -> None:
    attempts = f"""
attempt(read, "{ground}/file")
attempt(os.listdir, "{ground}")
attempt(write, "{ground}/file")
attempt(write, "{ground}/new")
attempt(os.mkdir, "{ground}/new")
attempt(os.unlink, "{ground}/file")
attempt(read, "{ground}/link")
attempt(read, "{ground}/../there/file")
attempt(os.listdir, "{ground}/..")
attempt(read, "/etc/passwd")
"""
    found = confined(attempts, landlock=landlock([str(ground), "read"]))
    assert (found[0], sorted(found[1])) == ("content", ["file", "link"])
    assert found[2:] == ["EACCES"] * 8
    assert (ground / "file").read_text() == "content"


@needs_landlock
def test_what_may_be_written_can_be_made_moved_and_removed_but_no_device(ground: Path) -> None:
    attempts = f"""
attempt(write, "{ground}/file")
attempt(os.mkdir, "{ground}/folder")
attempt(os.rename, "{ground}/file", "{ground}/folder/moved")
attempt(os.link, "{ground}/folder/moved", "{ground}/second")
attempt(os.truncate, "{ground}/second", 3)
attempt(read, "{ground}/folder/moved")
attempt(os.unlink, "{ground}/second")
attempt(os.mkfifo, "{ground}/pipe")
attempt(os.mknod, "{ground}/null", 0o20666, os.makedev(1, 3))
attempt(os.rename, "{ground}/folder", "{ground}/../there/folder")
attempt(os.link, "{ground}/folder/moved", "{ground}/../there/second")
"""
    found = confined(attempts, landlock=landlock([str(ground), "write"]))
    assert found[:8] == ["written", None, None, None, None, "cha", None, None]
    assert found[8] in ("EACCES", "EPERM")
    assert set(found[9:]) <= {"EACCES", "EXDEV"}
    assert os.listdir(ground.parent / "there") == ["file"]


@needs_landlock
def test_names_can_be_listed_without_reading(ground: Path) -> None:
    attempts = (
        f'attempt(os.listdir, "{ground}"); attempt(read, "{ground}/file"); attempt(write, "{ground}/new")'
    )
    names, *refused = confined(attempts, landlock=landlock([str(ground), "list"]))
    assert sorted(names) == ["file", "link"]
    assert refused == ["EACCES", "EACCES"]


@needs_landlock
def test_a_device_can_be_used_and_its_neighbours_cannot() -> None:
    attempts = 'attempt(write, "/dev/null"); attempt(read, "/dev/zero"); attempt(os.listdir, "/dev")'
    assert confined(attempts, landlock=landlock(["/dev/null", "device"])) == ["written", "EACCES", "EACCES"]


@needs_landlock
def test_a_file_alone_can_be_allowed_and_what_is_missing_needs_no_permission(ground: Path) -> None:
    rules = [str(ground / "file"), "read"], [str(ground / "missing"), "write"]
    attempts = f'attempt(read, "{ground}/file"); attempt(write, "{ground}/missing")'
    assert confined(attempts, landlock=landlock(*rules)) == ["content", "EACCES"]


@needs_landlock
def test_it_holds_for_children_and_threads(ground: Path) -> None:
    attempts = f"""
thread = threading.Thread(target=attempt, args=(read, "{ground}/file"))
thread.start(); thread.join()
child = os.fork()
if not child:
    attempt(read, "{ground}/file")
    os._exit(outcomes[-1] == "EACCES")
outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert confined(attempts, landlock=landlock()) == ["EACCES", 1]


# --- the network ---------------------------------------------------------------------------------------

CONNECT = "attempt(lambda: socket.socket().connect(('127.0.0.1', {port})) or 'connected')\n"
BIND = "attempt(lambda: socket.create_server(('127.0.0.1', 0)) and 'listening')\n"


@needs_tcp
def test_without_tcp_nothing_is_connected_to_and_nothing_listens(server: socket.socket) -> None:
    attempts = CONNECT.format(port=server.getsockname()[1]) + BIND
    assert confined(attempts, landlock=landlock()) == ["connected", "listening"]
    assert confined(attempts, landlock=landlock(tcp=False)) == ["EACCES", "EACCES"]


@needs_tcp
def test_a_refused_port_is_closed_and_all_others_stay_open(server: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second, socket.create_server(("127.0.0.1", 0)) as third:
        ports = [each.getsockname()[1] for each in (server, second, third)]
        attempts = "".join(CONNECT.format(port=port) for port in ports) + BIND
        found = confined(attempts, landlock=landlock(refused_ports=(ports[0], ports[2])))
    assert found == ["EACCES", "connected", "EACCES", "listening"]


# --- other processes -----------------------------------------------------------------------------------


@needs_scopes
def test_no_other_process_can_be_signalled_or_reached_by_an_abstract_name() -> None:
    name = f"moltbot-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + name)
        listening.listen()
        attempts = f"""
attempt(os.kill, {os.getpid()}, 0)
attempt(os.kill, os.getpid(), 0)
attempt(socket.socket(socket.AF_UNIX).connect, "\\0{name}")
"""
        assert confined(attempts, landlock=landlock()) == ["EPERM", None, "EPERM"]
        assert confined(attempts) == [None, None, None]


# --- identity ------------------------------------------------------------------------------------------

STATUS = "s = status(); outcomes = [s[n] for n in ('CapEff', 'CapPrm', 'CapInh', 'CapAmb', 'NoNewPrivs')]"


def test_no_capability_is_left_and_none_can_be_gained() -> None:
    assert confined(STATUS) == ["0" * 16] * 4 + ["1"]


@needs_root
def test_root_keeps_nothing_of_its_power(ground: Path) -> None:
    (ground / "file").chmod(0)
    attempts = f"""
outcomes.append(status()["CapBnd"])
attempt(os.chown, "{ground}", 1, 1)
attempt(os.setuid, 1)
attempt(socket.sethostname, "other")
"""
    assert confined(attempts) == ["0" * 16, "EPERM", "EPERM", "EPERM"]


@needs_root
def test_another_uid_is_taken_for_good_and_without_groups(ground: Path) -> None:
    (ground / "file").chmod(0o600)
    attempts = f"""
outcomes += [os.getresuid(), os.getresgid(), os.getgroups()]
attempt(os.setresuid, 0, 0, 0)
attempt(os.setresgid, 0, 0, 0)
attempt(os.setgroups, [0])
attempt(read, "{ground}/file")
attempt(lambda: os.listdir("/proc/self/fd") and "its own")
{STATUS.replace("outcomes =", "outcomes +=")}
"""
    found = confined(attempts, uid=UID, groups=[1, 2])
    assert found[:3] == [[UID] * 3, [UID] * 3, []]
    assert found[3:7] == ["EPERM", "EPERM", "EPERM", "EACCES"]
    assert found[7:] == ["its own", *["0" * 16] * 4, "1"]


# --- the filter ----------------------------------------------------------------------------------------


def program() -> str:
    return assemble(rules(namespaced=False, inet=False, unix=False), MACHINE).hex()


@needs_filter
def test_the_filter_is_in_force_for_what_comes_after() -> None:
    attempts = """
outcomes.append(status()["Seccomp"])
attempt(socket.socket, socket.AF_INET)
attempt(socket.socket, socket.AF_UNIX)
attempt(lambda: [each.close() for each in socket.socketpair()])
thread = threading.Thread(target=attempt, args=(socket.socket, socket.AF_INET))
thread.start(); thread.join()
"""
    mode, *sockets = confined(attempts, seccomp=program())
    assert mode == "2"
    assert isinstance(sockets[0], str), "an error's name, whichever"
    assert sockets[0] == sockets[1] == sockets[3]
    assert sockets[2] == [None, None]


@needs_filter
@needs_landlock
def test_all_of_it_together(ground: Path) -> None:
    uid = UID if os.geteuid() == 0 else None
    attempts = "s = status(); outcomes = [s['Uid'].split()[0], s['CapEff'], s['Seccomp'], s['NoNewPrivs']]"
    found = confined(attempts, uid=uid, landlock=landlock(["/proc", "read"]), seccomp=program())
    assert found == [str(uid or os.geteuid()), "0" * 16, "2", "1"]


# --- what cannot be applied ----------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["00" * 8, "", "ff" * 64])
def test_a_filter_that_the_kernel_refuses_is_an_error(broken: str) -> None:
    refused, error, text = confined("", seccomp=broken)
    assert (refused, error) == ("refused", "EINVAL")
    assert "prctl 22" in text


@needs_landlock
def test_a_rule_that_cannot_be_made_is_an_error(ground: Path) -> None:
    refused, error, _ = confined("", landlock=landlock([str(ground / "file" / "below"), "read"]))
    assert (refused, error) == ("refused", "ENOTDIR")


def test_a_uid_that_cannot_be_taken_is_an_error() -> None:
    if os.geteuid() == 0:
        refused, error, _ = confined("", uid=2**32 - 1 - 1, seccomp="00")
    else:
        refused, error, _ = confined("", uid=os.geteuid() + 1)
    assert refused == "refused"
    assert error in ("EPERM", "EINVAL")


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "walled"])
def test_a_worker_that_cannot_be_confined_ends_with_a_status_of_its_own(
    tmp_path: Path, guarded: bool
) -> None:
    directories = WorkerDirectories(tmp_path, "worker-0")
    directories.create(os.geteuid())
    directories.open_temp(1, os.geteuid())
    marker = tmp_path / "ran"
    config = PoolConfig.read({"worker_command": ["touch", str(marker)]})
    spec = launch_spec(directories, 1, config, {}, os.getpid())
    spec = replace(spec, confinement={"uid": None, "landlock": None, "seccomp": "00" * 8}, guarded=guarded)
    ours, theirs = socket.socketpair()
    with ours, theirs, Descriptors(theirs) as descriptors:
        done = subprocess.run(
            descriptors.resolve(spec.argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=spec.environment,
            pass_fds=descriptors.passed,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == EXIT_UNCONFINED == 73
    assert done.stderr.startswith("the wall cannot be put up from inside: ")
    assert done.stderr.count("\n") == 1
    assert not marker.exists(), "nothing runs behind less than was asked for"
