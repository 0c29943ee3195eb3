"""JSON in and out, strictly: what is not JSON is refused with one sentence, and never becomes half a request."""

from __future__ import annotations

import asyncio
import json
import math
import zlib
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.hdrs import CONTENT_ENCODING, CONTENT_TYPE

from moltbot.core.errors import HandlerError, InvalidRequest, quote
from moltbot.gateway.problems import Refused
from moltbot.gateway.protocol import Protocol
from moltbot.gateway.visit import VISIT

_MAX_FORM_FIELDS = 10
MAX_FORM_BYTES = 4 << 10
MAX_BODIES_BYTES = 256 << 20
UNCOUNTED_BYTES = 16 << 10
_PLAIN = frozenset({"", "identity"})
_ENCODINGS = _PLAIN | {"gzip", "deflate"}


class BodyRoom:
    """Memory for the bodies of all requests under way, in bytes; small ones are not counted."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, size: int) -> int:
        """Take room for a body and return how much; raises Refused (503) if there is none."""
        if size <= UNCOUNTED_BYTES:
            return 0
        if self.taken + size > MAX_BODIES_BYTES:
            raise Refused(503, "busy", "too many large bodies are being read: try again", retry_after=1.0)
        self.taken += size
        return size


async def body_of(request: web.Request) -> bytes:
    """Return the whole body, unpacked; raises Refused (408, 413, 415, 503) or InvalidRequest. May be asked again."""
    visit = request[VISIT]
    if visit.body is None:
        encoding = request.headers.get(CONTENT_ENCODING, "identity").lower()
        if encoding not in _ENCODINGS:
            raise Refused(
                415, "unsupported_encoding", "a body may be plain or packed by gzip or deflate: send it so"
            )
        most = visit.edge.config.max_body
        length = request.content_length if encoding in _PLAIN else None
        if length is not None and length > most:
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=length)
        visit.body_room += visit.edge.body_room.take(most if length is None else length)
        raw = await _read(request, visit.edge.config.body_timeout / 1000)
        visit.body = raw if encoding in _PLAIN else _unpacked(raw, encoding, most)
    return visit.body


async def _read(request: web.Request, seconds: float) -> bytes:
    try:
        if request.content.is_eof():  # it came with the head: no timer is needed
            return await request.read()
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        raise Refused(
            408,
            "body_timeout",
            "the body did not come in time: send it faster, or less of it",
            {"Connection": "close"},
        ) from None
    except web.RequestPayloadError:
        raise InvalidRequest(
            "the body is not what Transfer-Encoding says, or was cut short: send it whole"
        ) from None


def _unpacked(raw: bytes, encoding: str, most: int) -> bytes:
    """The body in a gzip or deflate (zlib) wrapping; not by aiohttp, which unpacks before anybody is asked for a credential."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        body = unpacker.decompress(raw, most + 1)
    except zlib.error:
        raise InvalidRequest(
            f"the body is not the {encoding} that Content-Encoding says: send it whole"
        ) from None
    if len(body) > most:
        raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=len(body))
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest(f"the body is not one whole {encoding}, as Content-Encoding says: send it whole")
    return body


def media_type(request: web.Request) -> str:
    """The Content-Type without its parameters, lower case. Python's own parser takes a second for 8 KiB of semicolons."""
    return request.headers.get(CONTENT_TYPE, "").partition(";")[0].strip().lower()


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the body, a JSON object; raises Refused (408, 413, 415) or InvalidRequest."""
    if media_type(request) != "application/json":
        raise Refused(415, "unsupported_media_type", "send the header `Content-Type: application/json`")
    value = parse_json(await body_of(request))
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_KINDS.get(type(value), 'a value')}")
    return value


async def form_of(request: web.Request) -> dict[str, str]:
    """The fields of a small form as browsers send it, each once; raises Refused (408, 413, 415) or InvalidRequest."""
    if media_type(request) != "application/x-www-form-urlencoded":
        raise Refused(415, "unsupported_media_type", "send a form: `application/x-www-form-urlencoded`")
    if request.content_length is None or request.content_length > MAX_FORM_BYTES:  # nobody has signed in yet
        raise Refused(413, "payload_too_large", f"a form needs a Content-Length of at most {MAX_FORM_BYTES}")
    if CONTENT_ENCODING in request.headers:
        raise Refused(415, "unsupported_encoding", "a form is sent as it is, not packed")
    connection = request.protocol
    if isinstance(connection, Protocol):
        connection.rest()  # senders of forms show no credential: while theirs come, they keep no place from others
    try:
        pairs = parse_qsl((await body_of(request)).decode("utf-8"), max_num_fields=_MAX_FORM_FIELDS)
    except ValueError:
        raise InvalidRequest("the form cannot be read") from None
    if isinstance(connection, Protocol):
        connection.work()
    return dict(pairs)


def parse_json(body: bytes) -> Any:
    """The value of strict JSON; raises InvalidRequest with one sentence."""
    try:
        return _decoder.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except ValueError:  # what is left: Python's limit of digits
        raise InvalidRequest("a number in the body has too many digits") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are each given once: readers differ in which of two they believe."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"the body gives {quote(name)} twice: give it once")
            seen.add(name)
    return found


_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def _refuse_number(text: str) -> NoReturn:
    raise InvalidRequest(f"the body is not JSON: {quote(text)} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


_decoder = json.JSONDecoder(parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_object)


def to_json(value: Any) -> str:
    """JSON text of a reply; raises HandlerError, which says what to return instead, for what JSON cannot carry."""
    try:
        return _encoder.encode(value)
    except TypeError:
        sentence = "a key that is no text cannot be carried as JSON: make it text"
    except ValueError:
        sentence = "nan and infinity cannot be carried as JSON: return None or text"
    except RecursionError:
        sentence = "what is nested so deeply cannot be carried as JSON: return less of it"
    raise HandlerError(sentence)


def _refuse_value(value: Any) -> NoReturn:
    raise HandlerError(f"{type(value).__name__} cannot be carried as JSON: return text")


_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_refuse_value)


def json_response(value: Any, *, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=to_json(value).encode(), status=status, content_type="application/json")
