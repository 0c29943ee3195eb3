"""The handlers of a worker that was given no code: enough to see routing, streaming and per-user state work.

`agent` keeps a real conversation on disk and answers from it; `command`, `session` and `health` show and change what is
kept. A handler file replaces all of them but `health`.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Any

from moltbot.core.errors import InvalidRequest, quote
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry

registry = Registry()
_STARTED = time.monotonic()


async def agent(ctx: Context, payload: Any) -> AsyncIterator[str]:
    """Answer `{"message": text}`, streamed word by word, and remember both sides of the conversation."""
    message = payload if isinstance(payload, str) else _field(payload, "message")
    turn = ctx.state["turns"] = ctx.state.get("turns", 0) + 1
    ctx.session.append({"role": "user", "content": message})
    words = f"{ctx.worker_id} here, turn {turn} with you. You said: {message}".split(" ")
    for index, word in enumerate(words):
        yield word if index == 0 else " " + word
    ctx.session.append({"role": "assistant", "content": " ".join(words)})
    ctx.report_usage(input_words=len(message.split()), output_words=len(words))


async def command(ctx: Context, payload: Any) -> Any:
    """Run `{"command": "whoami" | "history" | "reset"}`."""
    match name := _field(payload, "command"):
        case "whoami":
            return {"userId": ctx.user_id, "workerId": ctx.worker_id, "epoch": ctx.epoch, "pid": os.getpid()}
        case "history":
            return ctx.session.read()
        case "reset":
            ctx.session.clear()
            ctx.state.clear()
            return {"reset": True}
    raise InvalidRequest(f"unknown command {quote(name)}: there is whoami, history and reset")


async def session(ctx: Context, payload: Any) -> Any:
    """Keep values: `{"op": "get" | "set" | "delete" | "list", "key": text, "value": any}`."""
    operation = _field(payload, "op")
    values: dict[str, Any] = ctx.state.setdefault("session", {})
    if operation == "list":
        return sorted(values)
    key = _field(payload, "key")
    match operation:
        case "get":
            return values.get(key)
        case "set":
            values[key] = payload.get("value")
            return {"set": key}
        case "delete":
            return {"deleted": values.pop(key, None) is not None}
    raise InvalidRequest(f"unknown op {quote(operation)}: there is get, set, delete and list")


async def health(ctx: Context, payload: Any) -> Any:
    """Tell that this worker answers."""
    return {"ok": True, "workerId": ctx.worker_id, "uptime": round((time.monotonic() - _STARTED) * 1000)}


def _field(payload: Any, name: str) -> str:
    value = payload.get(name) if isinstance(payload, dict) else None
    if not isinstance(value, str):
        raise InvalidRequest(f'payload.{name} is missing: send {{"{name}": "some text"}}')
    return value


for function in (agent, command, session, health):
    registry.add(function.__name__, function)
