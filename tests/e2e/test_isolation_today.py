"""What a worker gets at the level `directories`: an exact environment, one socket, and no secret of the gateway's."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from moltbot import Request
from tests.support import BEHAVIOURS, Running, command, environment, gateway_in, moltbot, post, router_in


async def test_the_environment_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "TZ"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("SECRET_OF_THE_OPERATOR", "42")
    monkeypatch.setenv("NAMED", "given")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    async with router_in(tmp_path / "base", environment="NAMED, NOT_THERE") as router:
        told = (await router.route(Request("surroundings", "ada"))).payload
    root = tmp_path / "base" / "worker-0"
    assert told["environment"] == {
        "MOLTBOT_WORKER_ID": "worker-0",
        "MOLTBOT_INCARNATION": "1",
        "HOME": str(root / "temp" / "1" / ".home"),
        "TMPDIR": str(root / "temp" / "1"),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "NAMED": "given",
    }
    assert told["directory"] == str(root / "temp" / "1")


async def test_no_descriptor_is_inherited_but_the_socket(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("precious")
    opened = [os.open(secret, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY), *os.pipe()]
    high = os.dup2(opened[0], 900, inheritable=True)
    try:
        for descriptor in opened:
            os.set_inheritable(descriptor, True)
        async with router_in(tmp_path / "base") as router:
            told = (await router.route(Request("surroundings", "ada"))).payload
            found = told["descriptors"]
            guard = {
                os.readlink(f"/proc/{told['parent']}/fd/{name}")
                for name in os.listdir(f"/proc/{told['parent']}/fd")
            }
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
    assert not any(str(tmp_path) in target for target in (*found.values(), *guard))
    assert guard <= {"/dev/null"}


async def test_the_command_line_names_the_worker_and_holds_no_secret(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", worker_count=2) as gateway:
        told = (await post(gateway, "surroundings", "user-a")).json["payload"]
    argv = told["argv"]
    assert argv[0] == sys.executable
    assert argv[argv.index("moltbot-worker") + 1] == "worker-0"
    assert gateway.token not in json.dumps(told)


def test_the_operators_token_reaches_no_worker_no_log_and_no_metadata(tmp_path: Path) -> None:
    token = "the-secret-of-the-operator-0123456789"
    options = ("-w", "1", "-s", "base", "--handler", BEHAVIOURS)
    with Running(tmp_path, *options, MOLTBOT_TOKEN=token) as gateway:
        base = tmp_path / "base"
        assert moltbot(tmp_path, "workers", "status", "-s", "base", MOLTBOT_TOKEN=token).returncode == 0
        assert moltbot(tmp_path, "workers", "status", "-s", "base", MOLTBOT_TOKEN=token[:-1]).returncode == 1
        for child in psutil.Process(gateway.process.pid).children(recursive=True):
            assert token not in json.dumps([child.cmdline(), child.environ()])
        assert token not in json.dumps(gateway.document)
        assert gateway.process.args == command("gateway", "--port", "0", "--json", *options)
    for path in base.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    metadata = json.loads((base / "worker-0" / "sandbox.json").read_text())
    assert metadata["workerId"] == "worker-0"
    assert metadata["isolation"] == "directories"


def test_a_token_made_by_the_gateway_stands_in_its_file_only(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base"):
        base = tmp_path / "base"
        token = (base / "token").read_bytes().strip()
        assert moltbot(tmp_path, "send", "ada", "hello", "-s", "base").returncode == 0
        holders = [path.name for path in base.rglob("*") if path.is_file() and token in path.read_bytes()]
        assert holders == ["token"]
    assert "MOLTBOT_TOKEN" not in environment(tmp_path)
