"""The typed key under which the application holds the router; what a route needs of the edge comes with its `Visit`."""

from __future__ import annotations

from aiohttp import web

from moltbot.router.gateway_router import GatewayRouter

ROUTER = web.AppKey("router", GatewayRouter)
