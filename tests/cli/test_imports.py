"""What importing costs: names resolve, and a small program does not load the gateway's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import moltbot
from moltbot.core import errors
from tests.fakes import PATIENCE
from tests.support import environment, failed
from tests.support import moltbot as run


def loaded(program: str, directory: Path) -> set[str]:
    """The modules that are loaded when `program` has run."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport json, sys; print(json.dumps(list(sys.modules)))"],
        cwd=directory,
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_every_name_of_the_package_resolves() -> None:
    assert sorted(moltbot.__all__) == moltbot.__all__
    for name in moltbot.__all__:
        assert getattr(moltbot, name).__name__ == name
    assert {name for name in errors.__all__ if name[0].isupper()} <= set(moltbot.__all__)


def test_other_names_do_not() -> None:
    for name in ("Handler", "quote", "Verdict", "_nothing", "__path_to__"):
        with pytest.raises(AttributeError, match=name):
            getattr(moltbot, name)


def test_a_misspelt_name_fails_type_checking(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("from moltbot import Context, InvalidRequest, User, handlr\n")
    source = Path(moltbot.__file__).parents[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--cache-dir",
            tmp_path / "cache",
            "--follow-imports=silent",
            "program.py",
        ],
        cwd=tmp_path,
        env=environment(tmp_path, MYPYPATH=str(source)),
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        check=False,
    )
    assert 'has no attribute "handlr"' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("error:") == 1, done.stdout


def test_a_handler_file_loads_little(tmp_path: Path) -> None:
    names = loaded("from moltbot import CancelledByCaller, Context, InvalidRequest, User, handler", tmp_path)
    assert "moltbot.worker.handlers" in names
    assert not names & {"aiohttp", "pydantic", "psutil", "sqlalchemy", "typer", "rich", "uhashring"}


@pytest.mark.parametrize(
    "words", [["workers", "status"], ["users", "where", "ada"], ["send", "ada", "hello"]]
)
def test_a_command_that_only_talks_does_not_load_the_server(tmp_path: Path, words: list[str]) -> None:
    arguments = ["moltbot", *words, "--url", "http://127.0.0.1:1"]
    names = loaded(
        "import os, sys\n"
        "from moltbot.cli.main import main\n"
        f"sys.argv = {arguments!r}\n"
        "os.environ['MOLTBOT_TOKEN'] = 'sixteen-characters-or-more'\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 1",
        tmp_path,
    )
    assert "moltbot.client.http" in names
    assert not names & {"aiohttp.web", "aiohttp_sse", "sqlalchemy", "uhashring"}


@pytest.mark.parametrize(
    "content",
    ['{"url": "http://x", "pid": "many"}', '{"url": 3, "pid": 1}', '{"url": "u", "pid": 1e99}', "[]", "{"],
)
def test_a_damaged_announcement_is_no_traceback(tmp_path: Path, content: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "gateway.json").write_text(content)
    (tmp_path / "base" / "token").write_text("sixteen-characters-or-more")
    (tmp_path / "base" / "token").chmod(0o600)
    assert "no gateway is running in" in failed(run(tmp_path, "workers", "status", "-s", "base"), 1)
