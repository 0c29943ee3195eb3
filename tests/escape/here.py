"""What this machine lets the tests' own user do, and so an unwalled worker: kernels, distributions and containers differ in it."""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moltbot.worker.confine import landlock_abi
from tests.escape import prelude
from tests.escape.table import Expected, is_open, refused

PRELUDE = Path(prelude.__file__).read_text(encoding="utf-8")
RUNNER = f"""{PRELUDE}

import json, sys
given = json.load(sys.stdin)
print(json.dumps(judge(given["program"], given["facts"])))
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended: refused, open, or broken, which is neither. how: an errno's name, a word, or what was got."""

    outcome: str
    how: str
    detail: str = ""


@functools.cache
def capable(number: int) -> bool:
    """True if this process has the capability with this number, see capabilities(7)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def with_capability(number: int, why: str, otherwise: str = "EPERM") -> Expected:
    """Open to a gateway that has the capability; to another one the kernel itself refuses it."""
    return is_open(why) if capable(number) else refused(otherwise)


def from_abi(abi: int, *how: str) -> Expected:
    """Refused by a Landlock of this version or a later one."""
    found = landlock_abi()
    return refused(*how) if found >= abi else is_open(f"Landlock ABI {found} cannot do it, {abi} can")


def as_here(action: Callable[[], object], why: str) -> Expected:
    """What happens to the tests' own process happens to an unwalled worker: kernels and machines differ in it."""
    try:
        action()
    except OSError as error:
        return refused(errno.errorcode[error.errno or 0])
    return is_open(why)


def opened(path: str, flags: int = os.O_RDONLY) -> Callable[[], None]:
    """Opens a file and closes it."""
    return lambda: os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK))


def made(family: int, kind: int, protocol: int = 0) -> Callable[[], None]:
    """Makes a socket and closes it."""
    return lambda: socket.socket(family, kind, protocol).close()


def outside(program: str) -> Expected:
    """The same for a whole program, in a process of its own: what kernels and distributions differ in."""
    given = json.dumps({"program": program, "facts": {}})
    ended = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER], input=given, capture_output=True, text=True, check=True
    )
    verdict = Verdict(**json.loads(ended.stdout))
    if verdict.outcome == "broken":
        raise AssertionError(f"{program} ends with {verdict}")
    if verdict.outcome == "open":
        return is_open("nothing guards the kernel, and it lets the gateway's user do this")
    return refused(verdict.how)


@functools.cache
def traceable() -> bool:
    """True if processes of one user may trace each other: Yama may forbid it."""
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii"))
    except OSError:
        return True
    return scope == 0 or (scope < 3 and capable(19))


def traced(why: str) -> Expected:
    """Open unless Yama forbids it."""
    return is_open(why) if traceable() else refused("EPERM", "EACCES")
