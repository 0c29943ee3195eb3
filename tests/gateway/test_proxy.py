"""A trusted proxy's word: from its address a header names the user, from anywhere else it names nobody.

Which addresses a setting can name is tested in `tests/gateway/test_server.py` and beside the settings.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_asyncio
from aiohttp.test_utils import make_mocked_request

from moltbot.core.clock import SystemClock
from moltbot.gateway.auth import FAILURES, Authenticator
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.credentials import Credentials
from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import ask, request_body, route_as, spelled, token_of
from tests.support import TOKEN, gateway_in, raw

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEADER = "X-Forwarded-User"
ELSEWHERE = "127.0.0.9"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    edge = {"trusted_proxies": ["127.0.0.1", "::1/128"]}
    async with gateway_in(tmp_path_factory.mktemp("proxy") / "base", edge=edge) as running:
        yield running


async def test_the_header_of_a_trusted_proxy_is_the_user(proxied: Gateway) -> None:
    answer = await route_as(proxied, None, "whoami", headers={HEADER: "ada"})
    assert (answer.status, answer.json["userId"], answer.json["payload"]["user"]) == (200, "ada", "ada")
    answer = await route_as(proxied, None, "echo", "ada", headers={HEADER.lower(): "ada"})
    assert answer.status == 200
    (await route_as(proxied, None, "echo", "ben", headers={HEADER: "ada"})).problem(403, "another_user")
    (await ask(proxied, "GET", "/api/workers", headers={HEADER: "ada"})).problem(403, "forbidden")
    (await ask(proxied, "POST", "/api/tokens", headers={HEADER: "ada"})).problem(403, "forbidden")


async def test_from_elsewhere_the_header_is_nothing(proxied: Gateway, gateway: Gateway) -> None:
    for running, address in ((proxied, ELSEWHERE), (gateway, "127.0.0.1")):
        answer = await route_as(running, None, "echo", "ada", headers={HEADER: "ada"}, address=address)
        answer.problem(401, "unauthorized")
        for other in (
            "X-Forwarded-For",
            "X-Real-IP",
            "Forwarded",
        ):  # no header says where a request comes from
            headers = {HEADER: "ada", other: "127.0.0.1"}
            answer = await route_as(running, None, "echo", "ada", headers=headers, address=address)
            answer.problem(401, "unauthorized")


async def test_without_the_header_the_proxys_request_is_nobodys(proxied: Gateway) -> None:
    (await route_as(proxied, None, "echo", "ada")).problem(401, "unauthorized")


@pytest.mark.parametrize(
    "headers",
    [
        (f"{HEADER}: ada", f"{HEADER}: ada"),
        (f"{HEADER}: ada", f"{HEADER}: ben"),
        (f"{HEADER}: ada", f"{HEADER.lower()}: "),
    ],
)
async def test_a_header_given_twice_is_refused(proxied: Gateway, headers: tuple[str, ...]) -> None:
    request = spelled("POST /api/route", request_body("echo", "ada"), *headers, token=None)
    (await raw(proxied, request)).problem(400, "bad_identity")


@pytest.mark.parametrize("value", ["", "   ", "x" * 513, "é" * 257, "\udcff", "a\udc80b"])
async def test_what_is_no_user_id_is_refused(proxied: Gateway, value: str) -> None:
    request = spelled("POST /api/route", request_body("echo"), f"{HEADER}: {value}", token=None)
    (await raw(proxied, request)).problem(400, "invalid_request")


async def test_a_user_may_have_any_name_that_a_header_carries(proxied: Gateway) -> None:
    for user_id in ("a/b", "..", "café", "operator", "proxy", "null", "ada, ben", "x" * 512):
        request = spelled("POST /api/route", request_body("whoami"), f"{HEADER}: {user_id}", token=None)
        answer = await raw(proxied, request)
        assert (answer.status, answer.json["payload"]["user"]) == (200, user_id)


async def test_the_header_and_a_token_must_agree(proxied: Gateway) -> None:
    token = await token_of(proxied, "ada")
    for address in ("127.0.0.1", ELSEWHERE):  # trusted or not: a contradiction is refused
        answer = await route_as(proxied, token, "echo", headers={HEADER: "ada"}, address=address)
        assert answer.status == 200
        answer = await route_as(proxied, token, "echo", headers={HEADER: "ben"}, address=address)
        answer.problem(403, "another_user")
    answer = await route_as(proxied, "wrong", "echo", headers={HEADER: "ada"})
    answer.problem(401, "unauthorized")


async def test_an_operator_behind_the_proxy_stays_one(proxied: Gateway) -> None:
    assert (await ask(proxied, "GET", "/api/workers", TOKEN, headers={HEADER: "ada"})).status == 200
    answer = await route_as(proxied, TOKEN, "whoami", "ben", headers={HEADER: "ada"})
    answer.problem(400, "invalid_request")


async def peer_of(address: str, configured: list[str], header: str = "ada") -> Any:
    """What an authenticator with these trusted networks says of a request from this address."""
    transport = Mock()
    transport.get_extra_info = lambda name, default=None: (address, 1234) if name == "peername" else default
    request = make_mocked_request("GET", "/", headers={HEADER: header}, transport=transport)
    config = EdgeConfig(trusted_proxies=tuple(ip_network(item) for item in configured))
    auth = Authenticator(TOKEN, Mock(Credentials), config, SystemClock())
    return auth.identify(request)


@pytest.mark.parametrize(
    ("address", "configured", "trusted"),
    [
        ("10.1.2.3", ["10.0.0.0/8"], True),
        ("11.1.2.3", ["10.0.0.0/8"], False),
        ("::ffff:10.1.2.3", ["10.0.0.0/8"], True),  # as a socket for both families names an IPv4 peer
        ("::ffff:11.1.2.3", ["10.0.0.0/8"], False),
        ("::10.1.2.3", ["10.0.0.0/8"], False),
        ("fe80::1%eth0", ["fe80::/10"], True),
        ("2001:db8::1", ["0.0.0.0/0"], False),
        ("10.1.2.3", ["::/0"], False),
        ("10.1.2.3", [], False),
    ],
)
async def test_an_address_is_trusted_by_what_it_is(
    address: str, configured: list[str], trusted: bool
) -> None:
    credential = await peer_of(address, configured)
    assert (credential is not None) == trusted
    if trusted:
        assert credential.user_id == "ada"


async def test_a_real_peer_by_ipv6_that_is_ipv4_inside(tmp_path: Any) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no socket for both families")
    edge = {"host": "::", "trusted_proxies": ["127.0.0.1"]}
    async with gateway_in(tmp_path / "base", edge=edge) as running:
        request = spelled("POST /api/route", request_body("whoami"), f"{HEADER}: ada", token=None)
        answer = await raw(running, request)
        assert (answer.status, answer.json["userId"]) == (200, "ada")
        for _ in range(FAILURES.amount):
            assert (await route_as(running, None, "echo", address="127.0.0.2")).status == 401
        (await route_as(running, None, "echo", address="127.0.0.2")).problem(429, "too_many_failures")
        # The others of IPv4 are not answered for that one.
        (await route_as(running, None, "echo", address="127.0.0.3")).problem(401, "unauthorized")


async def test_the_word_of_a_proxy_is_not_heard_where_the_port_was_told_another_header(tmp_path: Any) -> None:
    edge = {"trusted_proxies": ["127.0.0.1"], "proxy_user_header": "Remote-User"}
    async with gateway_in(tmp_path / "base", edge=edge) as running:
        (await route_as(running, None, "echo", headers={HEADER: "ada"})).problem(401, "unauthorized")
        assert (await route_as(running, None, "echo", headers={"remote-user": "ada"})).status == 200
