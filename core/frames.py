"""The kinds of frames: which fields each has, and what a session makes of them for its owner.

`FROM_WORKER` and `TO_WORKER` are the whole protocol as data; `docs/reference/frames.md` explains it. Bytes are in `framing.py`,
the rules of calls and credit in `session.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moltbot.core.errors import ProtocolError, quote
from moltbot.core.framing import Frame

PROTOCOL_VERSION = 1


class Streamed(NamedTuple):
    """A frame before the final one: kind is chunk, event or usage; size is what it cost in credit."""

    id: int
    kind: str
    frame: Frame
    size: int


class Final(NamedTuple):
    """The end of a call: kind is reply or error."""

    id: int
    kind: str
    frame: Frame


class Notice(NamedTuple):
    """A frame about the worker as a whole: hello, ready, beat, arrive, drained ..."""

    kind: str
    frame: Frame


class Requested(NamedTuple):
    """A call begins (worker's side)."""

    id: int
    frame: Frame


class CancelRequested(NamedTuple):
    """An early end is wanted; a final frame is still owed. reason: why, if it is more than that the caller gave up."""

    id: int
    reason: str | None = None


class CreditGranted(NamedTuple):
    """The call may stream again."""

    id: int


CallerEvent = Streamed | Final | Notice
CalleeEvent = Requested | CancelRequested | CreditGranted | Notice


# --- checks of what the other side sent ----------------------------------------------------------

Check = Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_str(value: Any) -> bool:
    return type(value) is str


def _is_map(value: Any) -> bool:
    return type(value) is dict


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _is_names(value: Any) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def _is_text(value: Any) -> bool:
    return value is None or type(value) is str


def _anything(_: Any) -> bool:
    return True


_USER: dict[str, Check] = {"user_id": _is_str, "epoch": _is_int}

FROM_WORKER: dict[str, dict[str, Check]] = {
    "ready": {"v": _is_int, "pid": _is_int, "handlers": _is_names},
    "chunk": {"id": _is_int, "data": _anything},
    "event": {"id": _is_int, "name": _is_str, "data": _anything},
    "usage": {"id": _is_int, "amounts": _is_map},
    "reply": {"id": _is_int, "payload": _anything, "usage": _is_map},
    "error": {"id": _is_int, "code": _is_str, "message": _is_str, "details": _anything},
    "arrived": {**_USER, "error": _is_text},
    "left": {**_USER, "error": _is_text},
    "beat": {"lag_ms": _is_number, "in_flight": _is_int, "at": _is_number},
    "pong": {},
    "drained": {},
}

OPTIONAL = frozenset({"details", "usage", "error", "deadline_ms", "meta", "reason"})

TO_WORKER: dict[str, dict[str, Check]] = {
    "hello": {"v": _is_int, "worker_id": _is_str, "incarnation": _is_int, "config": _is_map},
    "request": {
        "id": _is_int,
        "type": _is_str,
        "user_id": _is_str,
        "payload": _anything,
        "epoch": _is_int,
        "deadline_ms": _is_number,
        "meta": _is_map,
    },
    "cancel": {"id": _is_int, "reason": _is_text},
    "credit": {"id": _is_int, "n": _is_int},
    "arrive": _USER,
    "leave": {"user_id": _is_str},
    "ping": {},
    "drain": {},
    "shutdown": {"grace_ms": _is_number},
}


def checked_kind(frame: Frame, table: Mapping[str, Mapping[str, Check]]) -> str:
    kind = frame.get("kind")
    fields = table.get(kind) if type(kind) is str else None
    if fields is None:
        raise ProtocolError(f"a frame of unknown kind {quote(kind)}")
    assert isinstance(kind, str)
    for name, check in fields.items():
        if not (check(frame[name]) if name in frame else name in OPTIONAL):
            raise ProtocolError(f"a {kind} frame whose {name!r} is missing or wrong")
    return kind
