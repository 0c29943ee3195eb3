"""A sticky-routing gateway with sandboxed per-worker subprocesses.

Only names live here, each loaded on first use: a worker process that writes `from moltbot import
handler` must not load the gateway's libraries. What is behind a name is in the package it comes from.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moltbot.core.errors import MoltbotError as MoltbotError
    from moltbot.core.messages import Chunk as Chunk
    from moltbot.core.messages import Event as Event
    from moltbot.core.messages import Reply as Reply
    from moltbot.core.messages import Request as Request
    from moltbot.core.messages import Usage as Usage
    from moltbot.router.gateway_router import GatewayRouter as GatewayRouter
    from moltbot.router.gateway_router import create_gateway_router as create_gateway_router
    from moltbot.worker.context import Context as Context
    from moltbot.worker.handlers import handler as handler
    from moltbot.worker.handlers import on_arrive as on_arrive
    from moltbot.worker.handlers import on_leave as on_leave
    from moltbot.worker.handlers import on_start as on_start
    from moltbot.worker.handlers import on_stop as on_stop

__version__ = "0.1.0"

_HOME = {
    "moltbot.core.messages": ("Request", "Reply", "Chunk", "Event", "Usage"),
    "moltbot.router.gateway_router": ("GatewayRouter", "create_gateway_router"),
    "moltbot.worker.context": ("Context",),
    "moltbot.worker.handlers": ("handler", "on_start", "on_stop", "on_arrive", "on_leave"),
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Chunk",
    "Context",
    "Event",
    "GatewayRouter",
    "MoltbotError",
    "Reply",
    "Request",
    "Usage",
    "create_gateway_router",
    "handler",
    "on_arrive",
    "on_leave",
    "on_start",
    "on_stop",
]

if not (Path(__file__).parent / "core" / "__init__.py").exists():
    raise ImportError(
        "moltbot's package links are missing (a ZIP download or git's core.symlinks=false loses them): "
        "run `pip install .` in the project's folder instead of `pip install -e .`"
    )


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is None and not name.startswith("_"):
        errors = import_module("moltbot.core.errors")
        if name in errors.__all__ and name[0].isupper():
            module = errors.__name__
    if module is None:
        raise AttributeError(f"module 'moltbot' has no attribute {name!r}")
    return getattr(import_module(module), name)
