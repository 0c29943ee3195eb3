"""What a worker process gets: an exact environment, an argv without secrets, its limits, and nothing else of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import LaunchSpec, absolute_handler, hello_config, launch_spec

OURS = {
    "MOLTBOT_TOKEN": "secret-1",
    "MOLTBOT_WORKER_ID": "worker-9",
    "SECRET": "secret-2",
    "AWS_SECRET_ACCESS_KEY": "secret-3",
    "PYTHONPATH": "/evil-1",
    "PYTHONSTARTUP": "/evil-2",
    "LD_PRELOAD": "/evil-3.so",
    "HOME": "/home/operator",
    "PATH": "/home/operator/bin",
    "TMPDIR": "/home/operator/tmp",
    "LANG": "de_DE.UTF-8",
    "TZ": "Europe/Berlin",
}


def spec(inherited: dict[str, str] | None = None, **settings: Any) -> LaunchSpec:
    directories = WorkerDirectories(Path("/base"), "worker-3")
    config = PoolConfig.read(settings)
    return launch_spec(directories, 7, config, OURS if inherited is None else inherited, 4242)


def test_the_environment_is_exactly_this() -> None:
    assert dict(spec().environment) == {
        "MOLTBOT_WORKER_ID": "worker-3",
        "MOLTBOT_INCARNATION": "7",
        "HOME": "/base/worker-3/temp/7/.home",
        "TMPDIR": "/base/worker-3/temp/7",
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "de_DE.UTF-8",
        "TZ": "Europe/Berlin",
    }


def test_without_a_locale_text_is_utf_8() -> None:
    assert spec({}).environment["LANG"] == "C.UTF-8"


def test_named_variables_pass_if_they_are_set() -> None:
    environment = spec(environment=["SECRET", "NOT_SET"]).environment
    assert environment["SECRET"] == "secret-2"
    assert "NOT_SET" not in environment


@pytest.mark.parametrize("name", ["HOME", "PATH", "TMPDIR"])
def test_a_named_variable_cannot_replace_what_is_the_workers_own(name: str) -> None:
    assert spec(environment=[name]).environment == spec().environment


def test_nothing_secret_is_in_argv() -> None:
    everything = " ".join(spec(environment=["SECRET"]).argv)
    for value in ("secret", "evil", "operator"):
        assert value not in everything


def test_argv_begins_with_the_interpreter_and_names_the_worker() -> None:
    argv = spec().argv
    assert argv[0] == sys.executable, "Python finds its virtual environment by it"
    assert argv[1:4] == ("-I", "-S", "-u")
    assert Path(argv[4]).parts[-2:] == ("worker", "boot.py")
    assert Path(argv[4]).is_file()
    assert argv[5:7] == ("moltbot-worker", "worker-3")
    assert len(argv) == 8


def test_the_boot_spec_carries_parent_limits_and_command() -> None:
    boot = json.loads(spec(maxMemory="100MB", maxOpenFiles=200, worker_command=["node", "worker.js"]).argv[7])
    assert boot["parent"] == 4242
    assert boot["command"] == ["node", "worker.js"]
    assert boot["limits"] == {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 200,
        "RLIMIT_DATA": (400 << 20) + (1 << 30),
    }


def test_the_boot_code_finds_our_package_and_msgpack_without_site() -> None:
    boot = json.loads(spec().argv[7])
    assert boot["command"] is None
    package, msgpack = map(Path, boot["paths"])
    assert (package / "moltbot" / "worker" / "loop.py").is_file()
    assert (msgpack / "msgpack" / "__init__.py").is_file()


@pytest.mark.parametrize(("handler", "site"), [(None, False), ("handler.py", True), ("pkg:agent", True)])
def test_site_packages_are_there_for_authors_code_only(handler: str | None, site: bool) -> None:
    assert json.loads(spec(handler=handler).argv[7])["site"] is site


def test_a_worker_starts_in_its_own_temp_directory() -> None:
    assert spec().working_directory == Path("/base/worker-3/temp/7")


def test_the_worker_is_told_its_directories_and_limits() -> None:
    directories = WorkerDirectories(Path("/base"), "worker-3")
    config = PoolConfig.read({"heartbeatInterval": "250ms", "maxConcurrent": 3, "durableState": True})
    assert hello_config(directories, 7, config) == {
        "handler": None,
        "directories": {
            "sessions": "/base/worker-3/sessions",
            "state": "/base/worker-3/state",
            "cache": "/base/worker-3/cache",
            "temp": "/base/worker-3/temp/7",
        },
        "durable_state": True,
        "max_concurrent": 3,
        "heartbeat_interval_ms": 250,
    }


def test_a_handler_file_is_named_by_its_absolute_path_and_a_module_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/operator")
    assert absolute_handler("bots/echo.py") == str(tmp_path / "bots" / "echo.py")
    assert absolute_handler("~/echo.py") == "/home/operator/echo.py"
    assert absolute_handler("/opt/echo.py") == "/opt/echo.py"
    assert absolute_handler("package.module:agent") == "package.module:agent"
