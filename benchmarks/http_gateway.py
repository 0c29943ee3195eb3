"""Our side of the HTTP rows: the gateway with three workers. `python -m benchmarks.http_gateway LOOP DIRECTORY`.

It takes a free port of the loopback interface and prints it and its token; it stops when its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.runner import loop_factory, running_config
from moltbot.core.collector import spare_requests
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import create_gateway_router


async def serve(base: Path) -> None:
    async with Gateway(create_gateway_router(running_config(base)), EdgeConfig(access_log=False)) as gateway:
        spare_requests()
        print(gateway.port, gateway.token, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve(Path(sys.argv[2])))
