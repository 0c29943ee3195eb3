"""`moltbot users`: list, export and forget, as people and programs see them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import Running, failed, moltbot

USERS = ("ada", "bob", "a/b \x1b[31m")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a running gateway that knows three users."""
    directory = tmp_path_factory.mktemp("users")
    with Running(directory, "-w", "2", "-s", "base"):
        for user in USERS:
            assert moltbot(directory, "send", user, "hello", "-s", "base").returncode == 0
        yield directory


def test_the_list_comes_in_pages_and_plays_no_tricks(place: Path) -> None:
    shown = moltbot(place, "users", "list", "-s", "base").stdout
    assert "\x1b" not in shown
    assert [line.split("  ")[1] for line in shown.splitlines()[1:3]] == ["a/b \\x1b[31m", "ada"]
    pages: list[str] = []
    after: tuple[str, ...] = ()
    while True:
        page = json.loads(
            moltbot(place, "users", "list", "-s", "base", "--limit", "1", "--json", *after).stdout
        )
        pages += [user["userId"] for user in page["users"]]
        if page["next"] is None:
            break
        after = ("--after", page["next"])
    assert pages == sorted(USERS)
    assert "There are more: --after" in moltbot(place, "users", "list", "-s", "base", "--limit", "1").stdout


def test_an_export_is_a_tar_for_its_owner_only(place: Path) -> None:
    result = moltbot(place, "users", "export", "ada", "-s", "base", "-o", "ada.tar")
    assert result.returncode == 0, result.stderr
    assert (place / "ada.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(place / "ada.tar") as archive:
        description = archive.extractfile("user.json")
        assert description is not None
        assert json.load(description)["userId"] == "ada"
        assert "sessions/record.jsonl" in archive.getnames()
    again = moltbot(place, "users", "export", "ada", "-s", "base", "-o", "ada.tar")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert moltbot(place, "users", "export", "ada", "-s", "base", "-o", "ada.tar", "--force").returncode == 0


def test_what_cannot_be_exported_leaves_no_file(place: Path) -> None:
    line = failed(moltbot(place, "users", "export", "nobody", "-s", "base", "-o", "nobody.tar"), 1)
    assert "nobody" in line
    assert not list(place.glob("*nobody*"))


def test_forgetting_asks_and_is_final(place: Path) -> None:
    unsure = moltbot(place, "users", "forget", "bob", "-s", "base")
    assert unsure.returncode == 2
    assert "--yes" in unsure.stderr
    assert moltbot(place, "users", "where", "bob", "-s", "base").returncode == 0
    done = moltbot(place, "users", "forget", "bob", "-s", "base", "--yes", "--json")
    assert json.loads(done.stdout) == {"forgotten": True}
    assert "bob" in failed(moltbot(place, "users", "where", "bob", "-s", "base"), 1)
    assert "bob" in failed(moltbot(place, "users", "forget", "bob", "-s", "base", "--yes"), 1)
    assert moltbot(place, "send", "bob", "back again", "-s", "base").stdout.count("turn 1 with you") == 1
    receipt = json.loads(moltbot(place, "users", "where", "bob", "-s", "base", "--json").stdout)
    assert receipt["epoch"] == 2
