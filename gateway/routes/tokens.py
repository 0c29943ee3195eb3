"""`/api/tokens`: make, list and revoke credentials; `/api/links`: one-time links by which a browser signs in."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote as url_quote

from aiohttp import web

from moltbot.core.errors import InvalidRequest, quote
from moltbot.core.units import parse_duration
from moltbot.gateway.access import ALL_SCOPES, USER_SCOPES, Route, Scope
from moltbot.gateway.bodies import json_response, read_object, to_json
from moltbot.gateway.credentials import LINK_SECONDS, Kept
from moltbot.gateway.problems import Refused
from moltbot.gateway.visit import VISIT

MIN_SECONDS = 1.0
MAX_SECONDS = 10 * 365 * 86_400.0


async def post_token(request: web.Request) -> web.Response:
    """Make a token; its text is in this answer and nowhere else."""
    fields = await read_object(request)
    _check_names(fields, {"userId", "operator", "scopes", "label", "expiresIn"})
    user_id = _whose(fields)
    scopes = fields.get("scopes")
    if scopes is None:
        if user_id is None:
            raise InvalidRequest("name the scopes of an operator's token: some of " + ", ".join(Scope))
        scopes = sorted(USER_SCOPES)
    _check_no_more(request, user_id, _texts(scopes))
    kept, text = await request[VISIT].edge.credentials.create(
        "token",
        user_id,
        _texts(scopes),
        label=fields.get("label", ""),
        seconds=_seconds(fields.get("expiresIn")),
    )
    request[VISIT].stored_body = to_json(_shown(kept, None)).encode()  # a secret is not kept for replaying
    return json_response(_shown(kept, text), status=201)


async def get_tokens(request: web.Request) -> web.Response:
    """All that are valid, without their secrets."""
    return json_response({"tokens": [kept.to_json() for kept in request[VISIT].edge.credentials.valid()]})


async def delete_token(request: web.Request) -> web.Response:
    """Revoke one now; what runs with it ends."""
    await request[VISIT].edge.credentials.revoke(request.match_info["token_id"])
    return json_response({"revoked": True})


async def post_link(request: web.Request) -> web.Response:
    """Make a one-time link; whoever opens it first is signed in, as the user or as an operator with these scopes."""
    fields = await read_object(request)
    _check_names(fields, {"userId", "operator", "scopes", "label"})
    user_id = _whose(fields)
    scopes = fields.get("scopes", sorted(ALL_SCOPES if user_id is None else USER_SCOPES))
    _check_no_more(request, user_id, _texts(scopes))
    kept, code = await request[VISIT].edge.credentials.create(
        "link", user_id, _texts(scopes), label=fields.get("label", ""), seconds=LINK_SECONDS
    )
    document = kept.to_json()
    request[VISIT].stored_body = to_json({**document, "path": None}).encode()
    return json_response({**document, "path": f"/login?code={url_quote(code)}"}, status=201)


def _shown(kept: Kept, text: str | None) -> dict[str, Any]:
    return {**kept.to_json(), "token": text}


def _whose(fields: dict[str, Any]) -> str | None:
    """The user, or None for an operator: one of them must be said, so that nobody makes an operator by omission."""
    user_id, operator = fields.get("userId"), fields.get("operator", False)
    if not isinstance(operator, bool) or (user_id is not None) == operator:
        raise InvalidRequest('say whose it is: {"userId": ID}, or {"operator": true} for an operator\'s')
    return user_id


def _check_no_more(request: web.Request, user_id: str | None, scopes: list[str]) -> None:
    """An operator's credential makes no stronger operator: it may be one that was given away for less."""
    missing = set(scopes) & ALL_SCOPES - request[VISIT].caller.scopes
    if user_id is None and missing:
        raise Refused(
            403,
            "missing_scope",
            f"this credential lacks the scope {min(missing)}, and so cannot give it",
        )


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidRequest(f"scopes must be a list of texts, not {quote(value)}")
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = parse_duration(value) / 1000
    except ValueError as error:
        raise InvalidRequest(f"expiresIn = {quote(value)} is impossible: {error}") from None
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InvalidRequest("expiresIn must be between a second and ten years")
    return seconds


def _check_names(fields: dict[str, Any], known: set[str]) -> None:
    for name in fields:
        if name not in known:
            raise InvalidRequest(f"unknown field {quote(name)}: there are {', '.join(sorted(known))}")


ROUTES = (
    Route("POST", "/tokens", post_token, Scope.ADMIN),
    Route("GET", "/tokens", get_tokens, Scope.ADMIN),
    Route("DELETE", "/tokens/{token_id}", delete_token, Scope.ADMIN),
    Route("POST", "/links", post_link, Scope.ADMIN),
)
