"""What `moltbot workers info` shows: drawing, directories, settings in force with their sources, guarantees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moltbot.cli.connect import default_gateway_directory
from moltbot.cli.output import table
from moltbot.cli.settings import Settings
from moltbot.core.units import format_duration, format_size, parse_duration, parse_size
from moltbot.sandbox.config import parse_uids

_DRAWING = """\
                 requests for many users
                           |
            +--------------v--------------+
            |{title:^29}|   one port: HTTP, SSE
            +--------------+--------------+
            |        Sticky router        |   userId -> worker, once; then pinned
            |  user-a  -->  worker-0      |
            |  user-b  -->  worker-1      |
            |  user-c  -->  worker-2      |
            +------+-------+-------+------+
                   |       |       |          msgpack frames
            +------v-+ +---v----+ +v-------+
            |worker-0| |worker-1| |worker-2|  one process tree each
            |sessions| |sessions| |sessions|
            |state   | |state   | |state   |
            |cache   | |cache   | |cache   |
            +--------+ +--------+ +--------+"""

_TREE = """\
{base}/
├── moltbot.db            who lives where
├── token                 the operator's token
├── gateway.json          address and pid of the running gateway
├── logs/                 worker-pool.log
├── worker-0/
│   ├── sandbox.json      metadata
│   ├── sessions/         conversations, per user
│   ├── state/            persistent state, per user
│   ├── cache/            cache files, per user
│   ├── temp/             temporary files, emptied
│   └── logs/             worker.log
└── worker-1/ ..."""

GUARANTEES = (
    ("Sticky routing", "a user always goes to the same worker; restarts change nothing"),
    (
        "Isolation",
        "a worker sees its own directories only, as far as the isolation level goes: {isolation}, see `moltbot doctor`",
    ),
    ("Crash safety", "a crash costs only the requests in flight on that worker"),
    ("Auto-recovery", "a dead worker comes back under its name, with its directories"),
    ("Single port", "the gateway uses one port for all users"),
)


def info_document(settings: Settings, sources: Mapping[str, str]) -> dict[str, Any]:
    """The same facts for programs."""
    return {
        "settings": [
            {"name": name, "default": default, "value": value, "source": source, "description": description}
            for name, default, value, source, description in _settings(settings, sources)
        ],
        "guarantees": [
            {"name": name, "text": text.format(isolation=settings.isolation)} for name, text in GUARANTEES
        ],
        "isolation": settings.isolation,
    }


def info_text(settings: Settings, sources: Mapping[str, str]) -> str:
    """The whole page."""
    rows = _settings(settings, sources)
    guarantees = [
        f"  {i}. {name}: {text.format(isolation=settings.isolation)}"
        for i, (name, text) in enumerate(GUARANTEES, 1)
    ]
    return "\n".join(
        [
            "Architecture",
            "",
            _DRAWING.format(title=f"Gateway (:{settings.port})"),
            "",
            "Directories",
            "",
            _TREE.format(base=settings.sandbox_base_dir),
            "",
            "Settings (flag > environment MOLTBOT_... > moltbot.toml > default)",
            "",
            table(["SETTING", "DEFAULT", "IN FORCE", "FROM", "MEANING"], rows),
            *_where_else(sources),
            "",
            "Guarantees",
            "",
            *guarantees,
        ]
    )


def _where_else(sources: Mapping[str, str]) -> list[str]:
    """The base directory's default differs by command."""
    if "sandbox_base_dir" in sources:
        return []
    return [
        "",
        f"  While sandbox_base_dir is not set, `moltbot gateway` uses {default_gateway_directory()},",
        "  and `moltbot workers demo` a fresh directory below the default.",
    ]


def _settings(settings: Settings, sources: Mapping[str, str]) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            name,
            _show(field.default, field.metadata),
            _show(getattr(settings, name), field.metadata),
            sources.get(name, "default"),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _show(value: Any, metadata: list[Any]) -> str:
    """A value as one may type it: times and sizes with units."""
    if value is None:
        return "-"
    parsers = {getattr(part, "func", None) for part in metadata}
    if parse_duration in parsers:
        return format_duration(value)
    if parse_size in parsers:
        return format_size(value)
    if parse_uids in parsers:
        return "-".join(map(str, value))
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
