"""What directories hold, measured on real trees that a hostile worker could make, and how that is judged."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.disk import (
    MAX_DEPTH,
    DiskFinding,
    DiskLimits,
    DiskUse,
    judge_disk,
    measure_deleted,
    measure_disk,
)
from tests.sandbox.test_base_directory import WITHOUT_OVERRIDE

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
MEASURE = (
    "from moltbot.sandbox.disk import *; import sys; print(measure_disk([Path(sys.argv[1])], max_inodes=99))"
)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A worker's directory; afterwards no descriptor is left, and no tree that pytest's own cleaning could not remove."""
    path = tmp_path / "worker"
    path.mkdir()
    before = descriptors()
    yield path
    subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True)
    subprocess.run(["rm", "-rf", str(path)], check=True)
    assert descriptors() == before


def descriptors() -> list[str]:
    return [name for name in os.listdir("/dev/fd") if os.path.lexists(f"/dev/fd/{name}")]


def blocks(*paths: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in paths)


def measure(*roots: Path, max_inodes: int = 1_000_000) -> DiskUse:
    return measure_disk(roots, max_inodes=max_inodes)


def write(path: Path, size: int) -> Path:
    path.write_bytes(b"x" * size)
    return path


def nest(directory: Path, depth: int) -> None:
    """Folders in each other, deeper than a path can name, each with a file."""
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=below))
        os.close(here)
        here = below
    os.close(here)


def before_opening(monkeypatch: pytest.MonkeyPatch, action: Callable[[object], None]) -> None:
    """Let the worker do something at the worst moment."""

    def watched(name: Any, *args: Any, original: Callable[..., int] = os.open, **options: Any) -> int:
        action(name)
        return original(name, *args, **options)

    monkeypatch.setattr(os, "open", watched)


def test_files_and_folders_of_all_roots_count_with_their_blocks(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "c").mkdir()
    paths = [root / "a", root / "a" / "b", root / "c"]
    paths += [write(root / "a" / "b" / "file", 300 * KB), write(root / "c" / "file", 5)]
    assert measure(root / "a", root / "c") == DiskUse(blocks(*paths), 5)
    assert measure(root / "a").size >= 300 * KB


def test_a_root_may_be_missing_or_something_else(root: Path) -> None:
    file = write(root / "cache", 200 * KB)
    os.truncate(file, GB)  # the hole costs nothing
    assert measure(root / "missing", root / "not" / "there") == DiskUse(0, 0)
    assert measure(file, root / "missing") == DiskUse(blocks(file), 1)
    assert blocks(file) < MB


def test_a_hard_linked_file_is_on_disk_once_but_each_name_counts(root: Path) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    file = write(root / "a" / "file", 300 * KB)
    for number in range(10):
        os.link(file, root / "b" / str(number))
    assert measure(root / "a", root / "b") == DiskUse(blocks(root / "a", root / "b", file), 13)
    assert measure(root, max_inodes=7).inodes == 8


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"..." + b"x" * 250, b"-rf", b" ", b"\x1b[2J"])
def test_a_hostile_name_is_a_name(root: Path, name: bytes) -> None:
    folder = root / os.fsdecode(name)
    folder.mkdir()
    write(folder / os.fsdecode(name), 100 * KB)
    assert measure(root) == DiskUse(blocks(root, folder, *folder.iterdir()), 3)


def test_pipes_and_sockets_are_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    assert measure(root).inodes == 3
    assert measure(root / "pipe", root / "socket").inodes == 2


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(outside / "large", 5 * MB)
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "large")
    (root / "loop").symlink_to(root)
    assert measure(root, root / "folder", root / "file").inodes == 6
    assert measure(root, root / "folder", root / "file").size < MB


def test_another_filesystem_is_not_entered(root: Path) -> None:
    mounted = root / "mounted"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "none", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a filesystem")
    try:
        write(mounted / "large", 5 * MB)
        assert measure(root).inodes == 2
        assert measure(root).size < MB
        assert measure(mounted).size >= 5 * MB
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="how root gives up its rights is Linux's own")
def test_folders_closed_to_us_count_and_the_rest_is_measured(root: Path) -> None:
    for name, mode in {"closed": 0o000, "listed": 0o444, "open": 0o755}.items():
        (root / name).mkdir()
        write(root / name / "file", 100 * KB)
        write(root / name / "other", 100 * KB)
        (root / name).chmod(mode)  # of what is in "listed" the names can be read, and no more
    command = [sys.executable, "-c", WITHOUT_OVERRIDE, sys.executable, "-c", MEASURE, str(root)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    size = blocks(root, *root.iterdir(), *(root / "open").iterdir())
    assert output == f"{DiskUse(size, 8, CLOSED)}\n"


def test_thousands_of_nested_folders_cost_no_more_than_the_last_that_fit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, most = len(descriptors()), [0]
    nest(root, MAX_DEPTH - 1)
    entries = 1 + 2 * (MAX_DEPTH - 1)
    assert measure(root) == DiskUse(measure(root).size, entries)
    os.rename(root / "d", root / "last")
    nest(root, 3000)
    before_opening(monkeypatch, lambda _: most.append(len(descriptors()) - before))
    assert measure(root) == DiskUse(measure(root).size, 2 * entries, "folders nested deeper than 128"), (
        "and the first beyond"
    )
    assert max(most) == MAX_DEPTH - 1, "open before the last one was"


def test_tens_of_thousands_of_files_are_counted_or_as_many_as_are_asked_for(root: Path) -> None:
    (root / "later").mkdir()
    (root / "many").mkdir()
    here = os.open(root / "many", os.O_RDONLY)
    for number in range(20_000):
        os.close(os.open(str(number), os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    assert measure(root).inodes == 20_003
    assert measure(root, max_inodes=20_003).inodes == 20_003
    assert measure(root / "many", root / "later", max_inodes=500).inodes == 501


@pytest.mark.parametrize("target", ["outside", None])
def test_a_folder_exchanged_before_it_is_entered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None
) -> None:
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "large", 5 * MB)
    (root / "folder").mkdir()

    def exchange(name: object) -> None:
        if name == "folder":
            (root / "folder").rmdir()
            if target:
                (root / "folder").symlink_to(tmp_path / target)

    before_opening(monkeypatch, exchange)
    assert measure(root).inodes == 2
    assert measure(root).size < MB


def test_a_tree_that_changes_all_the_time_is_survived(root: Path) -> None:
    script = "while :; do mkdir -p a/b/c d/e; touch a/b/c/f d/e/f; mv d a/b; rm -rf a; done"
    with subprocess.Popen(["sh", "-c", script], cwd=root) as worker:
        try:
            assert all(1 <= measure(root).inodes <= 20 for _ in range(2000))
        finally:
            worker.kill()


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "too many"), MemoryError("too many")])
def test_our_own_lack_is_an_error_and_not_a_small_figure(
    root: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    nest(root, 5)
    opened: list[object] = []

    def fail(name: object) -> None:
        opened.append(name)
        if len(opened) == 4:
            raise failure

    with monkeypatch.context() as patch, pytest.raises(type(failure), match="too many"):
        before_opening(patch, fail)
        measure(root)


CLOSED = "folders that the gateway cannot read: chmod -R u+rwX"
LIMITS = DiskLimits(max_size=GB, max_inodes=100_000)
ON_DISK = "on disk, the limit is 1GB (max_disk)"
ENTRIES = "files and folders, the limit is 100000 (max_inodes)"
VERDICTS = [
    (DiskUse(GB * 8 // 10, 79_999), None),
    (DiskUse(GB * 8 // 10 + 1, 0), DiskFinding(False, f"819.2 MB {ON_DISK}")),
    (DiskUse(GB, 0), DiskFinding(False, f"1.0 GB {ON_DISK}")),
    (DiskUse(GB + 1, 80_000), DiskFinding(True, f"1.0 GB {ON_DISK}")),
    (DiskUse(GB * 6 // 5, 0), DiskFinding(True, f"1.2 GB {ON_DISK}")),
    (DiskUse(0, 80_000), DiskFinding(False, f"80000 {ENTRIES}")),
    (DiskUse(0, 100_000), DiskFinding(False, f"100000 {ENTRIES}")),
    (DiskUse(GB, 120_000), DiskFinding(True, f"120000 {ENTRIES}")),
    (DiskUse(0, 0, "folders nested deeper than 128"), DiskFinding(True, "folders nested deeper than 128")),
]


@pytest.mark.parametrize(("use", "finding"), VERDICTS)
def test_use_is_judged_by_the_worst_of_it(use: DiskUse, finding: DiskFinding | None) -> None:
    assert judge_disk(use, LIMITS) == finding


# --- what has no name any more -----------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors of others are seen on Linux only")
def test_deleted_files_count_as_long_as_they_are_open(root: Path) -> None:
    program = (
        "import os, sys\n"
        f"files = [open({str(root)!r} + f'/{{n}}', 'wb') for n in range(3)]\n"
        "for file in files: file.write(b'x' * (1 << 20)); file.flush()\n"
        "twin = os.dup(files[0].fileno())\n"
        "os.unlink(files[0].name); os.unlink(files[1].name)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    outer = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    command = [sys.executable, "-c", outer, program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        assert measure_deleted(process.pid, root).size == 2 * MB, "each once, and not the one that has a name"
        process.stdin.close()
    assert measure_deleted(process.pid, root) == DiskUse(0, 0)
