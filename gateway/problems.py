"""Errors on the wire: RFC 9457 problem+json. The only place that knows status codes.

Layers below raise `MoltbotError`s; what only the edge can refuse (credentials, hosts, bodies) is raised as `Refused`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from moltbot.core.errors import MoltbotError

CLIENT_CLOSED_REQUEST = 499

_STATUS: Mapping[str, int] = {
    "invalid_request": 400,
    "unknown_type": 400,
    "not_found": 404,
    "user_being_forgotten": 409,
    "user_queue_full": 429,
    "cancelled": CLIENT_CLOSED_REQUEST,
    "internal": 500,
    "handler_error": 500,
    "reply_too_large": 500,
    "protocol_error": 500,
    "frame_error": 500,
    "worker_died": 502,
    "worker_queue_full": 503,
    "unavailable": 503,
    "not_running": 503,
    "worker_quarantined": 503,
    "too_many_users": 503,
    "timeout": 504,
    "storage_full": 507,
}

_EDGE_CODES: Mapping[int, str] = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


class Refused(Exception):
    """Refused at the edge, before any worker was asked."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        *,
        retry_after: float | None = None,
    ) -> None:
        """retry_after: seconds after which the same request may succeed; None if it never will."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.retry_after = retry_after

    def facts(self) -> dict[str, Any]:
        """The error as a JSON object, like that of a MoltbotError."""
        known = {"code": self.code, "detail": self.detail, "retryable": self.retry_after is not None}
        return known if self.retry_after is None else known | {"retryAfter": round(self.retry_after, 3)}


def problem_of(error: Exception) -> dict[str, Any]:
    """The problem document of an error, as it also stands in a stream's `error` event."""
    match error:
        case MoltbotError():
            return _document(_STATUS.get(error.code, 500), error.facts())
        case Refused():
            return _document(error.status, error.facts())
        case web.HTTPException():
            code = _EDGE_CODES.get(error.status, "bad_http")
            return _document(error.status, {"code": code, "detail": _plain(error), "retryable": False})
    detail = "the gateway failed; its log says how"
    return _document(500, {"code": "internal", "detail": detail, "retryable": False})


def code_of(error: Exception) -> str:
    """The word for an error, as it stands in its problem document."""
    return str(problem_of(error)["code"])


def response_of(error: Exception) -> web.Response:
    """The HTTP answer to an error."""
    document = problem_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        headers |= error.headers
    elif isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers["Allow"]
    if isinstance(error, Refused | MoltbotError) and error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    response = web.Response(
        status=document["status"],
        body=json.dumps(document, ensure_ascii=True).encode(),
        content_type="application/problem+json",
        headers=headers,
    )
    if headers.get("Connection") == "close":
        response.force_close()
    return response


def _document(status: int, facts: dict[str, Any]) -> dict[str, Any]:
    code = facts["code"]
    return {"type": f"urn:moltbot:problem:{code}", "title": code.replace("_", " "), "status": status, **facts}


def _plain(error: web.HTTPException) -> str:
    match error:
        case web.HTTPRequestEntityTooLarge():
            return "the body is too large: send less (the limit is the setting max_body)"
        case web.HTTPNotFound():
            return "there is nothing at this path: docs/reference/http.md lists the paths"
        case web.HTTPMethodNotAllowed():
            return f"{error.method} is not possible here: use {', '.join(sorted(error.allowed_methods))}"
    return error.reason
