"""The floor of the HTTP rows: a bare aiohttp process that answers a JSON echo. `python -m benchmarks.http_echo asyncio`.

It takes a free port of the loopback interface and prints it. Not part of the product.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

from benchmarks.runner import loop_factory


async def echo(request: web.Request) -> web.Response:
    body = await request.json()
    return web.json_response({"success": True, "userId": body["userId"], "payload": body["payload"]})


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/api/route", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started this is gone
    await runner.cleanup()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(serve())
