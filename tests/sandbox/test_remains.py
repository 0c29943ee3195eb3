"""Deleting one user's files: whatever a handler made of the modes, whatever stands where the trash should be.

Trees that are deep or full of links are in `tests/router/test_forgetting.py`, with all else that forgetting does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moltbot.sandbox.remains import delete_user_files
from tests.sandbox.test_base_directory import WITHOUT_OVERRIDE

DELETE = """
import asyncio, sys
from pathlib import Path
from moltbot.sandbox.remains import delete_user_files
asyncio.run(delete_user_files(Path(sys.argv[1]), "ada", "tag"))
"""


def lived_in(base: Path) -> Path:
    """A base directory with the files of two users."""
    for folder in ("state", "sessions", "cache", "temp/1"):
        for user in ("ada", "ben"):
            place = base / "worker-0" / folder / user
            place.mkdir(parents=True)
            (place / "file").write_text(user)
    (base / "trash").mkdir()
    return base


def left(base: Path, user: str) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob(user))


@pytest.mark.parametrize("mode", [0o555, 0])
@pytest.mark.parametrize("shut", ["state/ada", "temp/1/ada", "state", "temp/1", "temp"])
def test_a_handler_cannot_shut_its_directories(tmp_path: Path, shut: str, mode: int) -> None:
    """The gateway is not root, and the worker has the same uid."""
    base = lived_in(tmp_path / "base")
    (base / "worker-0" / shut).chmod(mode)
    command = [sys.executable, "-c", WITHOUT_OVERRIDE, sys.executable, "-c", DELETE, str(base)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert left(base, "ada") == os.listdir(base / "trash") == []
    assert len(left(base, "ben")) == 4


def link_elsewhere(trash: Path) -> None:
    trash.rmdir()
    trash.symlink_to(trash.parent.parent / "outside")


def write_file(trash: Path) -> None:
    trash.rmdir()
    trash.write_text("in the way")


@pytest.mark.parametrize("replace", [link_elsewhere, write_file, Path.rmdir])
async def test_the_trash_is_made_anew(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    base, outside = lived_in(tmp_path / "base"), tmp_path / "outside"
    (outside / "file").mkdir(parents=True)
    replace(base / "trash")
    await delete_user_files(base, "ada", "tag")
    assert left(base, "ada") == os.listdir(base / "trash") == []
    assert (base / "trash").lstat().st_mode & 0o7777 == 0o700
    assert os.listdir(outside) == ["file"], "a link is not followed"
    assert len(left(base, "ben")) == 4
