"""Every route against every kind of credential, generated from the table: a new route is asked here without a word more.

What a credential is allowed beyond its scopes (whose user it speaks for) is in `test_tokens.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from moltbot import create_gateway_router
from moltbot.core.clock import SystemClock
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.app import API_PREFIXES, ROUTES, create_app
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.edge import Edge
from moltbot.gateway.origins import Origins
from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import create
from tests.support import TOKEN, pool_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCOPE_SETS = [
    frozenset(some) for size in range(1, len(Scope) + 1) for some in itertools.combinations(Scope, size)
]
OPEN_TO_ANYONE = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/health"),
    ("GET", "/login"),
    ("POST", "/login"),
}
"""To be extended by whoever means to open a route to everybody, and by nobody else."""

GUARDED = [route for route in ROUTES if route.audience != "anyone"]


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def ways(route: Route) -> Iterator[tuple[str, str]]:
    """Every method and path by which a route is reached; what stands for a part of the path exists nowhere."""
    path = re.sub(r"\{[^}]*\}", "nothing-has-this-name", route.path)
    for prefix in API_PREFIXES if route.api else ("",):
        yield route.method, prefix + path
        if route.method == "GET" and route.head:
            yield "HEAD", prefix + path


class Asking:
    """Asks with tokens of every set of scopes; of an answer only the head is read, for some streams have no end."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session
        self.operators: dict[frozenset[Scope], str] = {}
        self.users: dict[frozenset[Scope], str] = {}

    async def status(self, method: str, path: str, token: str | None) -> tuple[int, str | None]:
        """The status, and the code of the error if it is one and has a body."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.request(method, self.gateway.url + path, headers=headers) as answer:
            if answer.content_type != "application/problem+json" or method == "HEAD":
                return answer.status, None
            return answer.status, (await answer.json(content_type=None))["code"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asking(gateway: Gateway) -> AsyncIterator[Asking]:
    async with aiohttp.ClientSession() as session:
        asking = Asking(gateway, session)
        for scopes in SCOPE_SETS:
            made = await create(gateway, operator=True, scopes=sorted(scopes))
            asking.operators[scopes] = made["token"]
            made = await create(gateway, userId="ada", scopes=sorted(scopes))
            asking.users[scopes] = made["token"]
        yield asking


async def test_what_is_open_to_anyone_is_written_down_here() -> None:
    assert {(r.method, r.path) for r in ROUTES if r.audience == "anyone"} == OPEN_TO_ANYONE
    assert [r.path for r in ROUTES if r.any_host and r.audience != "anyone"] == []


async def test_nothing_is_mounted_beside_the_table(tmp_path: Path) -> None:
    config = EdgeConfig()
    edge = Edge(config, Origins(config.host, ()), SystemClock())
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base"))
    app = create_app(router, edge, config)
    mounted = list(app.router.routes())
    assert {*mounted} == edge.routes.keys()
    expected = sorted(way for route in ROUTES for way in ways(route))
    assert expected == sorted(
        (r.method, re.sub(r"\{[^}]*\}", "nothing-has-this-name", r.resource.canonical))
        for r in mounted
        if r.resource is not None
    )


@pytest.mark.parametrize("number", range(len(GUARDED)), ids=[name(route) for route in GUARDED])
async def test_without_a_credential_it_is_401(gateway: Gateway, number: int) -> None:
    # From an address of its own: so many failures of one address would be answered with 429.
    connector = aiohttp.TCPConnector(local_addr=(f"127.1.{number // 200}.{number % 200 + 1}", 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        for method, path in ways(GUARDED[number]):
            for token in (None, f"{TOKEN}x", ""):
                status, code = await Asking(gateway, session).status(method, path, token)
                assert (status, code) == (401, None if method == "HEAD" else "unauthorized"), (method, path)


@pytest.mark.parametrize("route", GUARDED, ids=name)
async def test_without_its_scope_it_is_403_and_with_it_it_is_answered(asking: Asking, route: Route) -> None:
    for scopes in SCOPE_SETS:
        for method, path in ways(route):
            status, code = await asking.status(method, path, asking.operators[scopes])
            if route.scope in scopes:
                assert status not in (401, 403), (method, path, scopes, code)
            else:
                assert (status, code) == (403, None if method == "HEAD" else "missing_scope"), (
                    method,
                    path,
                    scopes,
                )


@pytest.mark.parametrize("route", GUARDED, ids=name)
async def test_a_users_credential_is_for_users_routes_only(asking: Asking, route: Route) -> None:
    for scopes in SCOPE_SETS:
        for method, path in ways(route):
            token = asking.users[scopes]
            if (route.method, route.path) == ("DELETE", "/users"):  # which ends the tokens of whom it forgets
                token = (await create(asking.gateway, userId=f"leaver {path}", scopes=sorted(scopes)))[
                    "token"
                ]
            status, code = await asking.status(method, path, token)
            if route.audience == "operators":
                assert (status, code) == (403, None if method == "HEAD" else "forbidden"), (method, path)
            elif route.scope in scopes:
                assert status not in (401, 403), (method, path, scopes, code)
            else:
                assert (status, code) == (403, None if method == "HEAD" else "missing_scope"), (method, path)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.audience == "anyone"], ids=name)
async def test_what_is_open_is_answered_to_anyone(asking: Asking, route: Route) -> None:
    for method, path in ways(route):
        for token in (None, "wrong", TOKEN, asking.users[SCOPE_SETS[-1]]):
            status, _ = await asking.status(method, path, token)
            assert status not in (401, 403), (method, path)


async def test_a_path_that_is_not_there_is_told_to_whoever_may_know(asking: Asking) -> None:
    for method, path in (("GET", "/api/nothing"), ("GET", "/nothing"), ("PUT", "/api/route")):
        assert (await asking.status(method, path, None))[0] == 401
        for token in (TOKEN, asking.users[SCOPE_SETS[0]]):
            assert (await asking.status(method, path, token))[0] in (404, 405)
