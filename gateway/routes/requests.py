"""`POST /api/route`: run one request for one user; the answer is JSON, or a stream of server-sent events.

The stream's events are `chunk`, `event`, `usage`, and at last `reply` or `error`; the data of each is JSON. A client that
disconnects cancels its request.
"""

from __future__ import annotations

import contextlib
from typing import Any

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from moltbot.core.errors import MoltbotError
from moltbot.core.messages import Chunk, Event, Reply, Request, StreamItem, Usage
from moltbot.gateway.bodies import json_response, read_object, to_json
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.problems import problem_of


async def post_route(request: web.Request) -> web.StreamResponse:
    """Run the request in the body."""
    wanted = Request.from_mapping(await read_object(request))
    if "text/event-stream" in request.headers.get("Accept", ""):
        return await _stream(request, wanted)
    reply = await request.app[ROUTER].route(wanted)
    return json_response(reply.to_json())


async def _stream(request: web.Request, wanted: Request) -> web.StreamResponse:
    async with contextlib.aclosing(request.app[ROUTER].stream(wanted)) as items:
        first = await anext(items)  # what is refused before it begins gets a status of its own, not a stream
        response = EventSourceResponse(allow_all_methods=True)
        await response.prepare(request)
        async with response:
            try:
                await _send(response, first)
                async for item in items:
                    await _send(response, item)
            except MoltbotError as error:
                await response.send(to_json(problem_of(error)), event="error")
    return response


async def _send(response: EventSourceResponse, item: StreamItem) -> None:
    name, data = _event(item)
    await response.send(to_json(data), event=name)


def _event(item: StreamItem) -> tuple[str, Any]:
    match item:
        case Chunk(data):
            return "chunk", {"data": data}
        case Event(name, data):
            return "event", {"name": name, "data": data}
        case Usage(amounts):
            return "usage", dict(amounts)
        case Reply():
            return "reply", item.to_json()


def routes() -> list[web.RouteDef]:
    return [web.post("/route", post_route)]
