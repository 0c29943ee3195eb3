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
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.bodies import json_response, read_object, to_json
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.problems import problem_of
from moltbot.gateway.visit import VISIT, Visit


async def post_route(request: web.Request) -> web.StreamResponse:
    """Run the request in the body; for a user's credential the body need not name the user."""
    visit = request[VISIT]
    fields = await read_object(request)
    user_id = visit.speak_for(fields.get("userId", fields.get("user_id")))
    if user_id is not None and "user_id" not in fields:
        fields["userId"] = user_id
    wanted = Request.from_mapping(fields if "id" in fields else {**fields, "id": visit.id})
    if "text/event-stream" in request.headers.get("Accept", ""):
        return await _stream(request, wanted)
    reply = await request.app[ROUTER].route(wanted)
    visit.worker_id, visit.incarnation = reply.worker_id, reply.incarnation
    return json_response(reply.to_json())


async def _stream(request: web.Request, wanted: Request) -> web.StreamResponse:
    visit = request[VISIT]
    async with contextlib.aclosing(request.app[ROUTER].stream(wanted)) as items:
        first = await anext(items)  # what is refused before it begins gets a status of its own, not a stream
        # A reader that takes nothing is let go by its connection, see `protocol.py`: its request is then cancelled.
        response = EventSourceResponse(allow_all_methods=True, send_timeout=None)
        await response.prepare(request)
        async with response:
            try:
                await _send(response, visit, *_event(first))
                async for item in items:
                    if isinstance(item, Reply):
                        visit.worker_id, visit.incarnation = item.worker_id, item.incarnation
                    await _send(response, visit, *_event(item))
            except MoltbotError as error:
                visit.code = error.code
                await _send(response, visit, "error", problem_of(error))
    return response


async def _send(response: EventSourceResponse, visit: Visit, name: str, data: Any) -> None:
    """Send one event, and keep it if the stream may be replayed."""
    text = to_json(data)
    visit.record(f"event: {name}\r\ndata: {text}\r\n\r\n".encode())
    await response.send(text, event=name)


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


ROUTES = (Route("POST", "/route", post_route, Scope.ROUTE, "users"),)
