"""What a worker process gets: an exact environment, an argv without secrets, its limits, and nothing else of ours."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import (
    STATUS_PIPE,
    Attached,
    LaunchSpec,
    Places,
    Word,
    WorkerSocket,
    absolute_handler,
    hello_config,
    launch_spec,
)

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


def boot_of(spec: LaunchSpec) -> dict[str, Any]:
    """What the worker's boot code is told, by a descriptor."""
    attached = spec.argv[spec.argv.index("moltbot-worker") + 2]
    assert isinstance(attached, Attached)
    assert isinstance(attached.content, bytes)
    content: dict[str, Any] = json.loads(attached.content)
    return content


def test_the_environment_is_exactly_this() -> None:
    assert spec().environment == {
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


def test_nothing_secret_is_in_argv_or_in_what_is_attached() -> None:
    everything = repr(spec(environment=["SECRET"]).argv)
    for value in ("secret", "evil", "operator"):
        assert value not in everything


def test_argv_begins_with_the_interpreter_and_names_the_worker() -> None:
    argv = spec().argv
    assert argv[0] == sys.executable, "Python finds its virtual environment by it"
    assert argv[1:4] == ("-I", "-S", "-u")
    assert isinstance(argv[4], str)
    assert Path(argv[4]).parts[-2:] == ("worker", "boot.py")
    assert Path(argv[4]).is_file()
    assert argv[5:7] == ("moltbot-worker", "worker-3")
    assert isinstance(argv[7], Attached)
    assert argv[8:] == ("guarded", WorkerSocket())


@pytest.mark.parametrize(
    ("changes", "parent", "last"),
    [
        ({}, 4242, ("guarded", WorkerSocket())),
        ({"guarded": False}, None, ("walled", WorkerSocket())),
        ({"interactive": True}, None, ("interactive",)),
    ],
)
def test_only_a_guard_has_to_know_its_gateway_and_only_a_shell_gets_no_socket(
    changes: dict[str, Any], parent: int | None, last: tuple[Word, ...]
) -> None:
    changed = replace(spec(), **changes)
    assert (boot_of(changed)["parent"], changed.argv[8:]) == (parent, last)


def test_what_runs_the_worker_comes_first_and_changes_nothing_behind_it() -> None:
    plain = spec()
    words = ("/usr/bin/bwrap", "--args", Attached(("--info-fd", STATUS_PIPE)), "--")
    assert replace(plain, prefix=words).argv == (*words, *plain.argv)


def test_a_worker_behind_a_wall_is_told_paths_as_it_sees_them() -> None:
    inside = Path("/inside")
    places = Places(*(inside / name for name in ("sessions", "state", "cache", "temp", "home", "lib")))
    moved = replace(spec(), places=places)
    assert moved.environment == spec().environment | {"HOME": "/inside/home", "TMPDIR": "/inside/temp"}
    assert moved.argv[4] == "/inside/lib/moltbot/worker/boot.py"
    assert boot_of(moved)["directory"] == "/inside/temp"
    assert boot_of(moved)["paths"][0] == "/inside/lib"


def test_what_is_applied_from_inside_is_part_of_the_boot_spec() -> None:
    assert boot_of(spec())["confinement"] is None
    confinement = {"uid": 5, "landlock": None, "seccomp": None}
    assert boot_of(replace(spec(), confinement=confinement))["confinement"] == confinement


def test_the_boot_spec_carries_limits_and_command() -> None:
    settings: dict[str, Any] = {"maxMemory": "100MB", "maxOpenFiles": 200, "maxDisk": "50MB"}
    settings |= {"workerCount": 3, "maxProcesses": 20}
    boot = boot_of(spec(**settings, worker_command=["node", "worker.js"]))
    assert boot["command"] == ["node", "worker.js"]
    assert boot["limits"] == {
        "RLIMIT_CORE": 1,
        "RLIMIT_NOFILE": 200,
        "RLIMIT_FSIZE": 50 << 20,
        "RLIMIT_DATA": (400 << 20) + (1 << 30),
        **({} if os.geteuid() == 0 else {"RLIMIT_NPROC": 60}),
    }


def test_the_boot_code_finds_our_package_and_msgpack_without_site() -> None:
    boot = boot_of(spec())
    assert boot["command"] is None
    package, msgpack = map(Path, boot["paths"])
    assert (package / "moltbot" / "worker" / "loop.py").is_file()
    assert (msgpack / "msgpack" / "__init__.py").is_file()


@pytest.mark.parametrize(("handler", "site"), [(None, False), ("handler.py", True), ("pkg:agent", True)])
def test_site_packages_are_there_for_authors_code_only(handler: str | None, site: bool) -> None:
    assert boot_of(spec(handler=handler))["site"] is site


def test_a_worker_starts_in_its_own_temp_directory() -> None:
    assert boot_of(spec())["directory"] == "/base/worker-3/temp/7"


def test_the_worker_is_told_its_directories_and_limits() -> None:
    config = PoolConfig.read({"heartbeatInterval": "250ms", "maxConcurrent": 3, "durableState": True})
    assert hello_config(spec().places, config) == {
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
