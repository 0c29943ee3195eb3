"""The filter of system calls in a real kernel: what it refuses, and what has to work under it.

Every call of the table is made, in children that do nothing else, with arguments that nothing can come of.
What the table says about other arguments and the other machine is in `test_seccomp_rules.py`.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.isolation.seccomp import SUPPORTED, assemble
from moltbot.sandbox.isolation.seccomp_rules import Rule
from tests.sandbox.isolation.test_seccomp_rules import (
    BY_ARGUMENT,
    BY_ARGUMENTS,
    ENOSYS,
    EPERM,
    LAST_KNOWN,
    LATER,
    LOOSEST,
    ONLINE,
    REFUSED,
    SOCKETS,
    STRICTEST,
    numbers,
)

MACHINE = platform.machine()
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or MACHINE not in SUPPORTED,
    reason="there is a table for Linux on two machines only",
)

Call = tuple[str, tuple[int, ...]]

INSTALL = """
import ctypes, json, os, sys
job = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
libc["syscall"].restype = ctypes.c_long

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]

def call(function, *arguments):
    ctypes.set_errno(0)
    signed = [(each + 2**63) % 2**64 - 2**63 for each in (*arguments, 0, 0, 0, 0, 0, 0, 0)[:7]]
    result = libc[function](*map(ctypes.c_long, signed))
    return [result, ctypes.get_errno() if result == -1 else 0]

def install(lines=bytes.fromhex(job["program"])):
    if lines:
        program = Program(len(lines) // 8, lines)
        assert call("prctl", 38, 1) == [0, 0], "PR_SET_NO_NEW_PRIVS"
        assert call("prctl", 22, 2, ctypes.addressof(program)) == [0, 0], "PR_SET_SECCOMP"
"""
CALLS = """
install()
print(json.dumps([call("syscall", *each) for each in job["calls"]]))
"""
# getpid through the door of 32-bit programs: mov eax, 20; int 0x80; ret.
OTHER_DOOR = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))
enter = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
entered = [enter()]
install()
print(json.dumps([*entered, os.getpid(), enter()]))
"""
ORDINARY = """
install()
import asyncio, multiprocessing, socket, subprocess, threading, time

done = []
thread = threading.Thread(target=done.append, args=["thread"])
thread.start(); thread.join()
child = os.fork()
if not child:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
done.append("fork")
assert subprocess.run(["/bin/sh", "-c", "echo out | cat"], capture_output=True).stdout == b"out\\n"
done.append("subprocess")
one, other = socket.socketpair()
one.sendall(b"x")
assert other.recv(1) == b"x"
done.append("socketpair")

async def main():
    program = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", "print(1)", stdout=-1)
    assert (await program.communicate())[0] == b"1\\n"
    assert await asyncio.to_thread(lambda: 5) == 5

asyncio.run(main())
done.append("asyncio")
for how in ("fork", "spawn"):
    process = multiprocessing.get_context(how).Process(target=time.sleep, args=(0,))
    process.start(); process.join()
    assert process.exitcode == 0
    done.append(how + " of multiprocessing")
near, far = multiprocessing.Pipe()
near.send([1]); assert far.recv() == [1]
os.close(os.pidfd_open(os.getpid()))
done.append("pidfd")
print(json.dumps(done))
"""

# -1 is no descriptor, no process, no address, and all flags at once. These are for calls that would take it.
HARMLESS: Mapping[str, tuple[int, ...]] = {
    "init_module": (1, 0, 1),
    "modify_ldt": (0, 0, 0),
    "msgget": (-1, 0),
    "semget": (-1, 0, 0),
    "shmget": (-1, 0, 0),
}
# Without a capability the kernel itself says what the filter says, so only root sees a difference.
PRIVILEGED = """
    pivot_root move_mount fsopen fsmount fspick open_by_handle_at fanotify_init userfaultfd bpf
    perf_event_open init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff
    acct quotactl syslog iopl ioperm vhangup settimeofday clock_settime adjtimex clock_adjtime
    sethostname setdomainname
"""


def run(script: str, job: Mapping[str, Any]) -> Any:
    """Run `script` in a child without a terminal, which vhangup could hang up."""
    child = subprocess.run(
        [sys.executable, "-I", "-c", INSTALL + script],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def make(calls: Sequence[Call], program: bytes = b"") -> list[tuple[int, int]]:
    """Make these calls one after the other in a child, under `program` if given; result and error of each."""
    number = numbers(REFUSED, MACHINE)
    made = [(number[name], *arguments) for name, arguments in calls]
    return [tuple(each) for each in run(CALLS, {"program": program.hex(), "calls": made})]


def plain() -> list[Call]:
    """The calls of this machine that are refused whatever their arguments."""
    names = [name for name in numbers(REFUSED, MACHINE) if name not in BY_ARGUMENTS]
    return [(name, HARMLESS.get(name, (-1,) * 6)) for name in names]


def status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def test_the_kernel_refuses_every_call_of_the_table() -> None:
    calls = plain()
    outcomes = zip(calls, make(calls, assemble(STRICTEST, MACHINE)), strict=True)
    assert {name: outcome for (name, _), outcome in outcomes} == {
        name: (-1, ENOSYS if name in LATER else EPERM) for name, _ in calls
    }


def test_without_the_filter_the_same_calls_get_further() -> None:
    if status("Seccomp") != "0":
        pytest.skip("these tests run under somebody's filter")
    root = int(status("CapEff"), 16) & (1 << 21)  # CAP_SYS_ADMIN
    calls = [(name, arguments) for name, arguments in plain() if root or name not in PRIVILEGED.split()]
    outcomes = zip(calls, make(calls), strict=True)
    same = {name for (name, _), outcome in outcomes if outcome == (-1, ENOSYS if name in LATER else EPERM)}
    # A kernel may have been built without these.
    assert same <= {"memfd_secret", "io_uring_setup", "io_uring_enter", "io_uring_register"}
    assert len(calls) > 30


def test_the_kernel_judges_arguments_as_the_table_does() -> None:
    some = [case for case in BY_ARGUMENT + SOCKETS if case[0] != "clone"]
    outcomes = make([case[:2] for case in some], assemble(ONLINE, MACHINE))
    for case, (result, error) in zip(some, outcomes, strict=True):
        if case[2]:
            assert (result, error) == (-1, case[2]), case
        else:
            assert error != EPERM, case  # other errors are the kernel's: there is no such descriptor, say


def test_the_kernel_refuses_namespaces_of_clone_and_lets_others_through() -> None:
    # What is let through would make a process. With CLONE_SIGHAND (0x800) but not CLONE_VM (0x100) it is an
    # error of its own; that threads start is shown by programs below.
    some = [case for case in BY_ARGUMENT if case[0] == "clone" and not case[1][0] & 0x100]
    calls = [(name, (arguments[0] | 0x800,)) for name, arguments, _ in some]
    expected = [(-1, error or errno.EINVAL) for _, _, error in some]
    assert make(calls, assemble(STRICTEST, MACHINE)) == expected
    assert {error for _, error in expected} == {EPERM, errno.EINVAL}
    if status("Seccomp") == "0":
        assert make(calls) == [(-1, errno.EINVAL)] * len(calls)


def test_newer_calls_and_the_second_door_do_not_exist() -> None:
    getpid = {"x86_64": 39, "aarch64": 172}[MACHINE]
    calls = [(getpid,), (LAST_KNOWN + 1,), (0x40000000 | getpid,), (0xFFFFFFFF,)]
    outcomes = run(CALLS, {"program": assemble(LOOSEST, MACHINE).hex(), "calls": calls})
    assert outcomes[0][0] > 0
    assert outcomes[1:] == [[-1, ENOSYS]] * 3


@pytest.mark.skipif(MACHINE != "x86_64", reason="the machine code is for x86-64")
def test_numbers_of_32_bit_programs_do_not_pass() -> None:
    try:
        before, pid, after = run(OTHER_DOOR, {"program": assemble(LOOSEST, MACHINE).hex()})
    except AssertionError:
        pytest.skip("this kernel runs no 32-bit programs, or lets no page be both written and executed")
    assert (before, after) == (pid, -ENOSYS)


def test_a_pair_of_datagrams_would_reach_any_name(tmp_path: Path) -> None:
    """Why `unix=False` refuses them: what an end of theirs may do, and one of a stream may not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "s"))
        for kind, reaches in ((socket.SOCK_DGRAM, True), (socket.SOCK_STREAM, False)):
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            with one, other:
                if reaches:
                    one.sendto(b"x", str(tmp_path / "s"))
                    assert server.recv(1) == b"x"
                else:
                    with pytest.raises(OSError, match=os.strerror(errno.EISCONN)):
                        one.sendto(b"x", str(tmp_path / "s"))


@pytest.mark.parametrize("table", [STRICTEST, ONLINE, LOOSEST], ids=["strictest", "online", "loosest"])
def test_ordinary_programs_run(table: tuple[Rule, ...]) -> None:
    done = run(ORDINARY, {"program": assemble(table, MACHINE).hex()})
    assert done == [
        "thread", "fork", "subprocess", "socketpair", "asyncio",
        "fork of multiprocessing", "spawn of multiprocessing", "pidfd",
    ]  # fmt: skip
