"""User ids of every kind over HTTP: refused with one sentence, or a user of their own with files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moltbot.gateway.server import Gateway
from tests.support import call, post, raw, request_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

DISTINCT = {
    "dots": "..",
    "dot": ".",
    "parent": "../../worker-0",
    "slash": "a/b",
    "underscore": "a_b",
    "percent": "a%2fb",
    "backslash": "a\\b",
    "absolute": "/etc/passwd",
    "newline": "a\nb",
    "carriage return": "a\r\nb",
    "nul": "a\0b",
    "nul only": "\0",
    "space": " ",
    "spaces": "  ",
    "lower": "ada",
    "upper": "ADA",
    "capital": "Ada",
    "trailing space": "ada ",
    "trailing dot": "ada.",
    "emoji": "👩‍👩‍👧",
    "nfc": "caf\u00e9",
    "nfd": "cafe\u0301",
    "right to left": "\u202eada",
    "digits": "42",
    "option": "-rf",
    "device": "CON",
    "wildcard": "*",
    "quotes": "'\"`$(id)",
    "longest": "x" * 512,
    "longest but one": "x" * 511,
    "longest in characters": "é" * 256,
}


async def test_every_string_is_a_user_of_their_own(gateway: Gateway) -> None:
    for name, user_id in DISTINCT.items():
        for _ in range(2):
            answer = await post(gateway, "count", user_id)
            assert answer.status == 200, (name, answer.text)
            assert answer.json["userId"] == user_id
        assert answer.json["payload"] == 2, f"{name} is taken for somebody else"


async def test_every_user_has_directories_of_their_own_below_their_worker(gateway: Gateway) -> None:
    directories = {}
    for name, user_id in DISTINCT.items():
        told = (await post(gateway, "whoami", user_id)).json["payload"]
        assert told["user"] == user_id
        directories[name] = told["directory"]
    assert len({directory.lower() for directory in directories.values()}) == len(DISTINCT)
    root = gateway.router.config.sandbox_base_dir / "worker-0" / "state"
    # The worker may see its directories under other names than we do, but what it sees is what is there.
    assert len({Path(directory).parent for directory in directories.values()}) == 1
    assert {path.name for path in root.iterdir()} >= {Path(path).name for path in directories.values()}


async def test_every_user_is_found_by_their_id_in_the_query(gateway: Gateway) -> None:
    for user_id in DISTINCT.values():
        await post(gateway, "echo", user_id)
        answer = await call(gateway, "GET", "/api/users", params={"userId": user_id})
        assert answer.status == 200
        assert (answer.json["userId"], answer.json["workerId"]) == (user_id, "worker-0")


@pytest.mark.parametrize(
    ("user_id", "says"),
    [
        ("", "userId is empty"),
        ("x" * 513, "513 bytes"),
        ("é" * 257, "514 bytes"),
        (42, "must be a string, not int 42: put it in quotes"),
        (4.2, "put it in quotes"),
        (True, "put it in quotes"),
        (None, "userId is missing"),
        (["ada"], "must be a string, not list"),
        ({"id": "ada"}, "must be a string, not dict"),
        (1 << 70, "put it in quotes"),
    ],
)
async def test_what_is_no_user_id_is_refused(gateway: Gateway, user_id: Any, says: str) -> None:
    assert says in (await post(gateway, "echo", user_id)).problem(400, "invalid_request")


async def test_half_of_a_surrogate_pair_is_no_user_id(gateway: Gateway) -> None:
    body = b'{"type": "echo", "userId": "\\ud800", "payload": null}'
    assert "surrogate" in (await raw(gateway, request_bytes(body))).problem(400, "invalid_request")


async def test_a_missing_user_id_is_named(gateway: Gateway) -> None:
    answer = await call(gateway, "POST", "/api/route", json={"type": "echo"})
    assert "userId is missing" in answer.problem(400, "invalid_request")


async def test_a_user_given_twice_under_two_names_is_refused(gateway: Gateway) -> None:
    body = {"type": "echo", "userId": "ada", "user_id": "ben"}
    (await call(gateway, "POST", "/api/route", json=body)).problem(400, "invalid_request")


async def test_the_question_where_takes_one_user(gateway: Gateway) -> None:
    answer = await call(gateway, "GET", "/api/users?userId=a&userId=b")
    assert "name one user" in answer.problem(400, "invalid_request")


async def test_the_question_where_refuses_what_is_no_user_id(gateway: Gateway) -> None:
    (await call(gateway, "GET", "/api/users?userId=")).problem(400, "invalid_request")
    (await call(gateway, "GET", "/api/users", params={"userId": "x" * 513})).problem(400, "invalid_request")
    unknown = await call(gateway, "GET", "/api/users", params={"userId": "nobody\n"})
    assert "nobody\\n" in unknown.problem(404, "not_found")
    garbage = await raw(gateway, request_bytes(b"", target="GET /api/users?userId=%ff%fe%00"))
    garbage.problem(404, "not_found")


async def test_asking_where_a_stranger_lives_pins_nobody(gateway: Gateway) -> None:
    before = (await call(gateway, "GET", "/api/workers")).json["routingTableSize"]
    (await call(gateway, "GET", "/api/users", params={"userId": "a stranger"})).problem(404, "not_found")
    (await post(gateway, "", "another stranger")).problem(400, "invalid_request")
    assert (await call(gateway, "GET", "/api/workers")).json["routingTableSize"] == before


async def test_ids_in_json_may_be_escaped_in_any_way(gateway: Gateway) -> None:
    plain = json.dumps({"type": "whoami", "userId": "café"}, ensure_ascii=False).encode()
    escaped = json.dumps({"type": "whoami", "userId": "café"}, ensure_ascii=True).encode()
    told = [
        (await raw(gateway, request_bytes(body))).json["payload"]["directory"] for body in (plain, escaped)
    ]
    assert told[0] == told[1]
