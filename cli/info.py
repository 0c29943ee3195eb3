"""What `moltbot workers info` shows: drawing, directories, settings in force with their sources, guarantees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moltbot.cli.output import table
from moltbot.cli.setting_table import setting_rows, settings_document, where_else
from moltbot.cli.settings import Settings

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
├── logs/                 worker-pool.log, access.log
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
        "settings": settings_document(settings, sources),
        "guarantees": [
            {"name": name, "text": text.format(isolation=settings.isolation)} for name, text in GUARANTEES
        ],
        "isolation": settings.isolation,
    }


def info_text(settings: Settings, sources: Mapping[str, str]) -> str:
    """The whole page."""
    rows = setting_rows(settings, sources)
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
            *where_else(sources),
            "",
            "Guarantees",
            "",
            *guarantees,
        ]
    )
