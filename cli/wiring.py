"""Puts the objects together that settings describe, and runs coroutines on the fastest loop there is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from moltbot.cli.settings import Settings
from moltbot.gateway.server import EdgeConfig, Gateway
from moltbot.router.gateway_router import create_gateway_router

T = TypeVar("T")


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


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end; on uvloop if it is installed (`pip install 'moltbot[speed]'`)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    result: T = uvloop.run(coroutine)
    return result
