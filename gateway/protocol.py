"""The HTTP protocol of one connection: what is not even HTTP gets a problem document too, and what never ends is ended.

aiohttp would answer it with plain text and write a traceback for each such request into the operator's log. What is HTTP
passes the middleware of `edge.py`, which answers every error itself. The bounds of heads are in `heads.py`; readers that
take nothing, in `readers.py`; how many connections there may be, in `listening.py`; how long a body may take, in `bodies.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from moltbot.gateway.heads import (
    MAX_HEAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_TARGET_BYTES,
    refusal_of,
    too_large,
)
from moltbot.gateway.listening import Seat
from moltbot.gateway.problems import Refused, response_of
from moltbot.gateway.readers import Reader

LINGER_SECONDS = 5.0
"""How long the rest of a body that nobody wants is read, so that its sender sees the answer."""
_QUIET_SECONDS = 0.1
_SHORT_BYTES = 64 << 10

_Handler = Callable[[Any], Awaitable[web.StreamResponse]]

log = logging.getLogger("moltbot.gateway")


class Protocol(web.RequestHandler):
    """aiohttp's own, with our words for what it cannot read, and with an end for readers that take nothing."""

    __slots__ = (
        *("_body", "_dropped", "_head_bytes", "_linked", "_reader"),
        *("_refused", "_seat", "_send_timeout", "_working"),
    )

    def __init__(self, server: web.Server, seat: Seat, *, send_timeout: float, idle_seconds: float) -> None:
        """send_timeout: seconds in which a reader must take something; idle_seconds: those without a request."""
        options: dict[str, Any] = {"access_log": None}  # which aiohttp means, but does not declare
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=idle_seconds,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,  # it would unpack for whoever has no credential: see bodies.py
            **options,
        )
        self._seat = seat
        self._send_timeout = send_timeout
        self._linked: asyncio.Transport | None = None  # aiohttp forgets its own before all is sent
        self._reader: Reader | None = None
        self._working = False
        self._head_bytes = 0
        self._dropped = 0
        self._refused = False  # what came is no HTTP: nothing behind it is looked at
        self._body: StreamReader | None = None  # of the last request whose head has come

    # --- whether it is idle ---------------------------------------------------------------------------

    def work(self) -> None:
        """A request is under way from now on."""
        self._working = True
        self._head_bytes = 0
        self._seat.keep()

    def rest(self) -> None:
        """No request is under way, unless another came meanwhile."""
        self._working = bool(self._messages)
        if not self._working:
            self._seat.offer()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        length = resp.content_length
        short = length is not None and length <= _SHORT_BYTES
        if short:
            self._seat.offer()  # only who has a credential gets long answers: others keep no place by not reading
        try:
            result = await super().finish_response(request, resp, start_time)
        finally:
            self.rest()
        if not short and self._reader is not None:
            self._reader.wait()  # behind TLS, nobody is told how much of it still waits
        if self._refused:
            await self._read_rest()
        return result

    async def _read_rest(self) -> None:
        """Drop what still comes, for a moment: closing at once would reset the connection, and the answer with it."""
        self.close()
        if self._linked is not None and self._linked.can_write_eof():
            self._linked.write_eof()
        end = self._loop.time() + LINGER_SECONDS
        dropped = -1
        while self._linked is not None and self._dropped > dropped and self._loop.time() < end:
            dropped = self._dropped
            await asyncio.sleep(_QUIET_SECONDS)

    # --- its ends -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        linked = self._linked = cast(asyncio.Transport, transport)
        self._seat.abort = linked.abort
        self._reader = Reader(linked, self._send_timeout)
        # Told of every byte that waits: aiohttp waits for its reader only from time to time, and closing waits for ever.
        linked.set_write_buffer_limits(high=1, low=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._seat.leave()
        self._linked = None
        if self._reader is not None:
            self._reader.leave()
            self._reader = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader is not None:
            self._reader.wait()

    # --- what is not HTTP -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """May be called without data, by aiohttp, to have it read on in what it kept: that may be messages too."""
        body = self._body
        in_body = body is not None and not body.is_eof()
        super().data_received(data)
        if self._close:
            self._dropped += len(data)
        elif self._messages:
            newest = self._messages[-1][1]
            if newest is not body:
                if in_body and body is not None and not body.is_eof():  # it broke off: nobody else tells
                    body.set_exception(web.RequestPayloadError("the body broke off"))
                self._body = newest
            if not self._working:
                self.work()
        elif not in_body and not self._working:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._answer_last(too_large("all headers together", MAX_HEAD_BYTES))

    def _answer_last(self, refused: Refused) -> None:
        """Answer what is no request yet, read what its sender still sends for a moment, and close."""
        response = response_of(refused)
        body = response.body
        assert isinstance(body, bytes)
        assert self._linked is not None
        head = (
            f"HTTP/1.1 {refused.status} {response.reason}\r\nContent-Type: {response.content_type}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._linked.write(head.encode() + body)
        self.close()
        if self._linked.can_write_eof():
            self._linked.write_eof()
        self._loop.call_later(LINGER_SECONDS, self.force_close)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        refused = refusal_of(exc, message or "")
        # Anybody can bring this about as often as they like: it must not push what matters out of the log.
        log.debug("%s sent what is no valid HTTP request: %s", request.remote, refused.detail)
        response = response_of(refused)
        response.force_close()
        self._refused = True
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """What a body turned out to be after the answer was sent is its sender's affair."""
        if not isinstance(options.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **options)


def noting_work(handler: _Handler) -> _Handler:
    """The server's handler, so that a connection knows of its requests; what aiohttp refuses by itself is a problem too."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request.protocol, Protocol):
            request.protocol.work()
        try:
            return await handler(request)
        except web.HTTPException as error:  # before any middleware: an Expect that nobody knows
            if error.status == 417:
                return response_of(Refused(417, "bad_http", "Expect may only be 100-continue: leave it out"))
            return response_of(error)

    return handle
