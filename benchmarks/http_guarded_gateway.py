"""The gateway with everything on: 64 users with a token each, both rate limits, the access log.

`python -m benchmarks.http_guarded_gateway LOOP DIRECTORY` takes a free port of the loopback interface and prints it and
the tokens, in the order of the users; it stops when its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.runner import loop_factory, running_config
from moltbot.client.http import GatewayClient
from moltbot.core.collector import spare_requests
from moltbot.core.units import Rate
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import create_gateway_router

USERS = 64
PLENTY = Rate(10_000_000, 1.0)


async def serve(base: Path) -> None:
    edge = EdgeConfig(port=0, rate_limit_credential=PLENTY, rate_limit_user=PLENTY)
    async with Gateway(create_gateway_router(running_config(base)), edge) as gateway:
        async with GatewayClient(gateway.url, gateway.token) as client:
            made = [await client.create_token(f"user-{index}", ["route"]) for index in range(USERS)]
        spare_requests()
        print(gateway.port, *(token["token"] for token in made), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve(Path(sys.argv[2])))
