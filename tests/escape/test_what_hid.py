"""What a worker hides from the gateway's look: folders that change their names, files and memory that nobody seems to have."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moltbot.core.errors import IsolationUnavailable, StorageFull
from moltbot.sandbox import disk as disk_module
from moltbot.sandbox import pool as pool_module
from moltbot.sandbox import storage as storage_module
from moltbot.sandbox.disk import DiskLimits, DiskUse, measure_deleted, measure_disk
from moltbot.sandbox.memory import measure
from moltbot.sandbox.storage import HIDDEN_LOOKS, StorageRule
from tests.escape.siege import LEVELS
from tests.fakes import PATIENCE
from tests.legit.walls import unavailable
from tests.sandbox.pools import failure, running_pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

MB = 1 << 20


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said `ready`; it goes on as soon as it gets a line."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert said(process) == "ready"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


# --- folders that change their names ------------------------------------------------------------------------

RENAMES = """
import itertools, os, sys
os.chdir(sys.argv[1])
name = "folder"
print("ready", flush=True)
for number in itertools.count():
    os.rename(name, str(number))
    name = str(number)
"""
HIDES = f"""
import asyncio, subprocess, sys
from moltbot import handler

@handler("agent")
async def agent(ctx, payload):
    if payload != "hide":
        return payload
    place = ctx.cache_dir
    (place / "folder").mkdir()
    command = [sys.executable, "-I", "-S", "-c", {RENAMES!r}, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            await asyncio.sleep(1000)
        finally:
            process.kill()
"""


def folder_with(directory: Path, files: int) -> int:
    """Make a folder with so many files; returns its inode."""
    folder = directory / "folder"
    folder.mkdir()
    for number in range(files):
        (folder / str(number)).touch()
    return folder.stat().st_ino


def test_a_folder_that_changes_its_name_between_two_looks_is_missed(tmp_path: Path) -> None:
    inode, end = folder_with(tmp_path, 50), time.monotonic() + PATIENCE
    assert measure_disk([tmp_path], max_inodes=1000) == DiskUse(4096 * 2, 52)
    with running(RENAMES, str(tmp_path)):
        while (use := measure_disk([tmp_path], max_inodes=1000)).missed != {inode}:
            assert time.monotonic() < end
    assert use.inodes == 2, "what is in it was not seen"


def test_whatever_is_not_counted_is_missed(tmp_path: Path) -> None:
    """Beside a thousand others, the folder has another name before it is even asked what it is.

    A listing may also leave out a name that changes meanwhile: of that look nothing can be said.
    """
    for number in range(1200):
        (tmp_path / f"beside-{number}").touch()
    inode = folder_with(tmp_path, 50)
    with running(RENAMES, str(tmp_path)):
        uses = [measure_disk([tmp_path], max_inodes=10_000) for _ in range(50)]
    assert any(inode in use.missed for use in uses), "each look by itself may see all of it, or nothing"
    assert all(use.inodes > 1210 or use.missed <= {inode} for use in uses)


def judged(*missed: set[int]) -> list[bool]:
    """After which of these looks a worker is refused."""
    rule = StorageRule(DiskLimits(1000, 100))
    uses = (DiskUse(100, 10, missed=frozenset(inodes)) for inodes in missed)
    return [rule.judge(use, ready=False).full is not None for use in uses]


def test_who_is_missed_in_one_look_after_the_other_hides() -> None:
    assert HIDDEN_LOOKS == 3
    assert judged({7}, {7}, {7}, {7}, set(), {7}) == [False, False, True, True, False, False]
    assert judged({7, 8}, {9, 7}, {7, 5}) == [False, False, True], "among others"
    rule = StorageRule(DiskLimits(1000, 100))
    verdicts = [rule.judge(DiskUse(1, 1, missed=frozenset({7})), ready=True) for _ in range(4)]
    assert "change their names" in (verdicts[2].full or "")
    assert verdicts[3].restart == verdicts[2].full


def test_an_honest_build_that_makes_and_removes_folders_hides_nothing() -> None:
    assert judged(*({number} for number in range(20))) == [False] * 20
    assert judged(*({7} if number % 3 else {number} for number in range(20, 40))) == [False] * 20


@pytest.mark.parametrize("level", LEVELS)
async def test_a_worker_that_hides_a_folder_is_full(
    tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look that misses it is enough here: who runs when is the scheduler's affair. That it takes three is shown above."""
    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.02)
    monkeypatch.setattr(storage_module, "HIDDEN_LOOKS", 1)
    try:
        async with running_pool(tmp_path, HIDES, isolation=level) as found:
            assert await found.ask("hello") == "hello"
            error = await failure(found.send("hide"))
    except IsolationUnavailable as reason:
        unavailable(str(reason))
    assert isinstance(error, StorageFull)
    assert "folders that change their names" in str(error)


# --- files that have no name --------------------------------------------------------------------------------

MAPS = """
import mmap, os, sys
path = sys.argv[1] + "/mapped"
with open(path, "wb+") as file:
    file.write(b"x" * (2 << 20))
    file.flush()
    kept = mmap.mmap(file.fileno(), 0)
os.unlink(path)
# `mmap` keeps a descriptor of its own: only the mapping shall be left
for name in os.listdir("/proc/self/fd"):
    try:
        if os.readlink("/proc/self/fd/" + name).startswith(path):
            os.close(int(name))
    except OSError:
        pass
print("ready", flush=True)
sys.stdin.read()
"""
OPENS = """
import os, sys
kept = [os.dup(0) for _ in range(100)]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what others map")
def test_a_deleted_file_counts_as_long_as_it_is_mapped(tmp_path: Path) -> None:
    with running(MAPS, str(tmp_path)) as process:
        assert measure_deleted(process.pid, tmp_path) == DiskUse(2 * MB, 1)


def test_more_descriptors_than_anybody_looks_at_hide_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(OPENS) as process:
        assert measure_deleted(process.pid, tmp_path) == DiskUse(0, 0)
        monkeypatch.setattr(disk_module, "MOST_DESCRIPTORS", 50)
        assert measure_deleted(process.pid, tmp_path).uncounted == "more than 50 descriptors are open"


async def test_and_who_opens_so_many_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "HEALTH_SECONDS", 0.05)
    async with running_pool(tmp_path) as found:
        assert await found.ask("hello") == "hello"
        call = found.send("wait")
        monkeypatch.setattr(disk_module, "MOST_DESCRIPTORS", 2)
        error = await failure(call)
    assert isinstance(error, StorageFull)
    assert "more than 2 descriptors are open" in str(error)


# --- memory that no process seems to have -------------------------------------------------------------------

LEADERLESS = """
import ctypes, os, platform, sys, threading, time

def live():
    kept = b"x" * (60 << 20)
    while b") Z" not in open("/proc/self/stat", "rb").read():
        time.sleep(0.001)
    os.write(1, b"ready\\n")
    os.read(0, 1)

threading.Thread(target=live).start()
ctypes.CDLL(None).syscall(93 if platform.machine() == "aarch64" else 60, 0)
"""
TOUCHES = """
import mmap, sys
place = mmap.mmap(-1, 16 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
place.madvise(mmap.MADV_NOHUGEPAGE)
print("ready", flush=True)
sys.stdin.readline()
for position in range(0, len(place), 2 << 20):
    place[position]
print("touched", flush=True)
sys.stdin.read()
"""


def test_a_process_whose_first_thread_has_ended_is_measured_all_the_same() -> None:
    with running(LEADERLESS) as process:
        usage = measure(process.pid, 10)
    assert usage is not None
    assert 60 * MB < usage.memory < 100 * MB
    assert usage.tasks >= 1


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="other pages, other tables")
def test_the_tables_of_pages_count() -> None:
    """Each page that is read is the same one of zeros: nothing but the way to it costs memory, 4 KB for each 2 MB."""
    with running(TOUCHES) as process:
        before = measure(process.pid, 10)
        go_on(process)
        assert said(process) == "touched"
        after = measure(process.pid, 10)
    assert before is not None
    assert after is not None
    assert 30 * MB < after.memory - before.memory < 40 * MB
