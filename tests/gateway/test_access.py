"""Who may speak to the gateway: the credential, the Host it answers to, the Origin a browser may come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from moltbot.gateway.server import Gateway
from tests.support import TOKEN, gateway_in, raw, request_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

BODY = b'{"type": "echo", "userId": "ada", "payload": 1}'
CREDENTIAL = f"Authorization: Bearer {TOKEN}\r\n".encode()


def with_credential(line: bytes) -> bytes:
    return request_bytes(BODY).replace(CREDENTIAL, line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Authorization: \r\n",
        b"Authorization: Bearer\r\n",
        b"Authorization: Bearer \r\n",
        b"Authorization: Bearer wrong\r\n",
        f"Authorization: {TOKEN}\r\n".encode(),
        f"Authorization: Basic {TOKEN}\r\n".encode(),
        f"Authorization: Bearer {TOKEN}x\r\n".encode(),
        f"Authorization: Bearer {TOKEN[:-1]}\r\n".encode(),
        f"Authorization: Bearer {TOKEN.upper()}\r\n".encode(),
        f"Authorization: Bearer {TOKEN}, Bearer {TOKEN}\r\n".encode(),
        b"Authorization: Bearer \xff\xfe\x80\r\n",
        b"Authorization: \xf0\x9f\xa6\x80\r\n",
        b"Authorization: Bearer " + b"x" * 4000 + b"\r\n",
        f"Proxy-Authorization: Bearer {TOKEN}\r\n".encode(),
        f"Cookie: token={TOKEN}\r\n".encode(),
    ],
)
async def test_without_the_token_nothing_is_told(gateway: Gateway, line: bytes) -> None:
    for request in (
        with_credential(line),
        with_credential(line).replace(b"POST /api/route", b"GET /nowhere"),
    ):
        answer = await raw(gateway, request)
        assert "Authorization: Bearer" in answer.problem(401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text


async def test_two_credentials_are_none(gateway: Gateway) -> None:
    answer = await raw(gateway, with_credential(CREDENTIAL + b"Authorization: Bearer wrong\r\n"))
    assert answer.status in (400, 401)
    answer = await raw(gateway, with_credential(CREDENTIAL * 2))
    assert answer.status in (400, 401)


async def test_the_token_does_not_count_in_the_query(gateway: Gateway) -> None:
    request = with_credential(b"").replace(b"/api/route", f"/api/route?token={TOKEN}".encode())
    (await raw(gateway, request)).problem(401, "unauthorized")


async def test_the_scheme_may_be_written_in_any_case(gateway: Gateway) -> None:
    assert (await raw(gateway, with_credential(CREDENTIAL.replace(b"Bearer", b"bearer")))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:18789",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "evil.example#localhost",
        "0.0.0.0",
        "10.0.0.1",
        "[::2]",
        "localhost.",
    ],
)
async def test_a_foreign_host_is_refused_whatever_the_path(gateway: Gateway, host: str) -> None:
    for target in ("POST /api/route", "GET /health", "GET /livez/", "GET /"):
        answer = await raw(gateway, request_bytes(BODY, host=host, target=target))
        assert answer.status in (400, 421), host
        if answer.status == 421:
            assert "allowed_hosts" in answer.problem(421, "misdirected")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:65535", "[::1]:80"])
async def test_loopback_names_are_answered(gateway: Gateway, host: str) -> None:
    assert (await raw(gateway, request_bytes(BODY, host=host))).status == 200


@pytest.mark.parametrize(
    "host", ["", "localhost:99999", "localhost:x", "ada@localhost", "[::1", "local host", "a/b"]
)
async def test_what_is_no_host_is_refused(gateway: Gateway, host: str) -> None:
    assert (await raw(gateway, request_bytes(BODY, host=host))).status in (400, 421)


async def test_no_host_or_two_are_refused(gateway: Gateway) -> None:
    request = request_bytes(BODY)
    for hosts in (
        b"",
        b"Host: localhost\r\nHost: localhost\r\n",
        b"Host: localhost\r\nHost: evil.example\r\n",
    ):
        assert (await raw(gateway, request.replace(b"Host: localhost\r\n", hosts))).status == 400


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://evil.example:18789",
        "http://localhost",
        "http://localhost.evil.example",
        "http://127.0.0.1:1",
        "file://",
        "garbage",
    ],
)
async def test_a_page_of_another_site_is_refused(gateway: Gateway, origin: str) -> None:
    request = request_bytes(BODY, f"Origin: {origin}", host=f"localhost:{gateway.port}")
    (await raw(gateway, request)).problem(403, "foreign_origin")


@pytest.mark.parametrize("scheme", ["http-evil", "ftp", "", "file"])
async def test_a_page_of_another_scheme_is_of_another_site(gateway: Gateway, scheme: str) -> None:
    host = f"localhost:{gateway.port}"
    (await raw(gateway, request_bytes(BODY, f"Origin: {scheme}://{host}", host=host))).problem(
        403, "foreign_origin"
    )


async def test_a_page_of_this_gateway_is_answered(gateway: Gateway) -> None:
    host = f"localhost:{gateway.port}"
    request = request_bytes(BODY, f"Origin: http://{host}", host=host)
    answer = await raw(gateway, request)
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_browsers_question_beforehand_gets_no_permission(gateway: Gateway) -> None:
    request = request_bytes(
        b"", "Origin: http://evil.example", "Access-Control-Request-Method: POST", target="OPTIONS /api/route"
    )
    answer = await raw(gateway, request)
    answer.problem(403, "foreign_origin")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_allowed_hosts_are_answered_and_others_still_not(tmp_path: Path) -> None:
    edge = {"allowed_hosts": ("Gateway.Example",)}
    async with gateway_in(tmp_path / "base", edge=edge) as gateway:
        assert (await raw(gateway, request_bytes(BODY, host="gateway.example:8443"))).status == 200
        assert (await raw(gateway, request_bytes(BODY, host="localhost"))).status == 200
        (await raw(gateway, request_bytes(BODY, host="evil.example"))).problem(421, "misdirected")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_probe_is_answered_by_any_name(gateway: Gateway, path: str) -> None:
    for host in ("10.1.2.3:18789", "evil.example", "a/b"):
        request = request_bytes(b"", host=host, target=f"GET {path}").replace(CREDENTIAL, b"")
        answer = await raw(gateway, request)
        assert (answer.status, list(answer.json)) == (200, ["status"])


async def test_bound_to_all_addresses_without_a_list_any_host_is_answered(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", edge={"host": "0.0.0.0"}) as gateway:
        assert gateway.url == f"http://127.0.0.1:{gateway.port}"
        assert (await raw(gateway, request_bytes(BODY, host="any.example"))).status == 200
        (await raw(gateway, request_bytes(BODY, host="any.example").replace(CREDENTIAL, b""))).problem(
            401, "unauthorized"
        )
