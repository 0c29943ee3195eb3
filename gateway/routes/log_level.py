"""`GET` and `PUT /api/log-level`: from which level on the pool's log takes records; a change holds until the gateway stops."""

from __future__ import annotations

import logging

from aiohttp import web

from moltbot.core.errors import InvalidRequest
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.bodies import json_response, read_object
from moltbot.gateway.keys import ROUTER

log = logging.getLogger("moltbot.gateway")


async def get_log_level(request: web.Request) -> web.Response:
    """The level in force."""
    return json_response({"level": request.app[ROUTER].log_level})


async def put_log_level(request: web.Request) -> web.Response:
    """Change the level at once; the body is `{"level": "debug"}`."""
    body = await read_object(request)
    if set(body) != {"level"}:
        raise InvalidRequest('the body must hold a level and nothing else, such as {"level": "debug"}')
    router = request.app[ROUTER]
    router.set_log_level(body["level"])
    log.warning("the level of this log is %s now", router.log_level)
    return json_response({"level": router.log_level})


ROUTES = (
    Route("GET", "/log-level", get_log_level, Scope.READ),
    Route("PUT", "/log-level", put_log_level, Scope.ADMIN),
)
