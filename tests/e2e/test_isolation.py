"""What a worker gets of its gateway at each level: an exact environment, one socket, its own directories, and no secret.

What it cannot reach by itself is in `tests/escape/`; what the gateway tells of its walls, in `tests/cli/test_status_isolation.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from moltbot import IsolationUnavailable, Request
from moltbot.gateway.server import Gateway
from tests.fakes import pid_inside
from tests.legit.walls import unavailable
from tests.support import (
    BEHAVIOURS,
    LEVELS,
    Running,
    call,
    command,
    environment,
    gateway_in,
    moltbot,
    post,
    router_in,
)

at_every_level = pytest.mark.parametrize("level", LEVELS)


@asynccontextmanager
async def gateway_at(level: str, base: Path, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway at this level; skips if the level does not work on this machine."""
    context = gateway_in(base, isolation=level, **settings)
    try:
        gateway = await context.__aenter__()
    except IsolationUnavailable as error:
        unavailable(str(error))
    try:
        yield gateway
    finally:
        await context.__aexit__(None, None, None)


async def surroundings(gateway: Gateway, user: str = "ada") -> dict[str, Any]:
    """What a worker was given, as it sees it."""
    told: dict[str, Any] = (await post(gateway, "surroundings", user)).json["payload"]
    return told


def outside(gateway: Gateway, index: int = 0) -> psutil.Process:
    """A worker's process, as this machine sees it."""
    status = gateway.router.get_status()
    assert status is not None
    assert status.workers[index].pid is not None
    return psutil.Process(status.workers[index].pid)


@at_every_level
async def test_the_environment_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "TZ"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("SECRET_OF_THE_OPERATOR", "42")
    monkeypatch.setenv("NAMED", "given")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    async with gateway_at(level, tmp_path / "base", environment="NAMED, NOT_THERE") as gateway:
        told = await surroundings(gateway)
        seen_from_outside = outside(gateway).environ()
    own = tmp_path / "base" / "worker-0" / "temp" / "1"
    temp = "/sandbox/temp" if level == "bubblewrap" else str(own)
    expected = {
        "MOLTBOT_WORKER_ID": "worker-0",
        "MOLTBOT_INCARNATION": "1",
        "HOME": f"{temp}/.home",
        "TMPDIR": temp,
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "NAMED": "given",
    }
    assert told["environment"] == expected
    assert told["directory"] == temp
    assert "42" not in seen_from_outside.values()


@at_every_level
async def test_no_descriptor_is_inherited_but_the_socket(tmp_path: Path, level: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    opened = [os.open(secret, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY), *os.pipe()]
    high = os.dup2(opened[0], 900, inheritable=True)
    try:
        for descriptor in opened:
            os.set_inheritable(descriptor, True)
        async with gateway_at(level, tmp_path / "base") as gateway:
            found = (await surroundings(gateway))["descriptors"]
            above = targets(outside(gateway).ppid())
    finally:
        for descriptor in (*opened, high):
            os.close(descriptor)
    assert found["0"] == "/dev/null"
    assert found["1"].startswith("pipe:")
    assert found["2"].startswith("pipe:")
    assert found["3"].startswith("socket:")
    others = {name: target for name, target in found.items() if int(name) > 3}
    # What asyncio makes for itself: its selector and the socket pair that wakes it.
    assert all(target.startswith(("anon_inode:[eventpoll]", "socket:")) for target in others.values()), others
    assert not any(str(tmp_path) in target for target in (*found.values(), *above))
    # Who started the worker holds no socket of ours either, and at most the pipes into its log.
    assert {target.split(":")[0] for target in above} <= {"/dev/null", "pipe", "anon_inode"}


def targets(pid: int) -> set[str]:
    """What a process has open."""
    return {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


@at_every_level
async def test_the_command_line_names_the_worker_and_holds_no_secret(tmp_path: Path, level: str) -> None:
    async with gateway_at(level, tmp_path / "base", worker_count=2) as gateway:
        told = await surroundings(gateway, "user-a")
        argv = told["argv"]
        assert argv[0] == sys.executable
        assert argv[argv.index("moltbot-worker") + 1] == "worker-0"
        assert gateway.token not in json.dumps(told)
        worker = outside(gateway)
        for process in (worker, *worker.parents()[:2]):
            if process.pid != os.getpid():
                assert gateway.token not in json.dumps([process.cmdline(), process.environ()])
        assert worker.cmdline() == argv


@at_every_level
async def test_a_handler_keeps_what_it_writes_at_every_level(tmp_path: Path, level: str) -> None:
    """One user's state, through all levels and back: the directories go over to whoever the worker is."""
    base = tmp_path / "base"
    async with router_in(base, isolation="directories") as router:
        assert (await router.route(Request("count", "ada"))).payload == 1
    async with gateway_at(level, base) as gateway:
        assert (await post(gateway, "count", "ada")).json["payload"] == 2
    async with router_in(base, isolation="directories") as router:
        assert (await router.route(Request("count", "ada"))).payload == 3
        assert len((await router.route(Request("history", "ada"))).payload) == 3
    assert {path.stat().st_uid for path in (base / "worker-0" / "state").rglob("*")} == {os.geteuid()}


@at_every_level
async def test_the_pid_that_is_shown_is_the_workers_own(tmp_path: Path, level: str) -> None:
    async with gateway_at(level, tmp_path / "base") as gateway:
        told = (await post(gateway, "whoami", "ada")).json["payload"]
        shown = (await call(gateway, "GET", "/api/workers/worker-0")).json["pid"]
        assert shown == outside(gateway).pid
        assert pid_inside(shown) == told["pid"]
        assert (shown == told["pid"]) is (level != "bubblewrap")


async def test_the_level_is_the_strongest_that_works(tmp_path: Path) -> None:
    """Each level is tried by its name: the default must be the first that can be had."""
    working = []
    for level in LEVELS:
        try:
            async with router_in(tmp_path / "base", isolation=level):
                working.append(level)
        except IsolationUnavailable:
            continue
    async with router_in(tmp_path / "base") as router:
        status = router.get_status()
        assert status is not None
        assert status.isolation == working[0]
    assert working[-1] == "directories"


async def test_a_worker_behind_the_strongest_wall_sees_its_directories_by_short_names(tmp_path: Path) -> None:
    async with gateway_at("bubblewrap", tmp_path / "base") as gateway:
        told = (await post(gateway, "whoami", "ada")).json["payload"]
    inside = Path(told["directory"])
    assert inside.parent == Path("/sandbox/state")
    assert (tmp_path / "base" / "worker-0" / "state" / inside.name).is_dir()


def test_the_operators_token_reaches_no_worker_no_log_and_no_metadata(tmp_path: Path) -> None:
    token = "the-secret-of-the-operator-0123456789"
    options = ("-w", "1", "-s", "base", "--handler", BEHAVIOURS)
    with Running(tmp_path, *options, MOLTBOT_TOKEN=token) as gateway:
        base = tmp_path / "base"
        assert moltbot(tmp_path, "workers", "status", "-s", "base", MOLTBOT_TOKEN=token).returncode == 0
        assert moltbot(tmp_path, "workers", "status", "-s", "base", MOLTBOT_TOKEN=token[:-1]).returncode == 1
        for child in psutil.Process(gateway.process.pid).children(recursive=True):
            assert token not in json.dumps([child.cmdline(), environment_of(child)])
        assert token not in json.dumps(gateway.document)
        assert gateway.process.args == command("gateway", "--port", "0", "--json", *options)
    for path in base.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    metadata = json.loads((base / "worker-0" / "sandbox.json").read_text())
    assert metadata["workerId"] == "worker-0"
    assert metadata["isolation"] == gateway.document["status"]["isolation"] in LEVELS


def environment_of(process: psutil.Process) -> dict[str, str]:
    """Empty for one whose environment nobody but root may read: bwrap itself, which has dropped privileges."""
    try:
        return dict(process.environ())
    except psutil.AccessDenied:
        return {}


def test_a_token_made_by_the_gateway_stands_in_its_file_only(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base"):
        base = tmp_path / "base"
        token = (base / "token").read_bytes().strip()
        assert moltbot(tmp_path, "send", "ada", "hello", "-s", "base").returncode == 0
        holders = [path.name for path in base.rglob("*") if path.is_file() and token in path.read_bytes()]
        assert holders == ["token"]
    assert "MOLTBOT_TOKEN" not in environment(tmp_path)
