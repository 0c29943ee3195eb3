"""The access log: every request that ended leaves one line, that no request can forge, and that costs it nothing."""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.keyed_hash import KeyedHash
from moltbot.gateway import access_log as module
from moltbot.gateway.access_log import AccessLog
from moltbot.sandbox.log_lines import shown_user
from tests.fakes import FakeClock, eventually

NASTY = 'a b"\\\n\r\x1b\x00\x7f\x9b\u2028\u202eü= worker=worker-9'
FULL: dict[str, Any] = {
    "remote": "127.0.0.1",
    "credential": "operator",
    "user_id": "ada",
    "worker": "worker-0",
    "incarnation": 3,
    "code": "timeout",
}
FORMATS = ["text", "json"]


def made(base: Path, **options: Any) -> AccessLog:
    return AccessLog(base / "logs", FakeClock(since_1970=1_700_000_000.25), **options)


def note(log: AccessLog, number: int = 1, path: str = "/api/route", **fields: Any) -> None:
    log.note(f"r-{number}", "POST", path, 504, 12.345, **fields)


def lines(base: Path) -> list[str]:
    path = base / "logs" / "access.log"
    return path.read_text().splitlines() if path.exists() else []


async def written(base: Path, *paths: str, **options: Any) -> list[str]:
    """What becomes of one full entry for each path."""
    log = made(base, **options)
    log.start()
    for number, path in enumerate(paths):
        note(log, number, path, **FULL)
    await log.stop()
    return lines(base)


async def test_a_readable_line_has_all_facts(tmp_path: Path) -> None:
    [line] = await written(tmp_path, "/api/route")
    assert line.split() == [
        *("2023-11-14T22:13:20.250Z", "504", "POST", "/api/route", "12.35ms", "request=r-0"),
        *("remote=127.0.0.1", "credential=operator", "user=ada", "worker=worker-0", "incarnation=3"),
        "code=timeout",
    ]


async def test_a_json_line_has_all_facts(tmp_path: Path) -> None:
    [line] = await written(tmp_path, "/api/route", log_format="json")
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "requestId": "r-0",
        "method": "POST",
        "path": "/api/route",
        "status": 504,
        "durationMs": pytest.approx(12.345, abs=0.01),
        "remote": "127.0.0.1",
        "credential": "operator",
        "user": "ada",
        "worker": "worker-0",
        "incarnation": 3,
        "code": "timeout",
    }


@pytest.mark.parametrize("log_format", FORMATS)
async def test_what_is_not_known_is_left_out(tmp_path: Path, log_format: Any) -> None:
    log = made(tmp_path, log_format=log_format)
    log.start()
    note(log)
    await log.stop()
    [line] = lines(tmp_path)
    assert not [name for name in ("None", "null", *FULL) if name in line]


@pytest.mark.parametrize("log_format", FORMATS)
async def test_no_request_can_forge_a_line_or_a_field(tmp_path: Path, log_format: Any) -> None:
    log = made(tmp_path, log_format=log_format)
    log.start()
    log.note(NASTY, NASTY, NASTY, 404, 1.0, remote=NASTY, credential=NASTY, user_id=NASTY, code=NASTY)
    await log.stop()
    [line] = lines(tmp_path)
    assert line.isascii()
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line)["path"] == NASTY
    else:
        quoted = line.split(' "', 1)[1]
        assert json.JSONDecoder().raw_decode('"' + quoted)[0] == NASTY


async def test_a_query_is_never_written(tmp_path: Path) -> None:
    [line] = await written(tmp_path, "/api/users?userId=ben")
    assert "ben" not in line
    assert " /api/users " in line


@pytest.mark.parametrize(("allowed", "name"), [(True, "ada"), (False, KeyedHash("k" * 40).name("ada"))])
async def test_users_go_by_their_shown_names(tmp_path: Path, allowed: bool, name: str) -> None:
    shown = partial(shown_user, KeyedHash("k" * 40), allowed)
    [line] = await written(tmp_path, "/x", shown_user=shown)
    assert f" user={name} " in line
    assert ("ada" in line) == allowed


async def test_entries_are_written_while_it_runs_and_in_order(tmp_path: Path) -> None:
    log = made(tmp_path)
    log.start()
    for number in range(1000):
        note(log, number)
    await eventually(lambda: len(lines(tmp_path)) == 1000)
    note(log, 1000)
    await eventually(lambda: len(lines(tmp_path)) == 1001)
    await log.stop()
    assert [line.rpartition("=")[2] for line in lines(tmp_path)] == [f"r-{number}" for number in range(1001)]


async def test_stop_writes_what_waits_may_be_repeated_and_leaves_no_thread(tmp_path: Path) -> None:
    await made(tmp_path / "never-started").stop()
    log = made(tmp_path)
    log.start()
    note(log)
    await log.stop()
    await log.stop()
    assert len(lines(tmp_path)) == 1
    assert "access-log" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("log_format", FORMATS)
async def test_what_is_too_much_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: Any
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 250)
    log = made(tmp_path, log_format=log_format)
    for number in range(373):
        note(log, number)
    log.start()
    await eventually(lambda: len(lines(tmp_path)) == 251)
    note(log)
    await log.stop()
    found = lines(tmp_path)
    assert len(found) == 252
    assert "... 123 entries were dropped here" in found[250]
    if log_format == "json":
        assert json.loads(found[250])["message"].startswith("... 123 entries")


async def test_an_entry_that_cannot_be_shown_ends_nothing(tmp_path: Path) -> None:
    log = made(tmp_path)
    log.start()
    note(log, path=None)  # type: ignore[arg-type]  # a mistake of the caller
    note(log, 2)
    await log.stop()
    first, second = lines(tmp_path)
    assert first.endswith("... an entry could not be shown here")
    assert second.endswith("request=r-2")


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_what_was_planted_in_its_place_is_not_followed_and_holds_up_nothing(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "logs").mkdir()
    path, outside = tmp_path / "logs" / "access.log", tmp_path / "outside"
    match kind:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    log = made(tmp_path)
    log.start()
    note(log)
    await log.stop()
    assert not outside.exists()


async def test_the_file_is_ours_alone_and_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moltbot.sandbox.logs.MAX_LOG_BYTES", 50_000)
    await written(tmp_path, *["/" + "x" * 100] * 2000)
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["access.log", "access.log.1", "access.log.2"]
    assert sum(file.stat().st_size for file in files) <= 150_000
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
