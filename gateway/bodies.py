"""JSON in and out, strictly: what is not JSON is refused with one sentence, and never becomes half a request."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from aiohttp import web

from moltbot.core.errors import HandlerError, InvalidRequest, quote
from moltbot.gateway.problems import Refused


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the body, a JSON object; raises Refused (413, 415) or InvalidRequest."""
    if request.content_type != "application/json":
        raise Refused(415, "unsupported_media_type", "send the header `Content-Type: application/json`")
    try:
        body = await request.read()
    except web.RequestPayloadError:
        raise InvalidRequest("the body is not what Content-Encoding says, or was cut short") from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except ValueError:  # what is left: Python's limit of digits
        raise InvalidRequest("a number in the body has too many digits") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_KINDS.get(type(value), 'a value')}")
    return value


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


def to_json(value: Any) -> str:
    """JSON text of a reply; raises HandlerError, which says what to return instead, for what JSON cannot carry."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_refuse_value)
    except TypeError:
        sentence = "a key that is no text cannot be carried as JSON: make it text"
    except ValueError:
        sentence = "nan and infinity cannot be carried as JSON: return None or text"
    except RecursionError:
        sentence = "what is nested so deeply cannot be carried as JSON: return less of it"
    raise HandlerError(sentence)


def _refuse_value(value: Any) -> NoReturn:
    raise HandlerError(f"{type(value).__name__} cannot be carried as JSON: return text")


def json_response(value: Any, *, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=to_json(value).encode(), status=status, content_type="application/json")
