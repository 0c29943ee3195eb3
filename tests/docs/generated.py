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

from moltbot.cli.main import app
from moltbot.cli.settings import Settings
from moltbot.core import errors
from moltbot.gateway.problems import _STATUS
from moltbot.sandbox import lifecycle
from moltbot.sandbox.setting_kinds import show_value
from tests.docs import limits as limits_table
from tests.docs.pages import PAGES

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def settings() -> str:
    """Every setting with its default, variable and meaning."""
    rows = [
        [
            f"`{name}`",
            f"`{show_value(field.default, field)}`" if field.default not in (None, ()) else "",
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
    """Every limit."""
    return table(limits_table.HEADERS, limits_table.rows())


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
