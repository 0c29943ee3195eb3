"""Handlers and hooks: how an author names them, and the registry that holds them.

    @handler("agent")
    async def agent(ctx, payload): ...

A handler is a coroutine function, an async generator function (its items are streamed), or a plain function or generator
function (run in a thread). Hooks are plain or coroutine functions. How they are called is in `calls.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Handler = Callable[..., Any]
Hook = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])

HOOKS = ("on_start", "on_stop", "on_arrive", "on_leave")


@dataclass
class Registry:
    """The handlers of one worker by request type, and its hooks in order of registration."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    hooks: dict[str, list[Hook]] = field(default_factory=lambda: {name: [] for name in HOOKS})

    def add(self, kind: str, function: Handler) -> None:
        if not isinstance(kind, str) or not kind.isprintable() or not 0 < len(kind) <= 64:
            raise ValueError(
                f"a handler's type must be a printable string of 1 to 64 characters, not {kind!r}"
            )
        if not callable(function):
            raise TypeError(f"the handler of {kind!r} must be a function, not {type(function).__name__}")
        if kind in self.handlers:
            raise ValueError(f"two handlers are registered for type {kind!r}: keep one")
        self.handlers[kind] = function


registry = Registry()
"""What the decorators of this process fill; a worker process has one handler source, so one registry."""


def handler(kind: str) -> Callable[[F], F]:
    """Register the decorated function for requests of type `kind`; it is called with `(ctx, payload)`."""
    if not isinstance(kind, str):
        raise TypeError('write @handler("agent"), with the request type in brackets')

    def register(function: F) -> F:
        registry.add(kind, function)
        return function

    return register


def on_start(function: F) -> F:
    """Run once before the worker is ready, without arguments."""
    registry.hooks["on_start"].append(function)
    return function


def on_stop(function: F) -> F:
    """Run once when the worker stops in order (not when it is killed), without arguments."""
    registry.hooks["on_stop"].append(function)
    return function


def on_arrive(function: F) -> F:
    """Run with a `User` before that user's first request in this process."""
    registry.hooks["on_arrive"].append(function)
    return function


def on_leave(function: F) -> F:
    """Run with a `User` before that user is unloaded from this process; what it changes in `user.state` is saved."""
    registry.hooks["on_leave"].append(function)
    return function


async def run_hooks(hooks: list[Hook], *arguments: Any) -> None:
    """Call the hooks in order and await those that are coroutines; the first that raises ends it."""
    for hook in hooks:
        result = hook(*arguments)
        if inspect.isawaitable(result):
            await result
