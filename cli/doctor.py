"""`moltbot doctor`: what protects users from each other on this machine, and what would make it more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moltbot.cli.connect import Json, default_gateway_directory
from moltbot.cli.output import EXIT_FAILED, progress, say, say_json, table

if TYPE_CHECKING:
    from moltbot.sandbox.isolation.checkup import Checkup

EXAMPLES = (
    "\b\nExamples:\n  moltbot doctor\n  MOLTBOT_MIN_ISOLATION=bubblewrap moltbot doctor --json"
    "\n\nExit status 1 if the settings isolation and min_isolation cannot be met here."
)


def doctor(
    sandbox_dir: Annotated[Path | None, typer.Option("-s", "--sandbox-dir", help="Base directory.")] = None,
    as_json: Json = False,
) -> None:
    """Try every isolation level with a real worker, and say what is missing and how to get it."""
    from moltbot.cli.loops import run
    from moltbot.cli.settings import load_settings
    from moltbot.core.jsonable import jsonable
    from moltbot.sandbox.isolation.checkup import examine

    settings, sources = load_settings({"sandbox_base_dir": sandbox_dir})
    if "sandbox_base_dir" not in sources:
        settings, sources = load_settings({"sandbox_base_dir": default_gateway_directory()})
    with progress("Trying every isolation level with a real worker ...", quiet=as_json):
        checkup = run(examine(settings.pool_config()))
    if as_json:
        say_json(jsonable(checkup))
    else:
        say(checkup_text(checkup))
    if not checkup.sufficient:
        raise typer.Exit(EXIT_FAILED)


def checkup_text(checkup: Checkup) -> str:
    """The page for people: the answer first, then what it rests on, then what to do."""
    levels = [
        [check.level, "works" if check.works else "no", check.with_program or "-"] for check in checkup.levels
    ]
    checks = [[check.name, "yes" if check.present else "no", check.detail] for check in checkup.checks]
    return "\n".join(
        [
            _answer(checkup),
            "",
            table(["LEVEL", "HERE", "PROGRAM"], levels),
            "",
            table(["PROTECTION", "HERE", "DETAIL"], checks),
            *_advice(checkup),
        ]
    )


def _answer(checkup: Checkup) -> str:
    wanted = f"isolation = {checkup.isolation}, min_isolation = {checkup.min_isolation}"
    handler = next(check for check in checkup.checks if check.name == "handler")
    if not handler.present:
        return f"A gateway cannot start here: {handler.detail}"
    if checkup.level is None:
        return f"A gateway cannot start here: nothing that the settings allow works ({wanted})."
    loud = (
        " Workers are NOT walled off from this system user's files." if checkup.level == "directories" else ""
    )
    return f"Workers run at isolation level {checkup.level} here ({wanted}).{loud}"


def _advice(checkup: Checkup) -> list[str]:
    lines = []
    for level in checkup.levels:
        if level.why_not:
            lines.append(f"  {level.level}: {level.why_not}")
            lines += [f"      {level.remedy}"] if level.remedy else []
    for check in checkup.checks:
        if not check.present and check.remedy and check.name != "bwrap":
            lines.append(f"  {check.name}: {check.detail}")
            lines.append(f"      {check.remedy}")
    return ["", "What is missing, and what would help:", "", *lines] if lines else []
