"""`/readyz` in every state of the gateway's life, and what only an operator is told; what is warned of at the start."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from moltbot import StartupError, create_gateway_router
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from tests.fakes import eventually
from tests.gateway.test_tls import write_pair
from tests.support import (
    TOKEN,
    Answer,
    call,
    check_sentence,
    gateway_in,
    logged,
    pool_config,
    post,
    raw,
    stage,
)

ASK = b"GET /readyz?verbose HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
CREDENTIAL = f"Authorization: Bearer {TOKEN}\r\n".encode()


async def verbose(gateway: Gateway) -> Answer:
    return await call(gateway, "GET", "/readyz?verbose")


def checks_of(answer: Answer) -> dict[str, Any]:
    return {check["name"]: check for check in answer.json["checks"]}


async def test_while_the_workers_start_it_says_so(tmp_path: Path) -> None:
    gateway = Gateway(
        create_gateway_router(pool_config=pool_config(tmp_path / "base")), EdgeConfig(), token=TOKEN
    )
    starting = asyncio.create_task(gateway.start())
    try:
        await eventually(lambda: gateway.port != 0)
        for credential in (b"", CREDENTIAL):
            answer = await raw(gateway, ASK + credential + b"\r\n")
            assert (answer.status, answer.json) == (503, {"status": "starting"})
        assert not starting.done()
        await starting
        assert (await call(gateway, "GET", "/readyz")).json == {"status": "ready"}
    finally:
        await gateway.stop()


async def test_while_it_drains_it_says_so(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base") as gateway:
        held = asyncio.create_task(post(gateway, "hold", "ada", {"stage": str(at)}))
        await logged(at, "begin ada 0")
        stopping = asyncio.create_task(gateway.stop())
        await eventually(lambda: gateway.router.draining)
        answer = await verbose(gateway)
        assert (answer.status, answer.json["status"]) == (503, "draining")
        (at / "go").touch()
        assert (await held).status == 200
        await stopping


async def test_an_operator_is_told_the_whole_and_nobody_else(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", worker_count=2) as gateway:
        answer = await verbose(gateway)
        assert answer.status == 200
        checks = checks_of(answer)
        assert list(checks) == ["workers", "database", "storage", "isolation", "connections"]
        assert checks["workers"] == {"name": "workers", "ok": True, "detail": "2 of 2 are ready"}
        assert checks["database"]["ok"]
        assert checks["storage"]["ok"]
        assert checks["connections"]["ok"]
        assert answer.json["degraded"] is not checks["isolation"]["ok"]
        assert "since" not in answer.json
        for credential in (b"", b"Authorization: Bearer wrong\r\n", b"Cookie: moltbot-session=wrong\r\n"):
            assert (await raw(gateway, ASK + credential + b"\r\n")).json == {"status": "ready"}


async def test_a_user_is_told_the_bare_word(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        for fields, told in (({"userId": "ada"}, False), ({"operator": True, "scopes": ["read"]}, True)):
            made = (await call(gateway, "POST", "/api/tokens", json=fields)).json
            headers = {"Authorization": f"Bearer {made['token']}"}
            answer = await call(gateway, "GET", "/readyz?verbose", headers=headers)
            assert ("checks" in answer.json) is told
        made = (await call(gateway, "POST", "/api/tokens", json={"operator": True, "scopes": ["route"]})).json
        headers = {"Authorization": f"Bearer {made['token']}"}
        answer = await call(gateway, "GET", "/readyz?verbose", headers=headers)
        assert answer.json == {"status": "ready"}, "it lacks the scope"


async def test_a_worker_that_is_missing_is_named_with_its_reason_and_its_time(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", worker_count=2, restart_delay=600_000) as gateway:
        (await post(gateway, "die", "ada")).problem(502, "worker_died")
        worker = gateway.router.where("ada").worker_id
        answer = await verbose(gateway)
        assert (answer.status, answer.json["status"]) == (200, "ready"), "the other one is"
        assert answer.json["degraded"] is True
        assert answer.json["since"].startswith("20")
        check = checks_of(answer)["workers"]
        assert not check["ok"]
        assert "1 of 2 are ready" in check["detail"]
        assert f"{worker} is backoff (crashed" in check["detail"]


async def test_the_end_of_the_certificate_is_told(tmp_path: Path) -> None:
    edge = write_pair(tmp_path, trustme.CA(), expires=datetime(2031, 2, 3, tzinfo=UTC))
    async with gateway_in(tmp_path / "base", edge=edge) as gateway:
        answer = await call(gateway, "GET", "/readyz?verbose", ssl=False)
        check = checks_of(answer)["certificate"]
        assert check["ok"]
        assert "ends on 2031-02-03" in check["detail"]


@pytest.mark.parametrize(
    ("edge", "warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "trusted_proxies": "10.0.0.0/8"}, False),
        ({"host": "127.0.0.1"}, False),
        ({"host": "localhost"}, False),
    ],
)
async def test_tokens_that_travel_in_the_clear_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, edge: dict[str, str], warned: bool
) -> None:
    async with gateway_in(tmp_path / "base", edge=edge):
        assert ("unencrypted" in caplog.text) is warned


async def test_with_a_certificate_nothing_travels_in_the_clear(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway_in(tmp_path / "base", edge={"host": "0.0.0.0", **write_pair(tmp_path, trustme.CA())}):
        assert "unencrypted" not in caplog.text


@pytest.mark.parametrize("networks", ["0.0.0.0/0", "10.0.0.1, ::/0", "0.0.0.0/1, 128.0.0.0/1"])
async def test_to_trust_everybody_is_refused(tmp_path: Path, networks: str) -> None:
    with pytest.raises(StartupError, match="trusted_proxies") as caught:
        async with gateway_in(tmp_path / "base", edge={"trusted_proxies": networks}):
            pass
    check_sentence(caught.value.message)
    assert not (tmp_path / "base").exists()
