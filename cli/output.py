"""What commands print: plain aligned text for people and pipes, one JSON document for programs.

Errors are one line on stderr (or an `error` document with --json) and an exit status; no traceback reaches a user.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from moltbot.core.errors import MoltbotError, SettingsError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
STOPPED_EARLY = "Stopped before it was listening."


def say(text: str = "") -> None:
    """One line for a person, seen at once also in a pipe."""
    print(text, flush=True)


def say_json(document: Any) -> None:
    """The one document of a command under --json."""
    print(json.dumps(document, indent=2, default=str), flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns without borders; the same in a terminal and in a pipe."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(headers), *cells]) for index in range(len(headers))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [headers, *cells]
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


@contextlib.contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that something takes a moment: a spinner in a terminal, a line in a pipe."""
    if quiet:
        yield
    elif sys.stdout.isatty():
        from rich.console import Console

        with Console().status(text, spinner="dots"):
            yield
    else:
        say(text)
        yield


def printable(text: str, keep: str = "") -> str:
    """`text` in which nothing plays tricks on a terminal: what is not printable is escaped, but for `keep`."""
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def fail(error: MoltbotError, *, as_json: bool) -> int:
    """Tell an error and return the exit status that belongs to it."""
    if as_json:
        say_json({"error": error.facts()})
    else:
        # A handler's own words may be in it: they stay on one line and play no tricks on the terminal.
        print(f"moltbot: {printable(error.message)}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED
