"""Puts the objects together that settings describe."""

from __future__ import annotations

import os

from moltbot.cli.settings import Settings
from moltbot.gateway.server import EdgeConfig, Gateway
from moltbot.router.gateway_router import create_gateway_router


def build_gateway(settings: Settings) -> Gateway:
    """A gateway that is not started yet."""
    edge = EdgeConfig(
        host=settings.host,
        port=settings.port,
        allowed_hosts=settings.allowed_hosts,
        max_body=settings.max_body,
        token=os.environ.get("MOLTBOT_TOKEN"),
        token_file=settings.token_file,
    )
    return Gateway(create_gateway_router(settings.pool_config()), edge)
