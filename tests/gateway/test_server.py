"""The gateway as a service: its port, a taken one, starts and stops that go wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from moltbot import NotRunning, PortInUse, StartupError, create_gateway_router
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from tests.fakes import descendants
from tests.support import TOKEN, call, check_sentence, gateway_in, pool_config


def gateway_with(tmp_path: Path, *, token: str = TOKEN, **edge: Any) -> Gateway:
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base"))
    return Gateway(router, EdgeConfig(**edge), token=token)


async def test_a_taken_port_is_told_with_its_holder_before_a_worker_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} is taken by .* \(pid {os.getpid()}\)") as caught:
            await gateway_with(tmp_path, port=port).start()
    check_sentence(caught.value.message)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "not a host"])
async def test_a_host_that_is_not_ours_is_told(tmp_path: Path, host: str) -> None:
    with pytest.raises(StartupError) as caught:
        await gateway_with(tmp_path, host=host).start()
    check_sentence(caught.value.message)
    assert host in caught.value.message


async def test_a_start_that_fails_frees_the_port_the_directory_and_the_processes(tmp_path: Path) -> None:
    before = descendants()
    gateway = gateway_with(tmp_path, token="short")  # noticed only when the workers run already
    with pytest.raises(StartupError):
        await gateway.start()
    assert gateway.port == 0
    assert descendants() == before
    async with gateway_in(tmp_path / "base"):
        pass


async def test_a_stopped_gateway_answers_no_more_and_can_start_again(tmp_path: Path) -> None:
    gateway = gateway_with(tmp_path)
    for _ in range(2):
        async with gateway:
            url = gateway.url
            assert (await call(gateway, "GET", "/livez")).status == 200
        host, port = url.removeprefix("http://").split(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))


async def test_stop_during_start_leaves_nothing(tmp_path: Path) -> None:
    before = descendants()
    gateway = gateway_with(tmp_path)
    starting = asyncio.create_task(gateway.start())
    await asyncio.sleep(0)
    await gateway.stop()
    with pytest.raises((NotRunning, asyncio.CancelledError)):
        await starting
    assert descendants() == before
    async with gateway_in(tmp_path / "base"):
        pass


async def test_the_address_is_announced_while_it_is_true(tmp_path: Path) -> None:
    file = tmp_path / "base" / "gateway.json"
    async with gateway_in(tmp_path / "base") as gateway:
        assert json.loads(file.read_text()) == {"pid": os.getpid(), "url": gateway.url}
        assert file.stat().st_mode & 0o777 == 0o600
    assert not file.exists()


async def test_ipv6_loopback_will_do_where_there_is_any(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    async with gateway_in(tmp_path / "base", edge={"host": "::1"}) as gateway:
        assert gateway.url.startswith("http://[::1]:")
        assert (await call(gateway, "GET", "/api/workers")).status == 200
