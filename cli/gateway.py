"""`moltbot gateway`: run the gateway until it is told to stop; `moltbot gateway log-level`: how much the running one logs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway, default_gateway_directory
from moltbot.cli.output import EXIT_INTERRUPTED, STOPPED_EARLY, say, say_json

EXAMPLES = (
    "\b\nExamples:\n  moltbot gateway -w 8 --handler my_agent.py\n  moltbot gateway --host 0.0.0.0 --token-file token"
    "\n\nEvery setting of `moltbot workers info` may stand in moltbot.toml or in the environment (MOLTBOT_MAX_MEMORY=1GB)."
)
FLAGGED = ("worker_count", "sandbox_base_dir", "handler", "host", "port", "request_timeout", "token_file")
"""The settings that have a flag."""

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True, epilog=EXAMPLES)


@app.callback()
def gateway(
    context: typer.Context,
    workers: Annotated[int | None, typer.Option("-w", "--workers", help="Number of workers.")] = None,
    sandbox_dir: Annotated[Path | None, typer.Option("-s", "--sandbox-dir", help="Base directory.")] = None,
    handler: Annotated[str | None, typer.Option(help="path/to/file.py or module:name.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    timeout: Annotated[
        str | None, typer.Option("-t", "--timeout", help='Request timeout, such as "2m".')
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the operator's token.")] = None,
    as_json: Json = False,
) -> None:
    """Run the gateway until Ctrl+C or SIGTERM."""
    values = (workers, sandbox_dir, handler, host, port, timeout, token_file)
    if context.invoked_subcommand is not None:
        if as_json or any(value is not None for value in values):
            raise typer.BadParameter(f"give options behind `{context.invoked_subcommand}`", context)
        return
    try:
        _run(dict(zip(FLAGGED, values, strict=True)), as_json=as_json)
    except KeyboardInterrupt:
        print(STOPPED_EARLY, file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command(
    "log-level",
    epilog="\b\nExamples:\n  moltbot gateway log-level\n  moltbot gateway log-level debug"
    "\n\nA change holds until the gateway stops; then the setting log_level is in force again.",
)
def log_level(
    level: Annotated[str | None, typer.Argument(help="debug, info, warning or error.")] = None,
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Say how much the running gateway writes into its log, or change it at once."""

    async def ask(client: Any) -> Any:
        return await client.log_level(level)

    document = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if as_json:
        say_json(document)
    else:
        say(f"logs/worker-pool.log {'takes' if level is None else 'now takes'} {document['level']} and above")


def _run(flags: Mapping[str, Any], *, as_json: bool) -> None:
    from moltbot.cli.loops import run
    from moltbot.cli.serving import serve
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings(flags)
    if "sandbox_base_dir" not in sources:
        settings, sources = load_settings({**flags, "sandbox_base_dir": default_gateway_directory()})
    run(serve(settings, as_json=as_json))
