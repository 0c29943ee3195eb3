"""Puts the edge together: the table of routes, and the one middleware that every request passes, see `edge.py`."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from moltbot.gateway.access import Route
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.edge import Edge
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.routes import log_level, login, operation, requests, tokens, users, workers
from moltbot.router.gateway_router import GatewayRouter

API_PREFIXES = ("/api", "/api/v1")
ROUTES: tuple[Route, ...] = (
    *operation.ROUTES,
    *requests.ROUTES,
    *workers.ROUTES,
    *users.ROUTES,
    *tokens.ROUTES,
    *login.ROUTES,
    *log_level.ROUTES,
)
"""Everything that can be asked of a gateway."""


def create_app(router: GatewayRouter, edge: Edge, config: EdgeConfig) -> web.Application:
    """Return the application. Starting and stopping what it is given is the caller's."""
    app = web.Application(middlewares=[edge.middleware], client_max_size=config.max_body)
    app[ROUTER] = router
    for route in ROUTES:
        for path in _paths(route):
            for method in ("GET", "HEAD") if route.method == "GET" and route.head else (route.method,):
                edge.routes[app.router.add_route(method, path, route.handler)] = route
    app.on_response_prepare.append(edge.prepare)
    return app


def _paths(route: Route) -> Iterable[str]:
    return [prefix + route.path for prefix in API_PREFIXES] if route.api else [route.path]
