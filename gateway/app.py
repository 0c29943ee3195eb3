"""Puts the edge together: routes, and the one middleware that every request passes.

Order of the checks: Host and Origin, then the credential, then the route. Every error leaves as problem+json. Probes come
with whatever Host their prober knows, usually an address, and learn one word: they pass without these checks.
"""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from moltbot.core.errors import MoltbotError
from moltbot.gateway.auth import OperatorAuth
from moltbot.gateway.keys import AUTH, ROUTER
from moltbot.gateway.origins import Origins
from moltbot.gateway.problems import Refused, response_of
from moltbot.gateway.routes import operation, requests, users, workers
from moltbot.router.gateway_router import GatewayRouter

API_PREFIXES = ("/api", "/api/v1")

log = logging.getLogger("moltbot.gateway")


def create_app(
    router: GatewayRouter, *, auth: OperatorAuth, origins: Origins, max_body: int
) -> web.Application:
    """Return the application; `max_body`: bytes of a request's body. Starting and stopping `router` is the caller's."""
    app = web.Application(middlewares=[_edge(auth, origins)], client_max_size=max_body)
    app[ROUTER], app[AUTH] = router, auth
    app.add_routes(operation.routes())
    for prefix in API_PREFIXES:
        routes = (*requests.routes(), *workers.routes(), *users.routes())
        app.add_routes([web.route(r.method, prefix + r.path, r.handler, **r.kwargs) for r in routes])
    app.on_response_prepare.append(_security_headers)
    return app


def _edge(auth: OperatorAuth, origins: Origins) -> Middleware:
    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in operation.PROBES:
                origins.check(request)
            if request.path not in operation.PUBLIC_PATHS:
                auth.require(request)
            return await handler(request)
        except (MoltbotError, Refused, web.HTTPException) as error:
            return response_of(error)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            return response_of(error)

    return edge


async def _security_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.pop("Server", None)
