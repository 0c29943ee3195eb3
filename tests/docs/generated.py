"""The parts of the documentation that are made from the code, so that they cannot differ from it.

    python -m tests.docs.generated      writes them anew, between `<!-- generated: NAME -->` and `<!-- end -->`

`test_generated.py` fails while a page differs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from moltbot.cli.info import _show
from moltbot.cli.main import app
from moltbot.cli.settings import Settings
from moltbot.core import errors, framing, messages, session, user_key
from moltbot.core.units import format_duration, format_size
from moltbot.gateway.problems import _STATUS
from moltbot.router import flight, placement, ring
from moltbot.sandbox import disk, health, lifecycle, logs, policies, restart
from moltbot.sandbox.config import MAX_WORKERS
from moltbot.sandbox.isolation import root, view
from moltbot.worker import calls, record, state
from tests.docs.pages import PAGES

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """Every setting with its default, variable and meaning."""
    rows = [
        [
            f"`{name}`",
            f"`{_show(field.default, field.metadata)}`" if field.default not in (None, ()) else "",
            f"`MOLTBOT_{name.upper()}`",
            field.description or "",
        ]
        for name, field in Settings.model_fields.items()
    ]
    return table(["setting", "default", "environment", "meaning"], rows)


def lifecycle_diagram() -> str:
    """The transition table as a diagram."""
    return f"```mermaid\n{lifecycle.mermaid()}\n```\n"


def problem_codes() -> str:
    """Every code that a request can end with, its status, and what is known then."""
    rows = []
    for error in error_classes():
        if issubclass(error, errors.StartupError):
            continue
        rows.append(
            [
                f"`{error.code}`",
                str(_STATUS[error.code]),
                f"`{error.__name__}`",
                "yes" if error.retryable else "",
                f"`{error.verdict}`",
                first_line(error),
            ]
        )
    return table(["code", "status", "class", "retryable", "verdict", "meaning"], rows)


def startup_errors() -> str:
    """Every error that keeps a gateway from starting."""
    rows = [
        [f"`{error.code}`", f"`{error.__name__}`", first_line(error)]
        for error in error_classes()
        if issubclass(error, errors.StartupError)
    ]
    return table(["code", "class", "meaning"], rows)


def error_classes() -> list[type[errors.MoltbotError]]:
    """Every class of the error tree, in the order of the file."""
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.MoltbotError)
    ]
    return [error for error in found if error.__module__ == errors.__name__]


def first_line(error: type[errors.MoltbotError]) -> str:
    return (inspect.getdoc(error) or "").partition("\n")[0]


def limits() -> str:
    """The limits that are no settings."""
    second = 1000
    rows = [
        ["a user id", f"{user_key.MAX_USER_ID_BYTES} bytes of UTF-8, not empty"],
        ["the directory name made from it", f"{user_key.MAX_KEY_BYTES} bytes"],
        ["a request's type", f"{messages.MAX_TYPE_LENGTH} printable characters"],
        ["a request's id", f"{messages.MAX_REQUEST_ID_LENGTH} printable characters"],
        ["one frame, and a reply that is collected", format_size(framing.MAX_FRAME_BYTES)],
        ["streamed ahead of a reader, per request (credit)", format_size(session.CREDIT_BYTES)],
        ["emitted ahead of a reader by a coroutine", format_size(calls.MAX_EMIT_AHEAD)],
        ["`ctx.state`, packed", format_size(state.MAX_STATE_BYTES)],
        ["one entry of `ctx.session`", format_size(record.MAX_ENTRY_BYTES)],
        ["the text of a handler's error", f"{calls.MAX_ERROR_TEXT} characters"],
        ["workers of a pool", str(MAX_WORKERS)],
        ["points per worker on the ring", str(ring.VNODES)],
        ["users on one worker at their first placement", f"{placement.BOUND} times the even share"],
        ["runs again of an idempotent request whose worker died", str(flight.MAX_RERUNS)],
        ["heartbeats missing before a worker is killed", str(health.MISSED_BEATS)],
        ["delay before a restart", format_duration(restart.MAX_DELAY * second)],
        [
            "rest of a quarantined worker: first, at most",
            f"{_s(restart.PROBATION)}, {_s(restart.MAX_PROBATION)}",
        ],
        ["time for a cancelled handler to end", _s(policies.CANCEL_GRACE)],
        ["time for a drained worker to stop", _s(policies.STOP_GRACE)],
        ["`/tmp` of a worker at isolation level `bubblewrap`, in memory", format_size(root.TMP_SIZE)],
        ["`/dev/shm` of a worker at that level, in memory", format_size(root.SHM_SIZE)],
        ["nested folders in a worker's directories that are measured", str(disk.MAX_DEPTH)],
        ["files in one granted path, which are looked through for sockets", str(view._MOST_ENTRIES)],
        ["one log file; older ones kept", f"{format_size(logs.MAX_LOG_BYTES)}; {logs.LOG_BACKUPS}"],
        [
            "output of a worker that is logged, per stream",
            f"{format_size(logs.BUDGET_BYTES_PER_SECOND)} a second",
        ],
    ]
    return table(["what", "limit"], rows)


def _s(seconds: float) -> str:
    return format_duration(seconds * 1000)


def command_line() -> str:
    """The help of every command."""
    return "\n".join(_help_of(typer.main.get_command(app), "moltbot"))


def _help_of(command: Any, path: str) -> Iterator[str]:
    context = command.make_context(
        path, [], resilient_parsing=True, terminal_width=100, max_content_width=100
    )
    context.info_name = path
    yield f"## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    for name, child in getattr(command, "commands", {}).items():
        yield from _help_of(child, f"{path} {name}")


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "lifecycle": lifecycle_diagram,
    "problem-codes": problem_codes,
    "startup-errors": startup_errors,
    "limits": limits,
    "command-line": command_line,
}


def renewed(page: Path) -> str:
    """The page's text with every generated part made anew."""
    return _PART.sub(
        lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[4]}", page.read_text(encoding="utf-8")
    )


def parts_in(page: Path) -> list[str]:
    return [part[2] for part in _PART.finditer(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for each in PAGES:
        each.write_text(renewed(each), encoding="utf-8")
