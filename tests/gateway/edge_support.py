"""What the tests of credentials share: asking as somebody, making tokens and links, and headers with their own spelling.

Gateways and whole calls as the operator are in `tests/support.py`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp

from moltbot.gateway.server import Gateway
from tests.support import TOKEN, Answer, call

EVENTS = {"Accept": "text/event-stream"}
LIMIT_ITEM = re.compile(r'"([a-z]+)";r=(0|[1-9][0-9]*);t=(0|[1-9][0-9]*)')
POLICY_ITEM = re.compile(r'"([a-z]+)";q=([1-9][0-9]*);w=([1-9][0-9]*)')


class Addressed(Protocol):
    """A gateway, here or in a process of its own."""

    @property
    def url(self) -> str: ...


async def ask(
    gateway: Addressed,
    method: str,
    path: str,
    token: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    address: str = "127.0.0.1",
    **options: Any,
) -> Answer:
    """One call with this token, or none; `address` (all of 127.0.0.0/8 is this machine) is where it comes from."""
    given = dict(headers or {})
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    if "json" in options:
        options["data"] = json.dumps(options.pop("json")).encode()
        given.setdefault("Content-Type", "application/json")
    if isinstance(options.get("data"), bytes):
        options["data"] = io.BytesIO(options["data"])  # aiohttp warns of large bodies in one piece
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with (
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.request(method, gateway.url + path, headers=given, allow_redirects=False, **options) as got,
    ):
        return Answer(got.status, got.headers, await got.text())


async def route_as(
    gateway: Addressed,
    token: str | None,
    kind: str,
    user_id: str | None = None,
    payload: Any = None,
    **rest: Any,
) -> Answer:
    """One `POST /api/route`; `headers` and `address` are those of `ask`, what else is given stands in the body."""
    options = {name: rest.pop(name) for name in ("headers", "address") if name in rest}
    body = {"type": kind, "payload": payload} | ({} if user_id is None else {"userId": user_id}) | rest
    return await ask(gateway, "POST", "/api/route", token, json=body, **options)


async def create(gateway: Gateway, **fields: Any) -> Any:
    """Make a token as the operator; returns the whole document."""
    answer = await call(gateway, "POST", "/api/tokens", json=fields)
    assert answer.status == 201, answer.text
    return answer.json


async def token_of(gateway: Gateway, user_id: str, **fields: Any) -> str:
    """The text of a new token of this user."""
    return str((await create(gateway, userId=user_id, **fields))["token"])


async def link_of(gateway: Gateway, **fields: Any) -> str:
    """The code of a new one-time link."""
    answer = await call(gateway, "POST", "/api/links", json=fields)
    assert answer.status == 201, answer.text
    assert answer.json["path"].startswith("/login?code=mbt_")
    return str(answer.json["path"].partition("=")[2])


async def sign_in(gateway: Gateway, code: str, **headers: str) -> Answer:
    """Send the form of the page behind a link."""
    return await ask(gateway, "POST", "/login", data={"code": code}, headers=headers)


def cookie_of(answer: Answer) -> str:
    """The cookie that an answer sets, as a browser sends it back."""
    return answer.headers["Set-Cookie"].partition(";")[0]


def spelled(target: str, body: bytes = b"", *headers: str, token: str | None = TOKEN) -> bytes:
    """An HTTP request in bytes; headers are written as they are given, as often as they are given."""
    lines = [f"{target} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def request_body(kind: str, user_id: str | None = None, payload: Any = None, **fields: Any) -> bytes:
    """The body of a `POST /api/route`."""
    named = {} if user_id is None else {"userId": user_id}
    return json.dumps({"type": kind, "payload": payload} | named | fields).encode()
