"""The handler that the benchmarks load: it gives back what it got and touches no state, so what is left is our own cost."""

from __future__ import annotations

from typing import Any

from moltbot import Context, handler


@handler("echo")
async def echo(ctx: Context, payload: Any) -> Any:
    return payload
