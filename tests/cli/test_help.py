"""What the command line says of itself, and how it fails: one line on stderr and an exit status."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import moltbot as package
from tests.fakes import PATIENCE
from tests.support import command, environment, failed, moltbot

COMMANDS = [
    [],
    ["gateway"],
    ["gateway", "log-level"],
    ["init"],
    ["config"],
    ["send"],
    ["users"],
    ["users", "where"],
    ["workers"],
] + [["workers", name] for name in ("demo", "info", "status")]
COMMANDS += [["config", name] for name in ("show", "explain", "check")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(tmp_path: Path, words: list[str]) -> None:
    result = moltbot(tmp_path, *words, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert " ".join(["moltbot", *words]) in result.stdout.splitlines()[0]
    assert "--help" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    result = moltbot(tmp_path)
    assert result.returncode == 2
    assert "Usage: " in result.stdout + result.stderr


def test_the_version(tmp_path: Path) -> None:
    assert moltbot(tmp_path, "--version").stdout == f"moltbot {package.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["workers", "nothing"],
        ["send", "ada"],
        ["users", "where"],
        ["gateway", "--nothing"],
        ["gateway", "-w", "many"],
        ["workers", "demo", "--port", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(tmp_path: Path, words: list[str]) -> None:
    result = moltbot(tmp_path, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_info_shows_architecture_directories_settings_and_guarantees(tmp_path: Path) -> None:
    result = moltbot(tmp_path, "workers", "info", MOLTBOT_MAX_MEMORY="1GB", MOLTBOT_ISOLATION="landlock")
    assert (result.returncode, result.stderr) == (0, "")
    for text in (
        "Gateway (:18789)",
        "sandbox.json",
        "Sticky routing",
        "as far as the isolation level goes: landlock, ",
    ):
        assert text in result.stdout
    [line] = [line for line in result.stdout.splitlines() if line.startswith("  max_memory")]
    assert line.split()[:3] == ["max_memory", "512MB", "1GB"]
    assert "environment variable MOLTBOT_MAX_MEMORY" in line


def test_info_as_json(tmp_path: Path) -> None:
    document = json.loads(moltbot(tmp_path, "workers", "info", "--json").stdout)
    settings = {setting["name"]: setting for setting in document["settings"]}
    assert settings["worker_count"]["default"] == "4"
    assert settings["request_timeout"]["value"] == "2m"
    assert settings["port"]["source"] == "default"
    assert document["guarantees"][0]["name"] == "Sticky routing"
    assert len(document["guarantees"]) == 5


QUESTIONS = [["workers", "status"], ["users", "where", "ada"], ["send", "ada", "hello"]]


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_without_a_gateway_a_question_says_how_to_start_one(tmp_path: Path, words: list[str]) -> None:
    result = moltbot(tmp_path, *words, "-s", str(tmp_path / "base"))
    assert result.stdout == ""
    assert "moltbot gateway" in failed(result, 1)


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_with_json_an_error_is_a_document(tmp_path: Path, words: list[str]) -> None:
    result = moltbot(tmp_path, *words, "-s", str(tmp_path / "base"), "--json")
    assert (result.returncode, result.stderr) == (1, "")
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "unavailable"
    assert "moltbot gateway" in error["detail"]


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_an_address_where_nobody_answers_is_told(tmp_path: Path, words: list[str]) -> None:
    url = "http://127.0.0.1:1"
    result = moltbot(tmp_path, *words, "--url", url, MOLTBOT_TOKEN="sixteen-characters-or-more")
    assert "no gateway answers at http://127.0.0.1:1" in failed(result, 1)


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://localhost", "http://", "http://[::1", "http://localhost:x"]
)
def test_an_address_that_is_none_is_told(tmp_path: Path, url: str) -> None:
    result = moltbot(tmp_path, "workers", "status", "--url", url, MOLTBOT_TOKEN="sixteen-characters-or-more")
    assert "is not the address of a gateway" in failed(result, 1)


def test_a_token_file_that_is_missing_is_told(tmp_path: Path) -> None:
    result = moltbot(tmp_path, "workers", "status", "--url", "http://127.0.0.1:1", "--token-file", "no-such")
    assert "no-such cannot be read" in failed(result, 1)


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    for words in (["workers", "info"], ["workers", "info", "--json"], ["--help"]):
        process = subprocess.Popen(
            command(*words),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.close()
        _, stderr = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in stderr
        assert "BrokenPipe" not in stderr
