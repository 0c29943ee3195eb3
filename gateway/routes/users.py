"""`GET /api/users?userId=`: where a user lives. Ids stand in the query, because paths collapse `..`."""

from __future__ import annotations

from aiohttp import web

from moltbot.core.errors import InvalidRequest
from moltbot.gateway.bodies import json_response
from moltbot.gateway.keys import ROUTER


async def get_user(request: web.Request) -> web.Response:
    """The user's receipt: worker, epoch, since when and why."""
    ids = request.query.getall("userId", [])
    if len(ids) != 1:
        raise InvalidRequest("name one user in the query: /api/users?userId=ID")
    return json_response(request.app[ROUTER].where(ids[0]).to_json())


def routes() -> list[web.RouteDef]:
    return [web.get("/users", get_user)]
