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


def owners_down(directory: Path) -> list[int]:
    """The owners of a folder and of all that `nest` made in it."""
    here, found = os.open(directory, os.O_RDONLY), []
    while True:
        found.append(os.fstat(here).st_uid)
        try:
            below = os.open("d", os.O_RDONLY, dir_fd=here)
        except FileNotFoundError:
            return found
        finally:
            os.close(here)
        here = below


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


# --- owners --------------------------------------------------------------------------------------------------------


def owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[WorkerDirectories]:
    """Directories whose worker is another user than we are, after a first start."""
    directories = WorkerDirectories(tmp_path, "worker-0")
    started(directories, ELSE)
    yield directories
    subprocess.run(["rm", "-rf", str(directories.root), str(tmp_path / TRASH)], check=True)


def started(directories: WorkerDirectories, uid: int, incarnation: int = 1) -> None:
    """All that a start does, but for handing over."""
    directories.create(uid)
    directories.open_temp(incarnation, uid)
    directories.write_metadata({"created": "now", "incarnation": incarnation, "owner": uid})


@AS_ROOT
def test_a_worker_owns_what_it_writes_and_nothing_above_or_beside(owned: WorkerDirectories) -> None:
    root = owned.root
    for theirs in (root / "sessions", root / "state", root / "cache", owned.temp(1), owned.home(1)):
        assert owner(theirs) == (ELSE, ELSE), theirs
        assert mode(theirs) == 0o700
    for ours in (root.parent / TRASH, root, root / "temp", root / "logs", root / METADATA):
        assert ours.lstat().st_uid == OURS, ours


async def test_directories_of_the_right_owner_are_left_alone(worker: WorkerDirectories) -> None:
    before = (worker.root / "state").stat().st_ctime_ns
    await worker.hand_over(OURS)
    assert (worker.root / "state").stat().st_ctime_ns == before


@AS_ROOT
@pytest.mark.parametrize("new", [OTHER, OURS], ids=["another uid", "no uid of its own any more"])
async def test_after_a_change_of_uid_everything_goes_over_to_the_new_one(
    owned: WorkerDirectories, new: int
) -> None:
    folder = owned.root / "state" / "ada" / "deep"
    folder.mkdir(parents=True)
    (folder / "a file\n").write_text("kept")
    (folder / "-R").touch()
    paths = [owned.root / "state" / "ada", folder, *folder.iterdir()]
    for path in paths:
        os.chown(path, ELSE, ELSE)
    (folder / "a file\n").chmod(0o400)
    folder.chmod(0o000)
    started(owned, new, 2)
    await owned.hand_over(new)
    assert {owner(path) for path in (owned.root / "state", owned.root / "sessions", *paths)} == {(new, new)}
    assert (folder / "a file\n").read_text() == "kept"
    assert mode(folder) == 0o000
    assert os.listdir(owned.root.parent / TRASH), "of the last incarnation's temp"


@AS_ROOT
async def test_a_file_with_a_second_name_is_never_given_away(
    owned: WorkerDirectories, tmp_path: Path
) -> None:
    """The second name may be anywhere on the disk; whoever can make it must not get the file by a change of uids."""
    precious = tmp_path / "precious"
    precious.write_text("of root")
    os.link(precious, owned.root / "state" / "linked")
    (owned.root / "state" / "own").touch()
    await owned.hand_over(OTHER)
    assert owner(precious) == owner(owned.root / "state" / "linked") == (0, 0)
    assert owner(owned.root / "state" / "own") == (OTHER, OTHER)


@AS_ROOT
async def test_links_are_handed_over_themselves_not_what_they_mean(
    owned: WorkerDirectories, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    state = owned.root / "state"
    (state / "to a folder").symlink_to(outside)
    (state / "to a file").symlink_to(outside / "file")
    (state / "to nothing").symlink_to("/no/such/file")
    await owned.hand_over(OTHER)
    assert {owner(path) for path in state.iterdir()} == {(OTHER, OTHER)}
    assert owner(outside) == owner(outside / "file") == (0, 0)


@AS_ROOT
async def test_pipes_and_sockets_are_not_handed_over(owned: WorkerDirectories) -> None:
    pipe = owned.root / "cache" / "pipe"
    os.mkfifo(pipe)
    os.chown(pipe, ELSE, ELSE)
    await owned.hand_over(OTHER)
    assert owner(pipe) == (ELSE, ELSE)
    assert owner(owned.root / "cache") == (OTHER, OTHER)


@AS_ROOT
async def test_thousands_of_nested_folders_are_handed_over_too(owned: WorkerDirectories) -> None:
    depth = 2200  # "d/" so often is more than the 4096 bytes of a path
    nest(owned.root / "cache" / "nested", depth)
    await owned.hand_over(OTHER)
    assert owners_down(owned.root / "cache" / "nested") == [OTHER] * (depth + 1)


@AS_ROOT
async def test_a_folder_shows_only_at_the_end_that_all_of_it_was_handed_over(
    owned: WorkerDirectories, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (owned.root / "cache" / "file").touch()
    os.chown(owned.root / "cache" / "file", ELSE, ELSE)
    failing = tmp_path / "bin"
    failing.mkdir()
    (failing / "chown").write_text("#!/bin/sh\nexit 1\n")
    (failing / "chown").chmod(0o755)
    with monkeypatch.context() as broken:
        broken.setattr(os, "defpath", f"{failing}:{os.defpath}")
        with pytest.raises(BaseDirectoryError, match=f"cannot be given to uid {OTHER}"):
            await owned.hand_over(OTHER)
    for part in ("state", "cache"):
        assert owner(owned.root / part) == (ELSE, ELSE), "so the next start tries again"
    await owned.hand_over(OTHER)
    for part in ("state", "cache", "cache/file"):
        assert owner(owned.root / part) == (OTHER, OTHER)


@AS_ROOT
@pytest.mark.parametrize("part", ["sessions", "state", "cache"])
async def test_users_files_of_a_stranger_are_never_thrown_away(owned: WorkerDirectories, part: str) -> None:
    """A backup was restored under another uid, for example."""
    path = owned.root / part
    (path / "file").touch()
    os.chown(path, 4711, 4711)
    with pytest.raises(
        BaseDirectoryError, match=r"belongs to uid 4711, which is none of ours: chown -R it to \d+"
    ):
        owned.create(OTHER)
    assert os.listdir(path) == ["file"]


@AS_ROOT
@pytest.mark.parametrize("part", ["temp", "logs"])
def test_what_must_be_ours_is_put_aside_if_it_is_the_workers(owned: WorkerDirectories, part: str) -> None:
    os.chown(owned.root / part, ELSE, ELSE)
    owned.create(ELSE)
    assert owner(owned.root / part)[0] == OURS


@AS_ROOT
def test_metadata_that_is_the_workers_is_replaced(owned: WorkerDirectories) -> None:
    os.chown(owned.root / METADATA, ELSE, ELSE)
    owned.write_metadata({"created": "later", "incarnation": 2})
    assert owner(owned.root / METADATA)[0] == OURS


@pytest.mark.parametrize("last", ["0", 0.5, True, None, -1, 2**80, []])
def test_a_damaged_owner_in_the_metadata_is_nobody(worker: WorkerDirectories, last: object) -> None:
    worker.write_metadata({"created": "now", "incarnation": 1, "owner": last})
    (worker.root / "state" / "kept").touch()
    worker.create(OURS)
    assert (worker.root / "state" / "kept").exists()


def test_cached_files_can_be_thrown_away_alone(worker: WorkerDirectories) -> None:
    for part in ("sessions", "state", "cache"):
        (worker.root / part / "file").touch()
    worker.put_cache_aside()
    worker.create(OURS)
    assert os.listdir(worker.root / "cache") == []
    assert os.listdir(worker.root / "state") == os.listdir(worker.root / "sessions") == ["file"]


def test_all_that_a_worker_can_write_to_is_measured(worker: WorkerDirectories) -> None:
    assert {path.name for path in worker.measured} == {"sessions", "state", "cache", "temp"}
    assert {path.parent for path in worker.measured} == {worker.root}


async def test_folders_that_their_owner_has_closed_are_deleted_all_the_same(
    worker: WorkerDirectories,
) -> None:
    closed = worker.temp(1) / "a" / "b"
    worker.open_temp(1, OURS)
    closed.mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o000)
    closed.parent.chmod(0o500)
    worker.open_temp(2, OURS)
    await worker.empty_trash()
    assert os.listdir(worker.root.parent / TRASH) == []
