"""How our own values look as JSON: camelCase keys, times as ISO 8601 in UTC, enums as their words.

For values that this project defines; a handler's payload goes out as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePath
from typing import Any


def camel_case(name: str) -> str:
    """`last_heartbeat` -> `lastHeartbeat`."""
    head, *tail = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in tail)


def jsonable(value: Any) -> Any:
    """Return a dataclass (or a list, tuple or mapping of them) as JSON types; keys of mappings stay as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        return {camel_case(field.name): jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return iso_time(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return value


def iso_time(moment: datetime) -> str:
    """`2026-01-31T08:15:00.000Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def from_timestamp(seconds: float) -> datetime:
    """A UTC datetime for seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)
