"""Limits over HTTP: per credential and per user, what the headers say, and that a limited user disturbs nobody else.

The arithmetic is in `test_rates.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import LIMIT_ITEM, POLICY_ITEM, ask, create, request_body, route_as, token_of
from tests.support import TOKEN, Answer, gateway_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """So slow that no test sees a bucket fill again; the operator has made all tokens of a test before it begins."""
    edge = {"rate_limit_credential": "1000/d", "rate_limit_user": "5/d"}
    async with gateway_in(tmp_path_factory.mktemp("rates") / "base", edge=edge) as running:
        yield running


def told(answer: Answer, header: str) -> dict[str, tuple[int, int]]:
    pattern = LIMIT_ITEM if header == "RateLimit" else POLICY_ITEM
    found = [pattern.fullmatch(item) for item in answer.headers[header].split(", ")]
    assert None not in found
    return {match[1]: (int(match[2]), int(match[3])) for match in found if match is not None}


def check_refused(answer: Answer, name: str) -> None:
    document = answer.json
    answer.problem(429, "rate_limited")
    assert document["retryable"] is True
    wait = int(answer.headers["Retry-After"])
    assert 0 < document["retryAfter"] <= wait < document["retryAfter"] + 1
    assert told(answer, "RateLimit")[name] == (0, wait)


async def test_a_users_bucket_is_one_whoever_sends_for_the_user(limited: Gateway) -> None:
    ada, second, ben = [await token_of(limited, user) for user in ("ada", "ada", "ben")]
    for left, token in zip(range(4, -1, -1), (ada, TOKEN, second, TOKEN, ada), strict=True):
        answer = await route_as(limited, token, "echo", "ada")
        assert answer.status == 200
        assert told(answer, "RateLimit-Policy") == {"credential": (1000, 86_400), "user": (5, 86_400)}
        assert told(answer, "RateLimit")["user"][0] == left
    for token in (ada, second, TOKEN):
        check_refused(await route_as(limited, token, "echo", "ada"), "user")
    assert (
        await ask(limited, "GET", "/api/users?userId=ada", TOKEN)
    ).status == 200  # operators can still look
    check_refused(await ask(limited, "GET", "/api/users", ada), "user")
    check_refused(await route_as(limited, ada, "echo"), "user")
    assert (await route_as(limited, ben, "echo")).status == 200  # nobody else notices
    assert (await route_as(limited, TOKEN, "echo", "eve")).status == 200
    assert "user" not in told(await ask(limited, "GET", "/api/workers", TOKEN), "RateLimit")


async def test_every_request_of_a_user_counts_once_also_a_bad_one(limited: Gateway) -> None:
    token = await token_of(limited, "kim")
    lefts = []
    for method, path, body in (
        ("POST", "/api/route?userId=kim", request_body("echo", "kim")),
        ("POST", "/api/route", b"{"),
        ("POST", "/api/logout", b""),
        ("GET", "/api/users", b""),
    ):
        headers = {"Content-Type": "application/json"}
        answer = await ask(limited, method, path, token, data=body, headers=headers)
        lefts.append(told(answer, "RateLimit")["user"][0])
    assert lefts == [4, 3, 2, 1]


async def test_a_user_whom_an_operator_makes_a_token_for_has_not_come(limited: Gateway) -> None:
    for number in range(7):
        headers = {"Idempotency-Key": f"token-{number}"}
        answer = await ask(limited, "POST", "/api/tokens", TOKEN, json={"userId": "mia"}, headers=headers)
        assert answer.status == 201
        assert "user" not in told(answer, "RateLimit")


async def test_a_credentials_bucket_is_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    edge = {"rate_limit_credential": "4/d", "trusted_proxies": "127.0.0.7"}
    async with gateway_in(tmp_path_factory.mktemp("credentials") / "base", edge=edge) as gateway:
        first, second = await create(gateway, userId="ada"), await create(gateway, userId="ada")
        asked = [
            await route_as(gateway, first["token"], "echo"),
            await ask(gateway, "GET", "/api/nothing", first["token"]),
            await ask(gateway, "GET", "/api/tokens", first["token"]),
            await route_as(gateway, first["token"], "echo", "ben"),
        ]
        assert [answer.status for answer in asked] == [200, 404, 403, 403]
        assert [told(answer, "RateLimit")["credential"][0] for answer in asked] == [3, 2, 1, 0]
        for path in ("/api/users", "/api/nothing", "/api/tokens"):
            check_refused(await ask(gateway, "GET", path, first["token"]), "credential")
        assert (await route_as(gateway, second["token"], "echo")).status == 200
        for user in ("ada", "ben"):  # whom a proxy names has a bucket of their own too
            for left in range(3, -1, -1):
                answer = await route_as(
                    gateway, None, "echo", headers={"X-Forwarded-User": user}, address="127.0.0.7"
                )
                assert told(answer, "RateLimit")["credential"][0] == left
        for path in ("/livez", "/readyz", "/health"):
            assert (await ask(gateway, "GET", path, first["token"])).status == 200


async def test_without_limits_nothing_is_said_of_them(gateway: Gateway) -> None:
    answer = await route_as(gateway, TOKEN, "echo", "ada")
    assert answer.status == 200
    assert not [name for name in answer.headers if name.lower().startswith(("ratelimit", "retry-after"))]
