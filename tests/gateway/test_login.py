"""Signing in with a browser: a one-time link, the session cookie it becomes, and what other sites' pages may not do with it.

Host and Origin without a cookie are in `test_access.py`; races and a failing disk in `test_credentials.py`.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
import pytest_asyncio

from moltbot.gateway.credentials import SESSION_SECONDS
from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import (
    ask,
    cookie_of,
    link_of,
    request_body,
    route_as,
    sign_in,
    spelled,
    token_of,
)
from tests.support import TOKEN, call, gateway_in, raw

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOREIGN = ("http://evil.example", "null", "http://localhost", "https://localhost:1", "http://127.0.0.1:1", "")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cookie(gateway: Gateway) -> AsyncIterator[str]:
    """The session of ada."""
    yield cookie_of(await sign_in(gateway, await link_of(gateway, userId="ada")))


async def test_opening_a_link_uses_nothing_up(gateway: Gateway) -> None:
    code = await link_of(gateway, userId="ada")
    for method in ("GET", "HEAD", "GET"):
        answer = await ask(gateway, method, f"/login?code={code}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert "form-action 'self'" in answer.headers["Content-Security-Policy"]
    assert f'value="{code}"' in answer.text
    assert re.search('<form method="post" action="/login">', answer.text)
    assert (await sign_in(gateway, code)).status == 200


async def test_a_link_signs_in_once(gateway: Gateway) -> None:
    code = await link_of(gateway, userId="ada")
    first = await sign_in(gateway, code)
    assert first.status == 200
    assert "Signed in as ada." in first.text
    second = await sign_in(gateway, code)
    second.problem(403, "link_used")
    assert "Set-Cookie" not in second.headers
    assert code not in second.text


async def test_of_many_browsers_at_once_one_is_signed_in(gateway: Gateway) -> None:
    code = await link_of(gateway, userId="ada")
    answers = await asyncio.gather(*(sign_in(gateway, code) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [200] + [403] * 9


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(gateway: Gateway) -> None:
    answer = await sign_in(gateway, await link_of(gateway, userId="ada"))
    [(name, morsel)] = SimpleCookie(answer.headers["Set-Cookie"]).items()
    assert name == "moltbot-session"
    assert (morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, "Strict", "/")
    assert (morsel["domain"], morsel["max-age"]) == ("", str(int(SESSION_SECONDS)))
    assert not morsel["secure"]  # a browser would not send it back over plain http
    assert morsel.value not in answer.text


async def test_a_session_acts_as_its_user_only(gateway: Gateway, cookie: str) -> None:
    mine = {"Cookie": cookie}
    await route_as(gateway, TOKEN, "echo", "ada")
    assert (await ask(gateway, "GET", "/api/users?userId=ada", headers=mine)).json["userId"] == "ada"
    assert (await ask(gateway, "GET", "/api/users", headers=mine)).json["userId"] == "ada"
    (await ask(gateway, "GET", "/api/users?userId=ben", headers=mine)).problem(403, "another_user")
    (await ask(gateway, "GET", "/api/workers", headers=mine)).problem(403, "forbidden")
    (await ask(gateway, "GET", "/api/tokens", headers=mine)).problem(403, "forbidden")
    change = mine | {"Origin": gateway.url}
    assert (await route_as(gateway, None, "whoami", headers=change)).json["payload"]["user"] == "ada"
    (await route_as(gateway, None, "whoami", "ben", headers=change)).problem(403, "another_user")


async def test_an_operators_session_has_the_links_scopes(gateway: Gateway) -> None:
    code = await link_of(gateway, operator=True, scopes=["read"])
    answer = await sign_in(gateway, code)
    assert "Signed in as an operator." in answer.text
    mine = {"Cookie": cookie_of(answer), "Origin": gateway.url}
    assert (await ask(gateway, "GET", "/api/workers", headers=mine)).status == 200
    (await ask(gateway, "POST", "/api/tokens", headers=mine, json={})).problem(403, "missing_scope")


@pytest.mark.parametrize("origin", [None, *FOREIGN])
async def test_a_change_with_the_cookie_must_come_from_our_own_page(
    gateway: Gateway, cookie: str, origin: str | None
) -> None:
    headers = {"Cookie": cookie} | ({} if origin is None else {"Origin": origin})
    for method, path in (("POST", "/api/route"), ("POST", "/api/logout")):
        answer = await ask(gateway, method, path, headers=headers, json={"type": "echo"})
        answer.problem(403, "foreign_origin")
    own = {"Cookie": cookie, "Origin": gateway.url}
    assert (await route_as(gateway, None, "echo", headers=own)).status == 200
    own = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
    assert (await route_as(gateway, None, "echo", headers=own)).status == 200


@pytest.mark.parametrize("origin", FOREIGN)
async def test_another_sites_page_signs_nobody_in(gateway: Gateway, origin: str) -> None:
    code = await link_of(gateway, userId="mallory")
    (await sign_in(gateway, code, Origin=origin)).problem(403, "foreign_origin")
    assert (await sign_in(gateway, code, Origin=gateway.url)).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
async def test_what_a_browser_sends_for_another_page_is_refused(
    gateway: Gateway, cookie: str, site: str
) -> None:
    for credential in ({"Authorization": f"Bearer {TOKEN}"}, {"Cookie": cookie}, {}):
        for mode in ("cors", "no-cors", "navigate", "websocket"):
            headers = credential | {
                "Sec-Fetch-Site": site,
                "Sec-Fetch-Mode": mode,
                "Sec-Fetch-Dest": "document",
            }
            for path in ("/api/users?userId=ada", "/api/v1/users?userId=ada", "/nowhere"):
                (await ask(gateway, "GET", path, headers=headers)).problem(403, "foreign_origin")
            (await ask(gateway, "POST", "/login", headers=headers)).problem(403, "foreign_origin")
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await ask(gateway, "GET", "/login", headers=link)).status == 200
    for dest in ("iframe", "image", "empty"):
        (await ask(gateway, "GET", "/login", headers=link | {"Sec-Fetch-Dest": dest})).problem(
            403, "foreign_origin"
        )
    (await ask(gateway, "GET", "/login", headers=link | {"Sec-Fetch-Mode": "no-cors"})).problem(
        403, "foreign_origin"
    )


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_what_a_browser_sends_for_itself_or_our_page_is_answered(
    gateway: Gateway, cookie: str, site: str
) -> None:
    headers = {"Cookie": cookie, "Sec-Fetch-Site": site, "Origin": gateway.url}
    assert (await route_as(gateway, None, "echo", headers=headers)).status == 200


async def test_signing_out_ends_the_session(gateway: Gateway) -> None:
    answer = await sign_in(gateway, await link_of(gateway, userId="ada"))
    mine = {"Cookie": cookie_of(answer), "Origin": gateway.url}
    out = await ask(gateway, "POST", "/api/logout", headers=mine)
    assert (out.status, out.json) == (200, {"signedOut": True})
    [morsel] = SimpleCookie(out.headers["Set-Cookie"]).values()
    assert (morsel.value, morsel["max-age"], morsel["path"]) == ("", "0", "/")
    (await ask(gateway, "GET", "/api/users?userId=ada", headers=mine)).problem(401, "unauthorized")
    (await ask(gateway, "POST", "/api/logout", headers=mine)).problem(401, "unauthorized")


async def test_a_token_cannot_sign_out(gateway: Gateway) -> None:
    for token in (TOKEN, await token_of(gateway, "ada")):
        (await ask(gateway, "POST", "/api/logout", token)).problem(400, "invalid_request")


async def test_links_and_sessions_are_in_the_list_and_are_revoked_like_tokens(gateway: Gateway) -> None:
    made = (await call(gateway, "POST", "/api/links", json={"userId": "ada", "label": "phone"})).json
    assert {made["kind"], made["userId"], made["label"]} == {"link", "ada", "phone"}
    listed = {one["id"]: one for one in (await call(gateway, "GET", "/api/tokens")).json["tokens"]}
    assert listed[made["id"]]["kind"] == "link"
    await call(gateway, "DELETE", f"/api/tokens/{made['id']}")
    (await sign_in(gateway, made["path"].partition("=")[2])).problem(403, "link_used")
    cookie = cookie_of(await sign_in(gateway, await link_of(gateway, userId="ada")))
    assert (await ask(gateway, "GET", "/api/users", headers={"Cookie": cookie})).status == 200
    id = cookie.split("_")[1]
    assert (await call(gateway, "DELETE", f"/api/tokens/{id}")).json == {"revoked": True}
    (await ask(gateway, "GET", "/api/users", headers={"Cookie": cookie})).problem(401, "unauthorized")


@pytest.mark.parametrize(
    "user_id", ["<script>alert(1)</script>", "\"'><img src=x>", "{body}", "&amp;", "a\0b\n"]
)
async def test_a_name_is_text_on_the_page(gateway: Gateway, user_id: str) -> None:
    answer = await sign_in(gateway, await link_of(gateway, userId=user_id))
    assert f"Signed in as {html.escape(user_id)}." in answer.text
    assert "<script" not in answer.text
    assert "<img" not in answer.text


@pytest.mark.parametrize(
    "code", ['"><script>', "%22%3E%3Cscript%3E", "{code}", "%ff%fe", "%00", "%ed%a0%80", "x" * 5000]
)
async def test_a_code_is_text_on_the_page(gateway: Gateway, code: str) -> None:
    answer = await raw(gateway, spelled(f"GET /login?code={code}", token=None))
    assert answer.status in (200, 400)
    assert "<script" not in answer.text
    assert len(answer.text) < 3000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 403),
        (b"code=", 403),
        (b"code=%ff%00", 403),
        (b"code=" + b"x" * 4_000, 403),
        (b"code=" + b"x" * 5_000, 413),
        (b"code=a&code=b", 403),
        (b"x=1&" * 20, 400),
        (b"\xff=\xff", 400),
    ],
)
async def test_a_form_that_is_none_signs_nobody_in(gateway: Gateway, body: bytes, status: int) -> None:
    form = spelled("POST /login", body, token=None).replace(
        b"application/json", b"application/x-www-form-urlencoded"
    )
    assert (await raw(gateway, form)).status == status
    (await raw(gateway, spelled("POST /login", request_body("echo"), token=None))).problem(
        415, "unsupported_media_type"
    )


async def test_a_token_shown_beside_a_cookie_counts_alone(gateway: Gateway, cookie: str) -> None:
    headers = {"Cookie": cookie}
    assert (await route_as(gateway, TOKEN, "whoami", "ben", headers=headers)).status == 200
    (await ask(gateway, "GET", "/api/users", "wrong", headers=headers)).problem(401, "unauthorized")


@pytest.mark.parametrize(
    "line",
    ["moltbot-session", "moltbot-session=", "moltbot-session=;", "=;=", 'moltbot-session="', "\udcff=\udcfe"],
)
async def test_a_cookie_that_is_none_is_nothing(gateway: Gateway, line: str) -> None:
    answer = await raw(gateway, spelled("GET /api/users", b"", f"Cookie: {line}", token=None))
    answer.problem(401, "unauthorized")


async def test_a_link_and_a_session_end_by_themselves(tmp_path: Path) -> None:
    """Their lengths are tested with the time in the test's hand; here, that a restart does not lengthen them."""
    async with gateway_in(tmp_path / "base") as gateway:
        code = await link_of(gateway, userId="ada")
        before = (await call(gateway, "GET", "/api/tokens")).json
    async with gateway_in(tmp_path / "base") as gateway:
        assert (await call(gateway, "GET", "/api/tokens")).json == before
        assert (await sign_in(gateway, code)).status == 200
