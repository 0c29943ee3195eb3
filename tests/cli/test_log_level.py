"""The level of the running pool's log: asked and changed by the router, by HTTP and by `moltbot gateway log-level`."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moltbot import InvalidRequest, NotRunning, create_gateway_router
from moltbot.client.http import GatewayClient, GatewayError
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import GatewayRouter
from tests.support import TOKEN, failed, gateway_in, moltbot, pool_config

log = logging.getLogger("moltbot.pool")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(tmp_path / "base") as running:
        yield running


@pytest.fixture
async def router(gateway: Gateway) -> GatewayRouter:
    return gateway.router


@pytest.fixture
async def url(gateway: Gateway) -> str:
    return gateway.url


def debugged(router: GatewayRouter) -> bool:
    """Does the pool's log take a debug record now?"""
    log.debug("a mark %d", id(router))
    path = router.config.sandbox_base_dir / "logs" / "worker-pool.log"
    return path.read_text().splitlines()[-1].endswith(f"DEBUG moltbot.pool a mark {id(router)}")


async def test_the_router_changes_it_at_once(router: GatewayRouter) -> None:
    assert (router.log_level, debugged(router)) == ("info", False)
    router.set_log_level("debug")
    assert (router.log_level, debugged(router)) == ("debug", True)


@pytest.mark.parametrize("level", ["loud", "INFO", "", None, 10, ["debug"]])
async def test_a_level_that_is_none_is_refused(router: GatewayRouter, level: Any) -> None:
    with pytest.raises(InvalidRequest, match="use one of debug, info, warning, error"):
        router.set_log_level(level)
    assert router.log_level == "info"


async def test_before_the_start_there_is_nothing_to_change(tmp_path: Path) -> None:
    router = create_gateway_router(pool_config(tmp_path / "base", log_level="error"))
    assert router.log_level == "error"
    with pytest.raises(NotRunning):
        router.set_log_level("debug")


async def test_by_http(router: GatewayRouter, url: str) -> None:
    async with GatewayClient(url, TOKEN) as client:
        assert await client.log_level() == {"level": "info"}
        assert await client.log_level("debug") == {"level": "debug"}
        assert debugged(router)
        assert await client.log_level() == {"level": "debug"}
        with pytest.raises(GatewayError, match="there is no log level 'loud'"):
            await client.log_level("loud")
        with pytest.raises(GatewayError, match="a level and nothing else"):
            await client._call("PUT", "/api/log-level", json={"levle": "debug"})


async def command(directory: Path, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    arguments = ("gateway", "log-level", *words, "--url", url)
    return await asyncio.to_thread(lambda: moltbot(directory, *arguments, MOLTBOT_TOKEN=TOKEN))


async def test_by_command(router: GatewayRouter, url: str, tmp_path: Path) -> None:
    asked = await command(tmp_path, url)
    assert asked.stdout == "logs/worker-pool.log takes info and above\n"
    changed = await command(tmp_path, url, "debug")
    assert changed.stdout == "logs/worker-pool.log now takes debug and above\n"
    assert debugged(router)
    assert (await command(tmp_path, url, "--json")).stdout == '{\n  "level": "debug"\n}\n'
    assert "there is no log level 'loud'" in failed(await command(tmp_path, url, "loud"), 1)


def test_the_command_needs_a_running_gateway_and_no_options_of_its_parent(tmp_path: Path) -> None:
    assert "moltbot gateway" in failed(moltbot(tmp_path, "gateway", "log-level", "-s", "base"), 1)
    for words in (["-w", "3"], ["--json"]):
        result = moltbot(tmp_path, "gateway", *words, "log-level")
        assert (result.returncode, result.stdout) == (2, "")
        assert "give options behind `log-level`" in result.stderr
    assert list(tmp_path.iterdir()) == []
