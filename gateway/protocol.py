"""The HTTP protocol of one connection: what is not even HTTP gets a problem document too.

aiohttp would answer it with plain text and write a traceback for each such request into the operator's log. What is HTTP
passes the middleware of `app.py`, which answers every error itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from moltbot.core.errors import quote
from moltbot.gateway.problems import Refused, response_of

log = logging.getLogger("moltbot.gateway")


class Protocol(web.RequestHandler):
    """aiohttp's own, with our words for what it cannot read, and a bound for how many there are."""

    __slots__ = ("_max_connections", "_server")

    def __init__(self, server: web.Server, *, max_connections: int, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._max_connections = max_connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > self._max_connections:
            log.warning("refused a connection: %d are open, the most allowed", self._max_connections)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        why = (message or "").strip().split("\n")[0].rstrip(".: ")
        detail = f"this is not a valid HTTP request: {quote(why)}"
        log.info("%s sent what is %s", request.remote, detail)
        response = response_of(Refused(status, "bad_http", detail))
        response.force_close()
        return response
