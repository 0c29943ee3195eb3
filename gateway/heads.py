"""How large the head of a request may be, which heads are refused although they can be read, and the words for it.

What reads the bytes is in `protocol.py`; which names and origins are ours, in `origins.py`.
"""

from __future__ import annotations

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, InvalidURLError, LineTooLong
from multidict import istr

from moltbot.core.errors import quote
from moltbot.gateway.problems import Refused

MAX_TARGET_BYTES = 8 << 10
"""Of the address in a request's first line."""
MAX_HEADER_BYTES = (8 << 10) - 1
"""Of one header with its name; one less than a target's, for it is all that aiohttp's error tells the two by."""
MAX_HEADERS = 100
MAX_HEAD_BYTES = 64 << 10
"""Of a whole head: without it, a hundred headers are most of a megabyte that every silent connection may keep."""
SINGLE_HEADERS = (hdrs.AUTHORIZATION, hdrs.COOKIE, hdrs.CONTENT_TYPE, istr("Idempotency-Key"))
"""Given once or not at all; Host and Origin are checked in `origins.py`, the proxy's header in `auth.py`."""


def refusal_of(error: HttpProcessingError, message: str) -> Refused:
    """What the sender is told of bytes that the parser could not read."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_TARGET_BYTES:
            return Refused(
                414, "target_too_long", f"the address is over {MAX_TARGET_BYTES} bytes: shorten it"
            )
        return too_large("a header", MAX_HEADER_BYTES)
    if message.startswith("Too many headers"):
        return Refused(431, "headers_too_large", f"there are over {MAX_HEADERS} headers: send fewer")
    if isinstance(error, InvalidURLError):
        return Refused(400, "bad_http", "the address in the request is none: send a path that begins with /")
    if isinstance(error, ContentEncodingError):
        return Refused(
            415, "unsupported_encoding", "a body may be plain or packed by gzip or deflate: send it so"
        )
    why = message.strip().split("\n")[0].rstrip(".: ")
    return Refused(400, "bad_http", f"this is not a valid HTTP request: {quote(why)}")


def too_large(what: str, most: int) -> Refused:
    """The refusal of a head, or a part of one, that is over its bound."""
    return Refused(431, "headers_too_large", f"{what} may have {most} bytes: send less")


def check_head(request: web.BaseRequest) -> None:
    """Raise Refused for what aiohttp lets pass although readers of a head differ in what they make of it."""
    headers = request.headers
    for name in SINGLE_HEADERS:
        if name in headers and len(headers.getall(name)) > 1:
            raise Refused(400, "duplicate_header", f"the header {name} is given twice: give it once")
    if request.version not in (HttpVersion10, HttpVersion11):
        raise Refused(505, "bad_http", "this version of HTTP is not spoken here: use HTTP/1.1")
    coding = headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (coding.lower() != "chunked" or request.version < HttpVersion11):
        raise Refused(
            501 if request.version >= HttpVersion11 else 400,
            "bad_http",
            "Transfer-Encoding may only be chunked, and only in HTTP/1.1: send Content-Length",
        )
