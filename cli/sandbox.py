"""`moltbot sandbox ...`: look at a worker's wall, from outside and from inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moltbot.cli.connect import Json, SandboxDir, default_gateway_directory
from moltbot.cli.output import say, say_json, table

if TYPE_CHECKING:
    from moltbot.sandbox.config import PoolConfig
    from moltbot.sandbox.isolation.explain import Explanation

app = typer.Typer(help="The walls around workers.", rich_markup_mode=None, no_args_is_help=True)
Worker = Annotated[str, typer.Argument(help="The worker's name, such as worker-0.")]


@app.command(
    epilog="\b\nExamples:\n  moltbot sandbox shell worker-0\n  moltbot sandbox shell worker-0 -- ls -la /sandbox"
)
def shell(
    worker: Worker,
    command: Annotated[
        list[str] | None, typer.Argument(help="A program to run instead of a shell, after `--`.")
    ] = None,
    sandbox_dir: SandboxDir = None,
) -> None:
    """Open a shell inside a worker's wall, with its directories, uid, limits and environment."""
    from moltbot.sandbox.shell import run_inside

    config = _config(sandbox_dir)
    program = command or ["/bin/sh", "-i"]
    raise typer.Exit(run_inside(config, config.sandbox_base_dir, worker, program, os.environ))


@app.command(
    epilog="\b\nExamples:\n  moltbot sandbox explain worker-0\n  moltbot sandbox explain worker-0 --json"
)
def explain(worker: Worker, sandbox_dir: SandboxDir = None, as_json: Json = False) -> None:
    """Say what a worker can see, write, reach and use."""
    from moltbot.core.jsonable import jsonable
    from moltbot.sandbox.isolation.explain import explain as explain_worker

    config = _config(sandbox_dir)
    explanation = explain_worker(config, config.sandbox_base_dir, worker, os.environ)
    if as_json:
        say_json(jsonable(explanation))
    else:
        say(explanation_text(explanation))


_HEADINGS = {
    "bubblewrap": "What it can see and write; no other path of this machine is there:",
    "landlock": "What it can open; all other paths of this machine are refused, though not hidden:",
}


def explanation_text(explanation: Explanation) -> str:
    """The page for people."""
    paths = [[path.inside, path.access, path.outside or "(inside only)"] for path in explanation.paths]
    protections = [
        [protection.name, "yes" if protection.in_force else "NO", protection.detail]
        for protection in explanation.protections
    ]
    return "\n".join(
        [
            f"{explanation.worker_id} runs at isolation level {explanation.level}, with uid {explanation.uid}.",
            "",
            _HEADINGS.get(explanation.level, "What it can see and write:"),
            "",
            table(["INSIDE", "ACCESS", "ON THIS MACHINE"], paths),
            "",
            f"Its environment: {', '.join(explanation.environment)}",
            "",
            table(["PROTECTION", "IN FORCE", "DETAIL"], protections),
        ]
    )


def _config(sandbox_dir: Path | None) -> PoolConfig:
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings({"sandbox_base_dir": sandbox_dir})
    if "sandbox_base_dir" not in sources:
        settings, _ = load_settings({"sandbox_base_dir": default_gateway_directory()})
    config = settings.pool_config()
    return config.model_copy(update={"sandbox_base_dir": config.sandbox_base_dir.expanduser().resolve()})
