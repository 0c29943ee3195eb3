"""`Idempotency-Key`: on every route that changes something, the same request is done once and answered alike.

What becomes of it when the gateway ends is in `test_idempotency_restart.py`; the table of answers by itself, with its bounds,
in `test_outcomes.py`; what ends with a credential in `test_revocation.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from moltbot.gateway.access import Route
from moltbot.gateway.app import API_PREFIXES, ROUTES
from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import ask, create, request_body, route_as, spelled, token_of
from tests.support import TOKEN, Answer, call, gateway_in, log_lines, logged, raw, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
CHANGING = [route for route in ROUTES if route.changes and route.audience != "anyone"]

BODIES: dict[tuple[str, str], tuple[dict[str, Any], int]] = {
    ("POST", "/route"): ({"type": "count", "userId": "every route"}, 200),
    ("POST", "/tokens"): ({"userId": "every route"}, 201),
    ("POST", "/links"): ({"userId": "every route"}, 201),
}
"""What a route is asked, and answers, so that something happens; a route that is not here is asked with nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("idempotency") / "stage")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def staged(place: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(place.parent / "base", max_queue_per_user=2) as running:
        yield running


def is_replay(answer: Answer) -> bool:
    return answer.headers.get(REPLAYED) == "true"


@pytest.mark.parametrize("route", CHANGING, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("prefix", API_PREFIXES)
async def test_every_changing_route_keeps_what_it_did_and_forgets_what_it_refused(
    staged: Gateway, route: Route, prefix: str
) -> None:
    """A new route is asked here by itself: whatever it answers, the second answer is a replay or the same refusal."""
    path = prefix + re.sub(r"\{[^}]*\}", "nothing-has-this-name", route.path)
    body, expected = BODIES.get((route.method, route.path), ({}, None))
    headers = {KEY: f"{route.method} {path}"}
    first, second = [
        await ask(staged, route.method, path, TOKEN, json=body, headers=headers) for _ in range(2)
    ]
    assert expected in (None, first.status)
    assert first.status == second.status
    assert not is_replay(first)
    assert is_replay(second) == (first.status < 400)
    if first.status >= 400:
        assert first.text == second.text
    other = await ask(staged, route.method, path, TOKEN, json=body | {"more": 1}, headers=headers)
    if first.status < 400:
        other.problem(409, "idempotency_key_reused")
    else:
        assert other.headers.get(REPLAYED) is None


async def test_the_same_request_is_done_once_and_answered_alike(staged: Gateway) -> None:
    answers = [await route_as(staged, TOKEN, "count", "ada", headers={KEY: "one"}) for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1
    assert [is_replay(answer) for answer in answers] == [False, True, True]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 3
    assert {answer.headers["Content-Type"] for answer in answers} == {"application/json"}
    again = await route_as(staged, TOKEN, "count", "ada", headers={KEY: "two"})
    assert again.json["payload"] == answers[0].json["payload"] + 1


async def test_another_request_under_the_same_key_is_refused(staged: Gateway) -> None:
    body = request_body("count", "ada")
    assert (await raw(staged, spelled("POST /api/route", body, f"{KEY}: taken"))).status == 200
    for target, other, headers in (
        ("POST /api/route", request_body("count", "ada", 1), ()),
        ("POST /api/route", body + b" ", ()),
        ("POST /api/v1/route", body, ()),
        ("POST /api/route?userId=ada", body, ()),
        ("POST /api/route", body, ("Accept: text/event-stream",)),
    ):
        answer = await raw(staged, spelled(target, other, f"{KEY}: taken", *headers))
        assert "use a new one" in answer.problem(409, "idempotency_key_reused")
        assert not answer.json["retryable"]
    assert is_replay(await raw(staged, spelled("POST /api/route", body, f"{KEY}: taken")))


async def test_what_is_under_way_is_told_and_not_done_again(staged: Gateway, place: Path) -> None:
    payload = {"stage": str(place), "n": 1, "until": "go 1"}
    headers = {KEY: "under way"}
    first = asyncio.create_task(route_as(staged, TOKEN, "hold", "ben", payload, headers=headers))
    await logged(place, "begin ben 1")
    second = await route_as(staged, TOKEN, "hold", "ben", payload, headers=headers)
    second.problem(409, "idempotency_unfinished")
    assert second.json["retryable"] is True
    assert int(second.headers["Retry-After"]) == 1
    other = await route_as(staged, TOKEN, "hold", "ben", {**payload, "n": 2}, headers=headers)
    other.problem(409, "idempotency_key_reused")
    (place / "go 1").touch()
    assert (await first).status == 200
    third = await route_as(staged, TOKEN, "hold", "ben", payload, headers=headers)
    assert (third.text, is_replay(third)) == ((await first).text, True)
    assert log_lines(place).count("begin ben 1") == 1


async def test_a_request_goes_on_without_its_client_and_the_next_try_finds_the_answer(
    staged: Gateway, place: Path
) -> None:
    payload = {"stage": str(place), "n": 3, "until": "go 3"}
    first = asyncio.create_task(route_as(staged, TOKEN, "hold", "cid", payload, headers={KEY: "left"}))
    await logged(place, "begin cid 3")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    other = await route_as(
        staged, TOKEN, "echo", "dan", headers={KEY: "left"}
    )  # the gateway has seen it leave
    assert other.status == 200
    (await route_as(staged, TOKEN, "hold", "cid", payload, headers={KEY: "left"})).problem(
        409, "idempotency_unfinished"
    )
    (place / "go 3").touch()
    await logged(place, "end cid 3")
    assert "cancelled cid 3" not in log_lines(place)
    answer = await answered(staged, "hold", "cid", payload, headers={KEY: "left"})
    assert (answer.status, is_replay(answer)) == (200, True)


async def answered(gateway: Gateway, *arguments: Any, **options: Any) -> Answer:
    """Send it again, as the answer asks, until it is no longer under way."""
    while True:
        answer = await route_as(gateway, TOKEN, *arguments, **options)
        if answer.status != 409 or answer.json["code"] != "idempotency_unfinished":
            return answer


async def test_a_hundred_at_once_run_once(staged: Gateway) -> None:
    before = (await route_as(staged, TOKEN, "count", "kim")).json["payload"]
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {TOKEN}", KEY: "many"}, connector=aiohttp.TCPConnector(limit=100)
    ) as session:

        async def one() -> tuple[int, str]:
            body = {"type": "count", "userId": "kim"}
            async with session.post(f"{staged.url}/api/route", json=body) as answer:
                return answer.status, await answer.text()

        answers = await asyncio.gather(*(one() for _ in range(100)))
    assert {status for status, _ in answers} <= {200, 409}
    assert {text for status, text in answers if status == 200}
    assert len({text for status, text in answers if status == 200}) == 1
    assert (await route_as(staged, TOKEN, "count", "kim")).json["payload"] == before + 2


async def test_users_do_not_meet_under_one_key(staged: Gateway) -> None:
    tokens = {user: await token_of(staged, user) for user in ("mia", "noa", "operator", "\0operator")}
    for user, token in tokens.items():
        answer = await route_as(staged, token, "whoami", headers={KEY: "ours"})
        assert (answer.json["userId"], is_replay(answer)) == (user, False)
    made = await call(staged, "POST", "/api/tokens", json={"userId": "mia"}, headers={KEY: "ours"})
    assert (made.status, is_replay(made)) == (201, False)
    for user, token in tokens.items():  # an operator who sends for a user stands where that user stands
        body = {"type": "whoami", "payload": None}
        answer = await ask(staged, "POST", "/api/route", token, json=body, headers={KEY: "ours"})
        assert (answer.json["userId"], is_replay(answer)) == (user, True)
    one, two = [await create(staged, operator=True, scopes=["admin"]) for _ in range(2)]
    for made in (one, two):  # two operators do not meet either
        answer = await ask(
            staged, "POST", "/api/tokens", made["token"], json={"userId": "mia"}, headers={KEY: "theirs"}
        )
        assert (answer.status, is_replay(answer)) == (201, False)


async def test_a_replay_is_for_whoever_may_ask(staged: Gateway) -> None:
    headers = {KEY: "whose"}
    assert (await route_as(staged, TOKEN, "echo", "oli", headers=headers)).status == 200
    for token in (await token_of(staged, "oli", scopes=["read"]), await token_of(staged, "pia")):
        assert (await route_as(staged, token, "echo", "oli", headers=headers)).status == 403
    (await route_as(staged, None, "echo", "oli", headers=headers)).problem(401, "unauthorized")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"type": "echo"}', 400),
        (b'{"type": "nothing", "userId": "ada"}', 400),
        (b'{"type": "echo", "userId": ""}', 400),
        (b'{"type": "echo", "userId": "ada", "more": 1}', 400),
    ],
)
async def test_what_was_refused_may_come_again_in_another_form(
    staged: Gateway, body: bytes, status: int
) -> None:
    key = f"{KEY}: refused {body.decode()}"
    assert (await raw(staged, spelled("POST /api/route", body, key))).status == status
    answer = await raw(staged, spelled("POST /api/route", request_body("echo", "ada"), key))
    assert (answer.status, is_replay(answer)) == (200, False)


async def test_a_full_queue_does_not_use_the_key_up(staged: Gateway, place: Path) -> None:
    payload = {"stage": str(place), "until": "go queue", "n": 9}
    held = [asyncio.create_task(route_as(staged, TOKEN, "hold", "quin", payload)) for _ in range(3)]
    await logged(place, "begin quin 9")
    while True:  # the two behind it are queued once one more is refused
        answer = await route_as(staged, TOKEN, "count", "quin", headers={KEY: "full"}, timeout=100)
        if answer.status == 429:
            break
    answer.problem(429, "user_queue_full")
    (place / "go queue").touch()
    await asyncio.gather(*held)
    answer = await route_as(staged, TOKEN, "count", "quin", headers={KEY: "full"})
    assert (answer.status, is_replay(answer)) == (200, False)


@pytest.mark.parametrize(
    ("kind", "payload", "status", "code"),
    [("die", None, 502, "worker_died"), ("story", {"fail": True}, 500, "handler_error")],
)
async def test_what_may_have_run_is_not_run_again(
    tmp_path: Path, kind: str, payload: Any, status: int, code: str
) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        answers = [
            await route_as(gateway, TOKEN, kind, "ada", payload, headers={KEY: "failed"}) for _ in range(2)
        ]
        for answer in answers:
            answer.problem(status, code)
        assert [is_replay(answer) for answer in answers] == [False, True]
        assert answers[0].text == answers[1].text


@pytest.mark.parametrize(
    "headers",
    [
        (f"{KEY}: ",),
        (f"{KEY}: {'x' * 256}",),
        (f"{KEY}: é",),
        (f"{KEY}: a\tb",),
        (f"{KEY}: \udcff",),
    ],
)
async def test_a_key_that_is_none_is_refused(staged: Gateway, headers: tuple[str, ...]) -> None:
    answer = await raw(staged, spelled("POST /api/route", request_body("count", "sam"), *headers))
    assert KEY in answer.problem(400, "invalid_request")


@pytest.mark.parametrize("second", ["a", "b", ""])
async def test_two_keys_are_none(staged: Gateway, second: str) -> None:
    body = request_body("count", "uli")
    answer = await raw(staged, spelled("POST /api/route", body, f"{KEY}: a", f"{KEY}: {second}"))
    assert answer.status == 400
    assert KEY in answer.json["detail"]


@pytest.mark.parametrize("key", ["x" * 255, " a ", "a b", '"quoted"', "'; DROP TABLE outcomes; --", "%00"])
async def test_any_printable_key_is_one(staged: Gateway, key: str) -> None:
    request = spelled("POST /api/route", request_body("echo", "tim", key), f"{KEY}: {key}")
    assert [is_replay(await raw(staged, request)) for _ in range(2)] == [False, True]


async def test_a_question_takes_no_key(staged: Gateway) -> None:
    for _ in range(2):
        answer = await ask(staged, "GET", "/api/workers", TOKEN, headers={KEY: "question"})
        assert (answer.status, is_replay(answer)) == (200, False)
