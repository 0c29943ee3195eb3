"""A sticky-routing gateway with sandboxed per-worker subprocesses.

Only names live here, each loaded on first use: a worker process that writes `from moltbot import
handler` must not load the gateway's libraries. What is behind a name is in the package it comes from.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moltbot.core.errors import BaseDirectoryError as BaseDirectoryError
    from moltbot.core.errors import BootError as BootError
    from moltbot.core.errors import Cancelled as Cancelled
    from moltbot.core.errors import DatabaseDamaged as DatabaseDamaged
    from moltbot.core.errors import FrameError as FrameError
    from moltbot.core.errors import HandlerError as HandlerError
    from moltbot.core.errors import InvalidRequest as InvalidRequest
    from moltbot.core.errors import IsolationUnavailable as IsolationUnavailable
    from moltbot.core.errors import MoltbotError as MoltbotError
    from moltbot.core.errors import NotFound as NotFound
    from moltbot.core.errors import NotRunning as NotRunning
    from moltbot.core.errors import PortInUse as PortInUse
    from moltbot.core.errors import ProtocolError as ProtocolError
    from moltbot.core.errors import QueueFull as QueueFull
    from moltbot.core.errors import ReplyTooLarge as ReplyTooLarge
    from moltbot.core.errors import RequestTimeout as RequestTimeout
    from moltbot.core.errors import SettingsError as SettingsError
    from moltbot.core.errors import StartupError as StartupError
    from moltbot.core.errors import StorageFull as StorageFull
    from moltbot.core.errors import TooManyUsers as TooManyUsers
    from moltbot.core.errors import Unavailable as Unavailable
    from moltbot.core.errors import UnknownType as UnknownType
    from moltbot.core.errors import UserForgetting as UserForgetting
    from moltbot.core.errors import UserQueueFull as UserQueueFull
    from moltbot.core.errors import WorkerDied as WorkerDied
    from moltbot.core.errors import WorkerQuarantined as WorkerQuarantined
    from moltbot.core.errors import WorkersMissing as WorkersMissing
    from moltbot.core.messages import Chunk as Chunk
    from moltbot.core.messages import Event as Event
    from moltbot.core.messages import Reply as Reply
    from moltbot.core.messages import Request as Request
    from moltbot.core.messages import Usage as Usage
    from moltbot.router.gateway_router import GatewayRouter as GatewayRouter
    from moltbot.router.gateway_router import create_gateway_router as create_gateway_router
    from moltbot.worker.context import CancelledByCaller as CancelledByCaller
    from moltbot.worker.context import Context as Context
    from moltbot.worker.handlers import handler as handler
    from moltbot.worker.handlers import on_arrive as on_arrive
    from moltbot.worker.handlers import on_leave as on_leave
    from moltbot.worker.handlers import on_start as on_start
    from moltbot.worker.handlers import on_stop as on_stop
    from moltbot.worker.users import User as User

__version__ = "0.1.0"

_HOME = {
    "moltbot.core.errors": (
        "BaseDirectoryError",
        "BootError",
        "Cancelled",
        "DatabaseDamaged",
        "FrameError",
        "HandlerError",
        "InvalidRequest",
        "IsolationUnavailable",
        "MoltbotError",
        "NotFound",
        "NotRunning",
        "PortInUse",
        "ProtocolError",
        "QueueFull",
        "ReplyTooLarge",
        "RequestTimeout",
        "SettingsError",
        "StartupError",
        "StorageFull",
        "TooManyUsers",
        "Unavailable",
        "UnknownType",
        "UserForgetting",
        "UserQueueFull",
        "WorkerDied",
        "WorkerQuarantined",
        "WorkersMissing",
    ),
    "moltbot.core.messages": ("Request", "Reply", "Chunk", "Event", "Usage"),
    "moltbot.router.gateway_router": ("GatewayRouter", "create_gateway_router"),
    "moltbot.worker.context": ("CancelledByCaller", "Context"),
    "moltbot.worker.handlers": ("handler", "on_start", "on_stop", "on_arrive", "on_leave"),
    "moltbot.worker.users": ("User",),
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BaseDirectoryError",
    "BootError",
    "Cancelled",
    "CancelledByCaller",
    "Chunk",
    "Context",
    "DatabaseDamaged",
    "Event",
    "FrameError",
    "GatewayRouter",
    "HandlerError",
    "InvalidRequest",
    "IsolationUnavailable",
    "MoltbotError",
    "NotFound",
    "NotRunning",
    "PortInUse",
    "ProtocolError",
    "QueueFull",
    "Reply",
    "ReplyTooLarge",
    "Request",
    "RequestTimeout",
    "SettingsError",
    "StartupError",
    "StorageFull",
    "TooManyUsers",
    "Unavailable",
    "UnknownType",
    "Usage",
    "User",
    "UserForgetting",
    "UserQueueFull",
    "WorkerDied",
    "WorkerQuarantined",
    "WorkersMissing",
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

if not TYPE_CHECKING:  # a type checker would take it for the promise of any name

    def __getattr__(name: str) -> Any:
        module = _NAMES.get(name)
        if module is None:
            raise AttributeError(f"module 'moltbot' has no attribute {name!r}")
        return getattr(import_module(module), name)
