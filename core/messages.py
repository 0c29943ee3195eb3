"""The words that callers and handlers exchange: a request, what is streamed while it runs, and its reply.

How they become bytes is in `framing.py` and `session.py`; their JSON forms on the wire of HTTP are camelCase and made here,
because every edge (HTTP, command line, client) uses the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moltbot.core.errors import InvalidRequest, UnknownType, quote
from moltbot.core.user_key import check_user_id

MAX_TYPE_LENGTH = 64
MAX_REQUEST_ID_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Request:
    """One call for one user.

    type: which handler answers. user_id: whom it is for. payload: anything msgpack carries. id: given, or made by the
    router. timeout: milliseconds from dispatch, at most (and by default) the pool's `request_timeout`. idempotent: it
    may be run again if a worker dies under it. meta: string keys, handed to the handler unseen.
    """

    type: str
    user_id: str
    payload: Any = None
    id: str | None = None
    timeout: float | None = None
    idempotent: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_user_id(self.user_id)
        kind = self.type
        if not isinstance(kind, str) or not kind:
            raise InvalidRequest('type is missing: name the handler that answers, for example "agent"')
        if len(kind) > MAX_TYPE_LENGTH or not kind.isprintable():
            raise UnknownType(f"type {quote(kind)} is not the name of a handler")
        if self.id is not None:
            _check_request_id(self.id)
        if self.timeout is not None:
            _check_timeout(self.timeout)
        if not isinstance(self.idempotent, bool):
            raise InvalidRequest(f"idempotent must be true or false, not {quote(self.idempotent)}")
        if not isinstance(self.meta, Mapping) or not all(isinstance(key, str) for key in self.meta):
            raise InvalidRequest("meta must be an object with string keys")

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> Request:
        """Read the camelCase form, `{"type", "userId", "payload", ...}`; snake_case keys do as well."""
        if not isinstance(fields, Mapping):
            raise InvalidRequest(
                f"a request must be an object with type and userId, not {type(fields).__name__}"
            )
        known = {_FIELDS.get(key, key): value for key, value in fields.items()}
        if len(known) < len(fields):
            raise InvalidRequest("userId is given twice, also as user_id: keep one")
        unknown = [key for key in known if key not in _NAMES]
        if unknown:
            raise InvalidRequest(
                f"unknown field {quote(unknown[0])}: a request has {', '.join(sorted(_WIRE_NAMES))}"
            )
        if known.get("user_id") is None:
            raise InvalidRequest("userId is missing: name the user this request is for")
        known.setdefault("type", None)
        if known.get("meta", {}) is None:
            del known["meta"]
        return cls(**known)


_FIELDS = {"userId": "user_id"}
_NAMES = frozenset(Request.__slots__)
_WIRE_NAMES = (_NAMES - {"user_id"}) | {"userId"}


def _check_request_id(value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_REQUEST_ID_LENGTH or not value.isprintable():
        raise InvalidRequest(f"id must be a printable string of 1 to {MAX_REQUEST_ID_LENGTH} characters")


def _check_timeout(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400_000:
        raise InvalidRequest(
            f"timeout must be milliseconds between 1 and 86400000 (a day), not {quote(value)}"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a streamed answer."""

    data: Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something a handler wants its caller to know while it runs."""

    name: str
    data: Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Amounts a handler reports (tokens, cents, seconds); later values of a name replace earlier ones."""

    amounts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a successful request.

    payload: the handler's return value, or its chunks: joined if all are strings, else a list. duration_ms: from
    arrival at the router to the final frame. epoch: of the pin under which it ran. incarnation: which process of the worker.
    """

    request_id: str
    user_id: str
    worker_id: str
    epoch: int
    payload: Any
    usage: Mapping[str, Any]
    duration_ms: float
    success: bool = True
    incarnation: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "success": self.success,
            "requestId": self.request_id,
            "userId": self.user_id,
            "workerId": self.worker_id,
            "epoch": self.epoch,
            "payload": self.payload,
            "usage": dict(self.usage),
            "durationMs": round(self.duration_ms, 3),
        }


StreamItem = Chunk | Event | Usage | Reply
