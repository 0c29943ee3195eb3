"""What a process tree costs, measured on a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moltbot.sandbox.memory import Usage, measure

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
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close() if process.stdin else None
            process.kill()


def test_a_tree_is_measured_with_its_children() -> None:
    with tree() as process:
        usage = measure(process.pid, 10)
    assert usage is not None
    assert 40 * MB < usage.memory < 200 * MB
    assert usage.cpu_seconds > 0
    assert usage.tasks == 2


def test_threads_count_as_tasks() -> None:
    program = (
        "import sys, threading\n"
        "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        usage = measure(process.pid, 10)
        process.kill()
    assert usage is not None
    assert usage.tasks == 4


def test_of_far_too_many_processes_only_the_number_is_told() -> None:
    with tree() as process:
        assert measure(process.pid, 1) == Usage(0, 0.0, 2)


def test_a_vanished_process_has_no_measure() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert measure(process.pid, 10) is None


def test_a_zombie_costs_nothing() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.kill()
        assert process.stdout is not None
        assert process.stdout.read() == b"", "it has ended, and nobody has asked for its status yet"
        usage = measure(process.pid, 10)
    assert usage is None or usage.memory == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_process_that_closes_itself_to_others_is_counted_all_the_same() -> None:
    program = (
        "import ctypes, sys\n"
        "assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0\n"  # PR_SET_DUMPABLE
        "block = b'x' * (40 << 20); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        usage = measure(process.pid, 10)
        process.kill()
    assert usage is not None
    assert usage.memory > 40 * MB
    assert usage.tasks == 1


def test_files_in_memory_count_with_what_the_kernel_keeps_of_each() -> None:
    """Whatever the filesystem is: the difference that files make is measured."""
    place = Path("/dev/shm")
    if not place.is_dir() or not os.access(place, os.W_OK):
        pytest.skip("there is no filesystem in memory here")
    folder = place / f"moltbot-test-{os.getpid()}"
    with tree() as process:
        before = measure(process.pid, 10, [str(place)])
        folder.mkdir()
        try:
            (folder / "large").write_bytes(b"x" * 30 * MB)
            after = measure(process.pid, 10, [str(place)])
        finally:
            shutil.rmtree(folder)
    assert before is not None
    assert after is not None
    assert after.memory - before.memory > 20 * MB
