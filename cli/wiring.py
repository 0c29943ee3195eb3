"""Puts the objects together that settings describe."""

from __future__ import annotations

import os

from moltbot.cli.settings import Settings
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import create_gateway_router


def build_gateway(settings: Settings) -> Gateway:
    """A gateway that is not started yet."""
    router = create_gateway_router(settings.pool_config())
    return Gateway(router, settings.edge_config(), token=os.environ.get("MOLTBOT_TOKEN"))
