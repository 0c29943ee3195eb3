"""Tokens over HTTP: made, shown once, listed, revoked; whom a user's token speaks for; and what is no token.

What ends with a token is in `test_revocation.py`, races and a failing disk in `test_credentials.py`.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from moltbot.gateway.access import Scope
from moltbot.gateway.auth import FAILURES
from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import (
    ask,
    cookie_of,
    create,
    link_of,
    request_body,
    route_as,
    sign_in,
    spelled,
    token_of,
)
from tests.support import TOKEN, call, gateway_in, raw

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

OWN = ("x-request-id", "date")
"""Headers that differ from answer to answer."""
SHOWN = {"id", "kind", "userId", "scopes", "label", "createdAt", "expiresAt"}


async def test_a_token_is_shown_once(gateway: Gateway) -> None:
    made = await create(gateway, userId="ada", label="laptop", expiresIn="1h")
    assert made.keys() == SHOWN | {"token"}
    assert (made["kind"], made["userId"], made["label"]) == ("token", "ada", "laptop")
    assert sorted(made["scopes"]) == ["jobs", "read", "route"]
    assert made["token"].startswith(f"mbt_{made['id']}_")
    listed = (await call(gateway, "GET", "/api/tokens")).json["tokens"]
    [line] = [line for line in listed if line["id"] == made["id"]]
    assert line == {key: made[key] for key in SHOWN}
    assert made["token"].rpartition("_")[2] not in json.dumps(listed)


async def test_an_operators_token_has_the_scopes_that_are_named(gateway: Gateway) -> None:
    made = await create(gateway, operator=True, scopes=["read", "read"])
    assert (made["userId"], made["scopes"]) == (None, ["read"])
    assert (await ask(gateway, "GET", "/api/workers", made["token"])).status == 200
    (await ask(gateway, "POST", "/api/tokens", made["token"])).problem(403, "missing_scope")
    (await route_as(gateway, made["token"], "echo", "ada")).problem(403, "missing_scope")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "say whose it is"),
        ({"scopes": ["read"]}, "say whose it is"),
        ({"userId": "ada", "operator": True, "scopes": ["read"]}, "say whose it is"),
        ({"operator": False}, "say whose it is"),
        ({"operator": 1, "scopes": ["read"]}, "say whose it is"),
        ({"operator": "yes", "scopes": ["read"]}, "say whose it is"),
        ({"userId": None, "operator": False}, "say whose it is"),
        ({"operator": True}, "name the scopes"),
        ({"userId": ""}, "userId is empty"),
        ({"userId": 42}, "put it in quotes"),
        ({"userId": "x" * 513}, "513 bytes"),
        ({"userId": "\ud800"}, "surrogate"),
        ({"userId": "ada", "scopes": []}, "good for nothing"),
        ({"userId": "ada", "scopes": "read"}, "list of texts"),
        ({"userId": "ada", "scopes": [1]}, "list of texts"),
        ({"userId": "ada", "scopes": {"read": 1}}, "list of texts"),
        ({"userId": "ada", "scopes": ["Read"]}, "not a scope"),
        ({"userId": "ada", "scopes": ["read", "root"]}, "not a scope"),
        ({"userId": "ada", "label": "x" * 101}, "label"),
        ({"userId": "ada", "label": "a\nb"}, "label"),
        ({"userId": "ada", "label": "\ud800"}, "label"),
        ({"userId": "ada", "label": 1}, "label"),
        ({"userId": "ada", "label": None}, "label"),
        ({"userId": "ada", "expiresIn": 0}, "expiresIn"),
        ({"userId": "ada", "expiresIn": -1}, "expiresIn"),
        ({"userId": "ada", "expiresIn": "soon"}, "expiresIn"),
        ({"userId": "ada", "expiresIn": True}, "expiresIn"),
        ({"userId": "ada", "expiresIn": []}, "expiresIn"),
        ({"userId": "ada", "expiresIn": 1e300}, "expiresIn"),
        ({"userId": "ada", "expiresIn": "36500000d"}, "expiresIn"),
        ({"userId": "ada", "expires": "1h"}, "unknown field"),
        ({"user_id": "ada"}, "unknown field"),
    ],
)
async def test_what_cannot_be_a_token_is_refused(gateway: Gateway, fields: dict[str, Any], says: str) -> None:
    before = (await call(gateway, "GET", "/api/tokens")).json
    answer = await call(gateway, "POST", "/api/tokens", json=fields)
    assert says in answer.problem(400, "invalid_request")
    assert (await call(gateway, "GET", "/api/tokens")).json == before


@pytest.mark.parametrize("label", ["", "x" * 100, "☎ phone", "ü" * 100, "<b>", "'; DROP TABLE tokens; --"])
async def test_a_label_is_text_within_its_bound(gateway: Gateway, label: str) -> None:
    assert (await create(gateway, userId="ada", label=label))["label"] == label


async def test_what_is_nearly_a_token_is_none(gateway: Gateway) -> None:
    token = await token_of(gateway, "ada")
    other = await token_of(gateway, "ben")
    prefix, id, secret = token.split("_", 2)
    wrong = [
        token[:-1],
        token + "A",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        token.upper(),
        f"{prefix}_{id}_",
        f"{prefix}_{id}",
        f"{prefix}__{secret}",
        f"_{id}_{secret}",
        f"xyz_{id}_{secret}",
        f"{prefix}_{other.split('_')[1]}_{secret}",
        secret,
        id,
        f"{token} {token}",
        f"{token}, Bearer {token}",
        token + "%00",
        token + "x" * 300,
        "mbt_" + "x" * 6000,
    ]
    for number, text in enumerate(wrong):
        answer = await ask(gateway, "GET", "/api/users?userId=ada", text, address=f"127.2.0.{number + 1}")
        answer.problem(401, "unauthorized")
        assert secret not in answer.text


async def test_a_token_counts_in_one_place_only(gateway: Gateway) -> None:
    token = await token_of(gateway, "ada")
    body = request_body("echo", "ada")
    assert (await raw(gateway, spelled("POST /api/route", body, token=token))).status == 200
    twice = spelled("POST /api/route", body, f"Authorization: Bearer {token}", token=token)
    assert (await raw(gateway, twice)).status in (400, 401)
    for target in (f"POST /api/route?token={token}", f"POST /api/route?access_token={token}"):
        (await raw(gateway, spelled(target, body, token=None))).problem(401, "unauthorized")
    for header in (
        f"Authorization: Basic {token}",
        f"Authorization: {token}",
        f"X-Api-Key: {token}",
        f"Cookie: moltbot-session={token}",
        f"Proxy-Authorization: Bearer {token}",
    ):
        (await raw(gateway, spelled("POST /api/route", body, header, token=None))).problem(
            401, "unauthorized"
        )
    inside = request_body("echo", "ada", meta={"authorization": f"Bearer {token}"}, token=token)
    (await raw(gateway, spelled("POST /api/route", inside, token=None))).problem(401, "unauthorized")


async def test_each_kind_of_credential_is_good_in_its_own_place_only(gateway: Gateway) -> None:
    token = await token_of(gateway, "ada")
    link = await link_of(gateway, userId="ada")
    session = cookie_of(await sign_in(gateway, await link_of(gateway, userId="ada"))).partition("=")[2]
    path = "/api/users?userId=ada"
    for wrong in (link, session):
        (await ask(gateway, "GET", path, wrong)).problem(401, "unauthorized")
    for wrong in (link, token, TOKEN):
        answer = await ask(gateway, "GET", path, headers={"Cookie": f"moltbot-session={wrong}"})
        answer.problem(401, "unauthorized")
    for wrong in (token, session, TOKEN, ""):
        (await sign_in(gateway, wrong)).problem(403, "link_used")
    assert (await sign_in(gateway, link)).status == 200  # nothing of all this used it up


async def test_whose_request_it_is_by_all_that_says_it(gateway: Gateway) -> None:
    """Token, query, header and body, in every combination: agreeing they are answered, disagreeing never."""
    token = await token_of(gateway, "ada")
    for query, header, body in itertools.product((None, "ada", "ben"), repeat=3):
        target = "POST /api/route" + ("" if query is None else f"?userId={query}")
        headers = [] if header is None else [f"X-Forwarded-User: {header}"]
        request = request_body("whoami", body)
        answer = await raw(gateway, spelled(target, request, *headers, token=token))
        if "ben" in (query, header, body):
            answer.problem(403, "another_user")
        else:
            assert (answer.status, answer.json["payload"]["user"]) == (200, "ada")
        answer = await raw(
            gateway, spelled(target, request, *headers)
        )  # an operator names one, no matter where
        named = {query, header, body} - {None}
        assert answer.status == (200 if len(named) == 1 else 400), (query, header, body, answer.text)
        if answer.status == 200:
            assert answer.json["payload"]["user"] == named.pop()
    for target in ("POST /api/route?userId=ada&userId=ben", "GET /api/users?userId=ben&userId=ada"):
        (await raw(gateway, spelled(target, b"{}", token=token))).problem(403, "another_user")


@pytest.mark.parametrize("user_id", ["", "ADA", "ada ", " ada", "a\u0064a\u0000", 0, False, [], {}, ["ada"]])
async def test_what_is_not_exactly_the_tokens_user_is_another(gateway: Gateway, user_id: Any) -> None:
    token = await token_of(gateway, "ada")
    for key in ("userId", "user_id"):
        body = {"type": "echo", "payload": 1, key: user_id}
        (await ask(gateway, "POST", "/api/route", token, json=body)).problem(403, "another_user")


async def test_a_body_that_names_two_users_is_refused(gateway: Gateway) -> None:
    token = await token_of(gateway, "ada")
    for one, two in itertools.permutations(("ada", "ben", None), 2):
        body = {"type": "whoami", "userId": one, "user_id": two}
        assert (await ask(gateway, "POST", "/api/route", token, json=body)).status in (400, 403)
    twice = b'{"type": "whoami", "userId": "ada", "userId": "ben"}'
    assert (await raw(gateway, spelled("POST /api/route", twice, token=token))).status == 400


async def test_a_stranger_and_a_foreign_user_are_told_alike(gateway: Gateway) -> None:
    token = await token_of(gateway, "ada")
    assert (await route_as(gateway, TOKEN, "echo", "a resident")).status == 200
    for method, path in (("GET", "/api/users?userId={}"), ("POST", "/api/route?userId={}")):
        told = [
            await ask(gateway, method, path.format(user_id), token, json={"type": "echo"})
            for user_id in ("a resident", "a stranger")
        ]
        assert told[0].text == told[1].text
        heads = [
            {name: value for name, value in found.headers.items() if name.lower() not in OWN}
            for found in told
        ]
        assert heads[0] == heads[1]
        told[0].problem(403, "another_user")
    before = (await call(gateway, "GET", "/api/workers")).json["routingTableSize"]
    await route_as(gateway, token, "echo", "another stranger")
    assert (await call(gateway, "GET", "/api/workers")).json["routingTableSize"] == before


@pytest.mark.parametrize("user_id", ["operator", "proxy", "\0operator", "mbt_x_y", "\n", "👩‍👩‍👧", "x" * 512])
async def test_a_token_for_any_name_speaks_for_that_user_only(gateway: Gateway, user_id: str) -> None:
    token = await token_of(gateway, user_id, scopes=[str(scope) for scope in Scope])
    assert (await route_as(gateway, token, "whoami")).json["payload"]["user"] == user_id
    (await route_as(gateway, token, "whoami", "ada")).problem(403, "another_user")
    (await ask(gateway, "GET", "/api/tokens", token)).problem(403, "forbidden")


async def test_too_many_failures_shut_out_nobody_with_a_credential(gateway: Gateway) -> None:
    address, token = "127.3.0.1", await token_of(gateway, "ada")
    for _ in range(FAILURES.amount):
        (await route_as(gateway, "wrong", "echo", address=address)).problem(401, "unauthorized")
    for wrong in (None, "wrong", TOKEN[:-1]):
        answer = await route_as(gateway, wrong, "echo", address=address)
        answer.problem(429, "too_many_failures")
        assert 0 < int(answer.headers["Retry-After"]) <= FAILURES.seconds
    assert (await route_as(gateway, token, "echo", address=address)).status == 200
    assert (await route_as(gateway, TOKEN, "echo", "ben", address=address)).status == 200
    (await route_as(gateway, "wrong", "echo", address="127.3.0.2")).problem(401, "unauthorized")


async def test_the_tokens_outlive_the_gateway_and_their_secrets_are_nowhere(tmp_path: Path) -> None:
    base = tmp_path / "base"
    async with gateway_in(base) as gateway:
        kept = await create(gateway, userId="ada", label="kept")
        gone = await token_of(gateway, "ada")
        id = gone.split("_")[1]
        assert (await call(gateway, "DELETE", f"/api/tokens/{id}")).json == {"revoked": True}
        link = await link_of(gateway, operator=True)
        cookie = cookie_of(await sign_in(gateway, await link_of(gateway, userId="ben")))
        assert (await route_as(gateway, kept["token"], "echo")).status == 200
        secrets = [text.split("_", 2)[2] for text in (kept["token"], gone, link, cookie)]
        assert find_bytes(base, secrets) == []
        listed = (await call(gateway, "GET", "/api/tokens")).json
    assert find_bytes(base, secrets) == []
    assert find_bytes(base, [kept["id"]]) != []  # the search finds what is there
    async with gateway_in(base) as gateway:
        assert (await call(gateway, "GET", "/api/tokens")).json == listed
        assert (await route_as(gateway, kept["token"], "whoami")).json["payload"]["user"] == "ada"
        (await route_as(gateway, gone, "echo")).problem(401, "unauthorized")
        assert (await ask(gateway, "GET", "/api/users?userId=ben", headers={"Cookie": cookie})).status in (
            200,
            404,
        )
        assert (await sign_in(gateway, link)).status == 200


def find_bytes(base: Path, secrets: list[str]) -> list[Path]:
    """The files below `base` in which one of the secrets stands."""
    needles = [secret.encode() for secret in secrets]
    return [
        path
        for path in base.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]
