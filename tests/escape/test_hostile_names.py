"""Hostile names, of files and of users: they are names and nothing else, or refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moltbot import GatewayRouter, InvalidRequest, Request
from moltbot.core.user_key import user_key
from moltbot.sandbox.isolation.plan import Level
from tests.escape.siege import LEVELS, besieged
from tests.escape.siege_programs import ATTEMPTS, handler_file
from tests.support import Running, check_sentence, failed, moltbot

NAMES = (
    """
names = [b"a\\nb", b"\\xff\\xfe", b"-rf", b"--", b"...", b".. ", b"..\\xc0\\xaf"]
names += [b"*", b"$(touch x)", b"~", b" ", b"x" * 255]
attempts = {}
for folder in (state, temp, cache):
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        attempts[repr(path)] = lambda path=path: (os.mkdir(path), open(path + b"/" + names[0], "w").close())
"""
    + ATTEMPTS
)


@pytest.mark.parametrize("level", LEVELS)
async def test_names_of_files_are_only_names(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level) as siege:
        outcome = await siege.attack(NAMES)
        assert set(outcome.values()) == {"done"}
        kept = names_below(siege.root / "state")
        assert len(kept) > 24
        await siege.kill()
        assert names_below(siege.root / "state") == kept
        assert len(names_below(siege.root / "temp")) < 6
        await siege.trash_emptied()


def names_below(folder: Path) -> list[bytes]:
    return sorted(
        os.path.join(top, name)
        for top, *lists in os.walk(os.fsencode(folder))
        for names in lists
        for name in names
    )


USERS = (
    "../../etc",
    "..",
    "/etc/passwd",
    "-rf",
    "a\nb",
    "a\0b",
    "$(touch /tmp/x)",
    "`id`; rm -rf ~ #",
    "worker-1",
    "\x1b[2J",
    "x" * 512,
    "é" * 256,
)
REFUSED: tuple[object, ...] = ("", "x" * 513, "é" * 257, "\ud800", 0, None, b"user-a", ["user-a"])


@pytest.mark.parametrize("level", LEVELS)
async def test_names_of_users_are_only_names(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level) as siege:
        around = sorted(os.listdir(tmp_path)), sorted(os.listdir(siege.base))
        for user in USERS:
            for count in (1, 2):
                assert (await siege.router.route(Request("count", user))).payload == count
        for user in USERS:
            home = siege.base / siege.router.where(user).worker_id / "state" / user_key(user)
            assert home.is_dir()
            assert not home.is_symlink()
        for nobody in REFUSED:
            check_sentence(await refusal(siege.router, nobody))
        assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(siege.base))) == around


async def refusal(router: GatewayRouter, user: object) -> str:
    """What is said to somebody with this id."""
    with pytest.raises(InvalidRequest) as caught:
        await router.route({"type": "count", "userId": user, "payload": None})
    with pytest.raises(InvalidRequest):
        router.where(user)  # type: ignore[arg-type]
    return str(caught.value)


def test_names_on_the_command_line_are_only_names(tmp_path: Path) -> None:
    base = tmp_path / "base"
    arguments = ("-w", "1", "-s", str(base), "--handler", str(handler_file(tmp_path)))
    with Running(tmp_path, *arguments):
        around = sorted(os.listdir(tmp_path)), sorted(os.listdir(base / "worker-0"))
        for user in ("../../etc", "$(touch x)\n"):
            told = moltbot(tmp_path, "send", "-s", str(base), "--type", "count", "--payload", "1", "--", user)
            assert told.returncode == 0, told.stderr
            assert (base / "worker-0" / "state" / user_key(user)).is_dir()
        result = moltbot(tmp_path, "users", "where", "-s", str(base), "--", "x" * 513)
        assert result.returncode != 0
        failed(result, result.returncode)
        assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(base / "worker-0"))) == around
