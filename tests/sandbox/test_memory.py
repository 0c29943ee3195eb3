"""What a process tree costs, measured on a real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from moltbot.sandbox.memory import measure

MB = 1 << 20
CHILD = "import sys; block = b'x' * (40 << 20); print('ready', flush=True); sys.stdin.read()"
PARENT = (
    "import subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], stdin=subprocess.PIPE)\n"
    "block = b'x' * (20 << 20)\n"
    "child.wait() if sys.stdin.read() == '' else None\n"
)


@contextmanager
def tree() -> Iterator[subprocess.Popen[str]]:
    """A process with 20 MB and its child with 40 MB."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close() if process.stdin else None
        process.kill()


def test_a_tree_is_measured_with_its_children() -> None:
    with tree() as process:
        usage = measure(process.pid)
    assert usage is not None
    assert 40 * MB < usage.memory < 200 * MB
    assert usage.cpu_seconds > 0


def test_a_vanished_process_has_no_measure() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert measure(process.pid) is None


def test_a_zombie_costs_nothing() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b"", "it has ended, and nobody has asked for its status yet"
        usage = measure(process.pid)
    assert usage is None or usage.memory == 0
