"""The floor of the edge's rows: our router behind one aiohttp route that checks nothing and notes nothing.

`python -m benchmarks.http_bare_gateway LOOP DIRECTORY` takes a free port of the loopback interface and prints it; it stops
when its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

from benchmarks.runner import loop_factory, running_config
from moltbot.core.collector import spare_requests
from moltbot.core.messages import Request
from moltbot.router.gateway_router import create_gateway_router


async def serve(base: Path) -> None:
    async with create_gateway_router(running_config(base)) as router:

        async def route(request: web.Request) -> web.Response:
            reply = await router.route(Request.from_mapping(await request.json()))
            return web.json_response(reply.to_json())

        app = web.Application()
        app.add_routes([web.post("/api/route", route)])
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        spare_requests()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve(Path(sys.argv[2])))
