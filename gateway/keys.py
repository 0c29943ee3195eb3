"""Typed keys under which an application holds what its routes need."""

from __future__ import annotations

from aiohttp import web

from moltbot.gateway.auth import OperatorAuth
from moltbot.router.gateway_router import GatewayRouter

ROUTER = web.AppKey("router", GatewayRouter)
AUTH = web.AppKey("auth", OperatorAuth)
