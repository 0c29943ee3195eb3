"""One worker's directories: their layout, and a worker that plants what it can in them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moltbot.core.errors import BaseDirectoryError, InvalidRequest
from moltbot.sandbox.directories import (
    METADATA,
    PARTS,
    TRASH,
    WorkerDirectories,
    check_worker_id,
    worker_name,
)

OURS = os.geteuid()
ELSE, OTHER = 2_000_000_007, 2_000_000_008
AS_ROOT = pytest.mark.skipif(OURS != 0, reason="only root can give files to others")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerDirectories]:
    directories = WorkerDirectories(tmp_path, "worker-0")
    directories.create(OURS)
    yield directories
    # What is nested too deep for Python must not be left to pytest's own cleaning.
    subprocess.run(["rm", "-rf", str(directories.root), str(tmp_path / TRASH)], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def nest(directory: Path, depth: int) -> None:
    """Folders in each other, deeper than a path can name."""
    directory.mkdir(exist_ok=True)
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


# --- layout ---------------------------------------------------------------------------------------------------


def test_the_layout_is_the_documented_one(tmp_path: Path, worker: WorkerDirectories) -> None:
    assert {path.name for path in (tmp_path / "worker-0").iterdir()} == {
        "sessions",
        "state",
        "cache",
        "temp",
        "logs",
    }
    assert worker.log_file == tmp_path / "worker-0" / "logs" / "worker.log"
    assert worker.temp(3) == tmp_path / "worker-0" / "temp" / "3"


def test_nobody_else_can_enter_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        worker = WorkerDirectories(tmp_path, "worker-0")
        worker.create(OURS)
        worker.open_temp(1, OURS)
        worker.write_metadata({"created": "now", "incarnation": 1})
    finally:
        os.umask(before)
    for directory in (worker.root, *(worker.root / part for part in PARTS), worker.temp(1)):
        assert mode(directory) == 0o700, directory
    assert mode(worker.root / METADATA) == 0o600


def test_creating_again_keeps_what_is_there(worker: WorkerDirectories) -> None:
    (worker.root / "sessions" / "kept").touch()
    worker.create(OURS)
    assert (worker.root / "sessions" / "kept").exists()


@pytest.mark.parametrize(
    "name",
    [
        "worker-0/../x",
        "../worker-0",
        "worker-00",
        "worker-01",
        "worker-",
        "worker--1",
        "worker-1 ",
        "worker-1\n",
        "worker-1\0",
        "worker-١",
        "worker-²",
        "Worker-0",
        "worker-123456",
        "",
        ".",
        "/etc",
        None,
        0,
        b"worker-0",
    ],
)
def test_a_hostile_worker_id_names_no_directory(tmp_path: Path, name: object) -> None:
    with pytest.raises(InvalidRequest, match="is not a worker's name"):
        check_worker_id(name)
    with pytest.raises(InvalidRequest):
        WorkerDirectories(tmp_path, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [0, 1, 10, 63, 99_999])
def test_every_name_the_pool_makes_is_a_workers_name(index: int) -> None:
    assert check_worker_id(worker_name(index)) == worker_name(index)


# --- what a worker may have planted ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("planted", ["link", "file", "pipe"])
def test_what_was_planted_in_place_of_a_directory_is_put_aside(
    worker: WorkerDirectories, tmp_path: Path, part: str, planted: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = worker.root / part
    path.rmdir()
    match planted:
        case "link":
            path.symlink_to(outside)
        case "file":
            path.touch()
        case "pipe":
            os.mkfifo(path)
    worker.create(OURS)
    assert stat.S_ISDIR(path.lstat().st_mode)
    assert list(outside.iterdir()) == [], "nothing was made behind the link"
    assert len(os.listdir(tmp_path / TRASH)) == 1


def test_a_link_in_place_of_the_worker_itself_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "worker-0").symlink_to("elsewhere")
    WorkerDirectories(tmp_path, "worker-0").create(OURS)
    assert list((tmp_path / "elsewhere").iterdir()) == [], "nothing was made behind it"


def test_a_directory_in_place_of_the_metadata_is_put_aside(worker: WorkerDirectories) -> None:
    (worker.root / METADATA / "in the way").mkdir(parents=True)
    worker.write_metadata({"created": "now", "incarnation": 7})
    assert worker.read_incarnation() == 7


def test_a_full_or_broken_temp_is_refused_with_its_cause(worker: WorkerDirectories) -> None:
    (worker.root / "temp").rmdir()
    with pytest.raises(BaseDirectoryError, match="No such file or directory"):
        worker.open_temp(1, OURS)


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_a_name_planted_for_the_next_incarnation_cannot_stop_its_start(
    worker: WorkerDirectories, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    match kind:
        case "directory":
            nest(worker.temp(2), 3000)
        case "file":
            worker.temp(2).touch()
        case "link":
            worker.temp(2).symlink_to(outside)
    worker.open_temp(2, OURS)
    assert stat.S_ISDIR(worker.temp(2).lstat().st_mode)
    assert list(worker.temp(2).iterdir()) == [worker.home(2)]
    assert outside.is_dir()


async def test_what_stands_in_the_place_of_the_trash_is_put_beside_it(worker: WorkerDirectories) -> None:
    trash = worker.root.parent / TRASH
    trash.rmdir()
    trash.write_text("something else")
    worker.create(OURS)
    [aside] = trash.parent.glob(f".{TRASH}-worker-*")
    assert aside.read_text() == "something else"
    worker.open_temp(1, OURS)
    await worker.empty_trash()
    assert os.listdir(trash) == []


# --- temp --------------------------------------------------------------------------------------------------------------


async def test_only_the_running_incarnations_temp_is_kept(worker: WorkerDirectories) -> None:
    for incarnation in (1, 2, 3):
        worker.open_temp(incarnation, OURS)
        (worker.temp(incarnation) / "file").touch()
    await worker.empty_trash()
    assert os.listdir(worker.root / "temp") == ["3"]
    assert (worker.temp(3) / "file").exists()
    assert os.listdir(worker.root.parent / TRASH) == []


async def test_a_worker_that_nested_thousands_of_folders_can_still_be_cleaned(
    worker: WorkerDirectories,
) -> None:
    nest(worker.temp(1), 3000)
    worker.open_temp(2, OURS)
    await worker.empty_trash()
    assert os.listdir(worker.root / "temp") == ["2"]


async def test_hostile_names_in_temp_are_removed_as_names(worker: WorkerDirectories, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    temp = os.fsencode(worker.root / "temp")
    for name in (b"-rf", b"--no-preserve-root", b"a b\n", b"\xff\xfe", b"*", b"$(id)", b"." * 200):
        os.mkdir(temp + b"/" + name)
    os.symlink(outside, temp + b"/link")
    os.mkfifo(temp + b"/fifo")
    worker.open_temp(1, OURS)
    await worker.empty_trash()
    assert os.listdir(worker.root / "temp") == ["1"]
    assert os.listdir(tmp_path / TRASH) == []
    assert (outside / "kept").exists(), "a link is removed, not followed"


async def test_more_names_than_one_command_line_holds_are_removed_too(worker: WorkerDirectories) -> None:
    for number in range(12_000):
        (worker.root / "temp" / f"{number}-{'x' * 200}").touch()
    worker.open_temp(1, OURS)
    await worker.empty_trash()
    assert os.listdir(worker.root / "temp") == ["1"]


# --- sandbox.json ------------------------------------------------------------------------------------------------------


def test_metadata_keeps_the_day_of_creation(worker: WorkerDirectories) -> None:
    worker.write_metadata({"created": "first", "incarnation": 1})
    worker.write_metadata({"created": "second", "incarnation": 2})
    assert json.loads((worker.root / METADATA).read_text()) == {
        "workerId": "worker-0",
        "created": "first",
        "incarnation": 2,
    }
    assert sorted(os.listdir(worker.root)) == sorted([*PARTS, METADATA]), "no temporary file is left"


def test_incarnations_go_on_where_they_ended(worker: WorkerDirectories) -> None:
    assert worker.read_incarnation() == 0
    worker.write_metadata({"created": "now", "incarnation": 5})
    assert worker.read_incarnation() == 5
    worker.open_temp(7, OURS)
    assert worker.read_incarnation() == 7, "a start that died before it wrote its number"


DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b'{"incarnation": "9"}',
    b'{"incarnation": -4}',
    b'{"incarnation": true}',
    b'{"incarnation": 1e400}',
    b'{"incarnation": ' + b"9" * 300 + b"}",
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:20]))
def test_damaged_metadata_is_replaced_and_the_number_comes_from_temp(
    worker: WorkerDirectories, content: bytes
) -> None:
    worker.open_temp(3, OURS)
    (worker.root / METADATA).write_bytes(content)
    assert worker.read_incarnation() == 3
    worker.write_metadata({"created": "now", "incarnation": 4})
    assert worker.read_incarnation() == 4


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_planted_metadata_is_neither_followed_nor_waited_for(
    worker: WorkerDirectories, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_text('{"incarnation": 77, "created": "elsewhere"}')
    if kind == "link":
        (worker.root / METADATA).symlink_to(outside)
    else:
        os.mkfifo(worker.root / METADATA)
    assert worker.read_incarnation() == 0
    worker.write_metadata({"created": "now", "incarnation": 1})
    assert json.loads((worker.root / METADATA).read_text())["created"] == "now"
    assert "77" in outside.read_text()
