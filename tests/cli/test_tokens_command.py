"""`moltbot tokens`: with a running gateway and without one, what is printed, and what is refused."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import Running, failed, moltbot


def made(directory: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    result = moltbot(directory, "tokens", "create", "-s", "base", "--json", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def listed(directory: Path) -> list[str]:
    result = moltbot(directory, "tokens", "list", "-s", "base", "--json")
    return [token["id"] for token in json.loads(result.stdout)["tokens"]]


def test_a_user_token_acts_as_that_user_until_it_is_revoked(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        token = made(tmp_path, "--user", "ada", "--label", "laptop")
        assert token["userId"] == "ada"
        assert token["scopes"] == ["route", "jobs", "read"]
        assert token["expiresAt"] is None
        file = tmp_path / "ada.token"
        file.write_text(token["token"])
        file.chmod(0o600)
        credential = ("--token-file", "ada.token", "--url", gateway.document["url"])
        assert "You said: hi" in moltbot(tmp_path, "send", "ada", "hi", *credential).stdout
        assert "its own user only" in failed(moltbot(tmp_path, "send", "bob", "hi", *credential), 1)
        assert "for operators" in failed(moltbot(tmp_path, "tokens", "list", *credential), 1)
        assert listed(tmp_path) == [token["id"]]
        assert moltbot(tmp_path, "tokens", "revoke", token["id"], "-s", "base").returncode == 0
        assert "is not valid there" in failed(moltbot(tmp_path, "send", "ada", "hi", *credential), 1)
        assert listed(tmp_path) == []


def test_without_a_gateway_the_base_directory_is_worked_on_and_the_next_start_knows(tmp_path: Path) -> None:
    token = made(tmp_path, "--operator", "--scope", "read", "--scope", "route", "--expires", "1h")
    assert token["userId"] is None
    assert token["scopes"] == ["route", "read"]
    assert token["expiresAt"]
    with closing(sqlite3.connect(tmp_path / "base" / "moltbot.db")) as database:
        assert token["token"].split("_")[2] not in "\n".join(database.iterdump())
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        options = ("--url", gateway.document["url"])
        answer = moltbot(tmp_path, "workers", "status", *options, MOLTBOT_TOKEN=token["token"])
        assert answer.returncode == 0, answer.stderr
        refused = moltbot(tmp_path, "tokens", "list", *options, MOLTBOT_TOKEN=token["token"])
        assert "scope admin" in failed(refused, 1)


def test_people_see_the_token_once_and_how_to_end_it(tmp_path: Path) -> None:
    shown = moltbot(tmp_path, "tokens", "create", "--user", "a\nb", "-s", "base").stdout
    secret = next(line.strip() for line in shown.splitlines() if line.startswith("  mbt_"))
    assert "for user 'a\\nb', good for route, jobs, read, until it is revoked" in shown
    assert f"moltbot tokens revoke {secret.split('_')[1]}" in shown
    again = moltbot(tmp_path, "tokens", "list", "-s", "base").stdout
    assert secret.split("_")[1] in again
    assert secret.split("_")[2] not in again


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--user", "ada", "--operator"),
        ("--operator",),
        ("--user", "ada", "--expires", "soon"),
        ("--user", "ada", "--expires", "-1d"),
        ("--user", "ada", "--expires", "30"),
        ("--user", "ada", "--expires", "0d"),
        ("--user", "ada", "--scope", "root"),
        ("--user", ""),
    ],
)
def test_a_token_must_be_somebodys_and_good_for_something(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = moltbot(tmp_path, "tokens", "create", "-s", "base", *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "--user", "ada", "--label", "x" * 101), "at most 100 characters"),
        (("revoke", "nothing"), "there is no token"),
    ],
)
def test_what_is_refused_is_told_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    made(tmp_path, "--user", "ada")
    assert words in failed(moltbot(tmp_path, "tokens", *arguments, "-s", "base"), 1)
    assert len(listed(tmp_path)) == 1


def test_asking_makes_no_directory(tmp_path: Path) -> None:
    for arguments in (("list",), ("revoke", "x")):
        assert "no base directory" in failed(moltbot(tmp_path, "tokens", *arguments, "-s", "base"), 1)
    assert not (tmp_path / "base").exists()


def test_a_link_needs_a_gateway_and_is_for_one_browser(tmp_path: Path) -> None:
    assert "no gateway is running" in failed(
        moltbot(tmp_path, "tokens", "link", "--operator", "-s", "base"), 1
    )
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        link = json.loads(moltbot(tmp_path, "tokens", "link", "--user", "ada", "-s", "base", "--json").stdout)
        assert link["url"].startswith(gateway.document["url"] + "/login?code=mbt_")
        assert link["userId"] == "ada"
