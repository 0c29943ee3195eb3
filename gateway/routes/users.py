"""`/api/users`: who is there and where they live, their data as an archive, and forgetting them.

Ids stand in the query, because paths collapse `..`. A user's own credential asks about that user only.
"""

from __future__ import annotations

import asyncio
from typing import IO

from aiohttp import web

from moltbot.core.errors import InvalidRequest, UserForgetting, quote
from moltbot.core.user_key import user_key
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.bodies import json_response, read_object
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.visit import VISIT

DEFAULT_LIMIT = 100
_PIECE = 256 << 10


async def get_users(request: web.Request) -> web.Response:
    """With a user: where they live, since when and why. Without, for operators: a page of all users."""
    visit, router = request[VISIT], request.app[ROUTER]
    user_id = visit.speak_for()
    if user_id is None:
        after, limit = request.query.get("after"), request.query.get("limit", str(DEFAULT_LIMIT))
        if not limit.isascii() or not limit.isdecimal() or len(limit) > 9:
            raise InvalidRequest(f"limit must be a number, not {quote(limit)}")
        return json_response((await router.list_users(after, int(limit))).to_json())
    receipt = router.where(user_id).to_json()
    if visit.caller.user_id is not None:
        del receipt["directories"]  # where they are on the machine is the operator's business
    return json_response(receipt)


async def get_export(request: web.Request) -> web.StreamResponse:
    """The user's state and sessions, and what is known of them, as a tar archive."""
    user_id = _one_user(request)
    async with request.app[ROUTER].export(user_id) as archive:
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/x-tar",
                "Content-Disposition": f'attachment; filename="{user_key(user_id).replace("%", "_")}.tar"',
            }
        )
        response.content_length = archive.size
        await response.prepare(request)
        await _send_file(response, archive.file)
        await response.write_eof()
    return response


async def delete_user(request: web.Request) -> web.Response:
    """Forget the user; 202 if that takes longer than a few seconds, and goes on."""
    claim = (await read_object(request)).get("userId") if request.can_read_body else None
    router, user_id = request.app[ROUTER], _one_user(request, claim)
    request[VISIT].edge.live.let_go(request[VISIT].caller)  # who forgets oneself ends this very credential
    try:
        await router.forget(user_id)
    except UserForgetting:
        return json_response({"forgotten": False}, status=202)
    return json_response({"forgotten": True})


def _one_user(request: web.Request, claim: object = None) -> str:
    user_id = request[VISIT].speak_for(claim)
    if user_id is None:
        raise InvalidRequest("name one user in the query: ?userId=ID")
    return user_id


async def _send_file(response: web.StreamResponse, file: IO[bytes]) -> None:
    """Send a file; a reader that takes nothing is let go by `readers.py`, which cancels this."""
    while piece := await asyncio.to_thread(file.read, _PIECE):
        await response.write(piece)


ROUTES = (
    Route("GET", "/users", get_users, Scope.READ, "users"),
    # The length of an archive is not known before it is made.
    Route("GET", "/users/export", get_export, Scope.READ, "users", head=False),
    # What is kept of the user's own requests goes with the user.
    Route("DELETE", "/users", delete_user, Scope.ADMIN, "users", outcome_of="caller"),
)
