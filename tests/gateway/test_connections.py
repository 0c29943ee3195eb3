"""Connections are bounded, so that nobody can use up what workers need."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moltbot.gateway import server
from moltbot.gateway.server import EdgeConfig, Gateway
from moltbot.router.gateway_router import create_gateway_router


async def test_connections_over_the_bound_are_closed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 5)
    config = {"workerCount": 1, "sandboxBaseDir": tmp_path / "base"}
    async with Gateway(create_gateway_router(config), EdgeConfig()) as gateway:
        streams = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(8)]
        closed = [reader for reader, _ in streams[5:]]
        async with asyncio.timeout(10):
            assert [await reader.read() for reader in closed] == [b"", b"", b""]
        reader, writer = streams[0]
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for _, writer in streams:
            writer.close()


def test_descriptors_are_left_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    assert server.connection_limit(4) + 4 * 8 + 100 == 1024
