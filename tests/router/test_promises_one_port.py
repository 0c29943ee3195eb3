"""Promise 9, one port: everything is served on the gateway's one port, and no worker listens anywhere."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.support import Running, call, gateway_in, moltbot


async def test_requests_streams_questions_and_health_share_the_port(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        body = {"type": "story", "userId": "ada", "payload": {}}
        assert (await call(gateway, "POST", "/api/route", json=body)).json["payload"] == "one two"
        headers = {"Accept": "text/event-stream"}
        streamed = await call(gateway, "POST", "/api/route", json=body, headers=headers)
        assert streamed.headers["Content-Type"] == "text/event-stream"
        for path in (
            "/api/workers",
            "/api/workers/worker-0",
            "/api/users?userId=ada",
            "/health",
            "/livez",
            "/readyz",
        ):
            assert (await call(gateway, "GET", path)).status == 200, path


def test_the_gateway_listens_on_one_port_and_its_workers_on_none(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "3", "-s", str(tmp_path / "base")) as gateway:
        assert moltbot(tmp_path, "send", "ada", "hi", "-s", str(tmp_path / "base")).returncode == 0
        process = psutil.Process(gateway.process.pid)
        listening = {
            (connection.laddr.ip, connection.laddr.port)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        port = int(gateway.document["url"].rpartition(":")[2])
        assert listening == {("127.0.0.1", port)}
        below = process.children(recursive=True)
        assert len(below) >= 3
        assert [child.net_connections("inet") for child in below] == [[]] * len(below)
