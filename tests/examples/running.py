"""How the examples are run here: through a real router with real worker processes, in a directory of the test's own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moltbot import GatewayRouter, Reply, Request, create_gateway_router

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextlib.asynccontextmanager
async def router_with(tmp_path: Path, **settings: Any) -> AsyncIterator[GatewayRouter]:
    """A started router with one worker unless told otherwise."""
    values = {"worker_count": 1, "sandbox_base_dir": tmp_path / "workers", **settings}
    async with create_gateway_router(values) as router:
        yield router


async def say(router: GatewayRouter, user: str, text: str, **fields: Any) -> Reply:
    """One message to a user's agent."""
    return await router.route(Request("agent", user, {"message": text}, **fields))
