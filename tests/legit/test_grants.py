"""What an operator grants is there inside of the strongest wall: modules, data, variables, a network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from moltbot import Request
from moltbot.core.errors import IsolationUnavailable
from moltbot.worker.confine import landlock_abi
from tests.legit.walls import HANDLERS, STRONGEST, unavailable, walled
from tests.support import gateway_in, post

GRANTS = str(HANDLERS / "grants.py")
IMPORTS = """
import importlib.util
import neighbour
from moltbot import handler

@handler("agent")
async def agent(ctx, payload):
    return [neighbour.WORD, importlib.util.find_spec("stranger") is None]
"""


async def test_a_module_beside_the_handler_file(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "my_agent.py").write_text(IMPORTS)
    (folder / "neighbour.py").write_text("WORD = 'from next door'\n")
    (folder / "stranger.py").write_text("")
    settings: dict[str, Any] = {
        "handler": str(folder / "my_agent.py"),
        "read_only_paths": [folder / "neighbour.py"],
    }
    async with walled(tmp_path / "base", **settings) as worker:
        assert await worker.ask("agent") == ["from next door", True]


async def test_data_to_read_and_a_folder_to_share(tmp_path: Path) -> None:
    models, shared = tmp_path / "the models", tmp_path / "shared"
    for folder in (models, shared):
        folder.mkdir()
    models.chmod(0o755)
    shared.chmod(0o777)  # as for any other user of the machine: a grant changes no permissions
    (models / "weights.txt").write_text("1 2 3")
    settings: dict[str, Any] = {"read_only_paths": [models], "read_write_paths": [shared], "worker_count": 2}
    async with walled(tmp_path / "base", handler=GRANTS, **settings) as workers:
        assert await workers.ask("reads", str(models / "weights.txt")) == "1 2 3"
        assert await workers.ask("writes", str(models)) in ("EROFS", "EACCES")
        for user in ("user-a", "user-b"):  # on one worker each
            assert await workers.ask("writes", str(shared), user=user) == "written"
        assert (shared / "worker-0.done").read_text() == "user-a"
        assert await workers.ask("reads", str(shared / "worker-1.done"), user="user-a") == "user-b"
        (shared / "from-outside").write_text("hello")
        assert await workers.ask("reads", str(shared / "from-outside")) == "hello"


async def test_named_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "grüße = ' \"")
    monkeypatch.setenv("NOT_NAMED", "secret")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    async with walled(tmp_path / "base", handler=GRANTS, environment="API_KEY") as worker:
        told = await worker.ask("environment")
    assert told["API_KEY"] == "grüße = ' \""
    assert told["TZ"] == "Europe/Berlin"
    assert "NOT_NAMED" not in told


async def test_a_network_without_the_gateway(tmp_path: Path) -> None:
    """`network = "full"` reaches servers of this machine, and finds the files that names are looked up by."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from outside\n")
        await writer.drain()
        writer.close()

    settings: dict[str, Any] = {"handler": GRANTS, "network": "full", "isolation": STRONGEST}
    try:
        async with (
            await asyncio.start_server(greet, "127.0.0.1", 0) as server,
            gateway_in(tmp_path / "base", **settings) as gateway,
        ):
            port = server.sockets[0].getsockname()[1]
            assert (await post(gateway, "connects", "ada", port)).json["payload"] == "hello from outside\n"
            if landlock_abi() >= 4:  # the first that knows ports
                assert (await post(gateway, "connects", "ada", gateway.port)).json["payload"] == "EACCES"
            for path in (Path("/etc/resolv.conf"), Path("/etc/hosts")):
                reply = await gateway.router.route(Request("reads", "ada", str(path)))
                if path.exists():
                    assert reply.payload.startswith(path.read_text(encoding="utf-8"))
    except IsolationUnavailable as error:
        unavailable(str(error))


async def test_its_own_name_on_the_machines_network(tmp_path: Path) -> None:
    async with walled(tmp_path / "base", handler=GRANTS, network="full") as worker:
        assert (await worker.ask("own_address")).startswith("127.")
