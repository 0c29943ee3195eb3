"""Who owns a worker's directories, and what happens to them when the uid changes. Their layout is in `test_directories.py`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from moltbot.core.errors import BaseDirectoryError
from moltbot.sandbox.directories import METADATA, TRASH, WorkerDirectories
from tests.sandbox.test_directories import AS_ROOT, ELSE, OTHER, OURS, mode, nest, worker

__all__ = ["worker"]  # a fixture


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
