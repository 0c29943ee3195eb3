"""What a worker leaves in its directories for the gateway to stumble over: links, pipes, depth, owners."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from moltbot.sandbox.isolation.plan import Level
from tests.escape.siege import LEVELS, besieged, pool_at, remove, started
from tests.escape.siege_programs import ATTEMPTS


class Prey(NamedTuple):
    """A directory of the host with a file in it: what a planted link points to."""

    directory: Path
    file: Path

    def look(self) -> object:
        """All that must not change."""
        found = [self.directory.stat(), self.file.stat()]
        kept = [(status.st_uid, status.st_gid, status.st_mode) for status in found]
        return kept, self.file.read_text(), sorted(os.listdir(self.directory))


@pytest.fixture
def prey(tmp_path: Path) -> Prey:
    directory = tmp_path / "host"
    directory.mkdir(mode=0o750)
    file = directory / "precious"
    file.write_text("still here")
    file.chmod(0o640)
    return Prey(directory, file)


@contextmanager
def deep(tmp_path: Path) -> Iterator[None]:
    """For trees that `shutil.rmtree` cannot delete."""
    try:
        yield
    finally:
        remove(tmp_path / "base")


async def test_a_thousand_nested_folders_go_over_to_another_owner(tmp_path: Path) -> None:
    """As root, the levels differ in the worker's uid: the whole depth changes hands, and the pool starts."""
    with deep(tmp_path):
        async with besieged(tmp_path, Level.BUBBLEWRAP) as siege:
            state = siege.root / "state"
        nest(state, state.stat().st_uid)
        async with started(pool_at(tmp_path, Level.DIRECTORIES), Level.DIRECTORIES):
            pass
        assert {path.stat().st_uid for path in (state, state / "d", state / "d" / "d")} == {os.geteuid()}


def nest(folder: Path, owner: int) -> None:
    """What a worker with this uid does in a moment."""
    inside = os.open(folder, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=inside)
        os.chown("d", owner, -1, dir_fd=inside)
        above, inside = inside, os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(above)
    os.close(inside)


LOCKED = (
    """
def lock(folder):
    os.mkdir(folder + "/locked")
    os.mkdir(folder + "/locked/inner")
    open(folder + "/locked/inner/file", "w").close()
    os.chmod(folder + "/locked/inner", 0)
    os.chmod(folder + "/locked", 0)

attempts = {"temp": lambda: lock(temp)}
"""
    + ATTEMPTS
)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_locked_folder_is_deleted_like_any_other(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level) as siege:
        assert await siege.attack(LOCKED) == {"temp": "done"}
        await siege.kill()
        await siege.trash_emptied()


# What stands in the place of something that the gateway opens, empties, gives away or writes.
PLANTS = (
    """
def swap(path):
    os.rename(path, path + ".old")
    os.symlink(given["prey"], path)

def link(path):
    os.path.lexists(path) and os.unlink(path)
    os.symlink(given["prey"] + "/precious", path)

def pipe(path):
    os.path.lexists(path) and os.unlink(path)
    os.mkfifo(path)

root = given["root"]
attempts = {
    "sessions": lambda: swap(root + "/sessions"),
    "cache": lambda: swap(root + "/cache"),
    "temp": lambda: swap(root + "/temp"),
    "log": lambda: link(root + "/logs/worker.log"),
    "rotated log": lambda: pipe(root + "/logs/worker.log.1"),
    "metadata": lambda: link(root + "/sandbox.json"),
    "gateway.json": lambda: link(root + "/../gateway.json"),
}
"""
    + ATTEMPTS
)


@pytest.mark.parametrize("level", LEVELS)
async def test_what_stands_in_the_place_of_our_own_files_is_not_followed(
    tmp_path: Path, level: Level, prey: Prey
) -> None:
    before = prey.look()
    async with besieged(tmp_path, level) as siege:
        root = "/sandbox" if level is Level.BUBBLEWRAP else str(siege.root)
        outcome = await siege.attack(PLANTS, root=root, prey=str(prey.directory))
        if level is Level.DIRECTORIES:
            assert set(outcome.values()) == {"done"}
        else:
            assert set(outcome.values()) <= {"EACCES", "EROFS", "EBUSY", "EPERM", "ENOENT", "EXDEV"}
        await siege.kill()
        print_something = "import os; os.write(1, b'a line\\n' * 1000); answer = 1"
        await siege.inside(print_something)
        await siege.kill()
    assert prey.look() == before


async def test_a_link_in_the_place_of_the_trash_is_put_beside_it_and_not_followed(
    tmp_path: Path, prey: Prey
) -> None:
    """Only a worker without a wall reaches it."""
    before = prey.look()
    async with besieged(tmp_path, Level.DIRECTORIES) as siege:
        swap = f"import os; os.rename({str(siege.base / 'trash')!r}, {str(siege.base / 'old')!r});"
        await siege.inside(
            f"{swap} os.symlink({str(prey.directory)!r}, {str(siege.base / 'trash')!r}); answer = 1"
        )
        await siege.kill()
        assert stat.S_ISDIR((siege.base / "trash").lstat().st_mode)
        [aside] = siege.base.glob(".trash-worker-0-*")
        assert aside.readlink() == prey.directory
    assert prey.look() == before


# Inside of the directories that it owns, at every level.
OWN = (
    """
def home(path):
    os.rmdir(path)
    os.symlink(given["prey"], path)

top = os.path.dirname(temp)
mine = {
    "home": lambda: home(top + "/.home"),
    "link in temp": lambda: os.symlink(given["prey"], temp + "/link"),
    "loop": lambda: os.symlink("loop", temp + "/loop"),
    "pipe": lambda: os.mkfifo(state + "/pipe"),
    "link in state": lambda: os.symlink(given["prey"], state + "/link"),
    "link to a file": lambda: os.symlink(given["prey"] + "/precious", state + "/file"),
    "file": lambda: open(state + "/one", "w").close(),
    "second name of its own": lambda: os.link(state + "/one", state + "/two"),
    "setuid": lambda: (open(state + "/setuid", "w").close(), os.chmod(state + "/setuid", 0o6755)),
}
attempts = {**mine, "hard link": lambda: os.link(given["prey"] + "/precious", state + "/hard")}
"""
    + ATTEMPTS
)


@pytest.mark.parametrize("level", LEVELS)
async def test_what_it_plants_among_its_own_files_is_not_followed_nor_given_away(
    tmp_path: Path, level: Level, prey: Prey
) -> None:
    """Also when the next pool has another level and its worker another uid, so that files change hands."""
    before = prey.look()
    async with besieged(tmp_path, level) as siege:
        user = await siege.attacker()
        outcome = await siege.attack(OWN, user, prey=str(prey.directory))
        hard, setuid = outcome.pop("hard link"), outcome.pop("setuid")
        assert setuid == ("done" if level is Level.DIRECTORIES else "EPERM"), "a door to its uid"
        assert set(outcome.values()) == {"done"}
        assert (
            hard == "done" if level is Level.DIRECTORIES else hard in ("ENOENT", "EXDEV", "EACCES", "EPERM")
        )
        state = siege.root / "state" / user
        assert state.joinpath("link").is_symlink()
        await siege.kill()
        await siege.trash_emptied()
    assert prey.look() == before
    for other in LEVELS:
        if other is level:
            continue
        async with besieged(tmp_path, other) as siege:
            owner = siege.root.joinpath("state").stat().st_uid
            assert (state / "setuid").stat().st_uid == owner
            if owner == 0 and level is Level.BUBBLEWRAP:
                assert not (state / "setuid").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
        assert prey.look() == before
