"""`moltbot gateway`: run the gateway until it is told to stop."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, default_gateway_directory
from moltbot.cli.output import EXIT_INTERRUPTED, STOPPED_EARLY

EXAMPLES = (
    "\b\nExamples:\n  moltbot gateway -w 8 --handler my_agent.py\n  moltbot gateway --host 0.0.0.0 --token-file token"
    "\n\nEvery setting of `moltbot workers info` may stand in moltbot.toml or in the environment (MOLTBOT_MAX_MEMORY=1GB)."
)


def gateway(
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
    flags: dict[str, Any] = {
        "worker_count": workers,
        "sandbox_base_dir": sandbox_dir,
        "handler": handler,
        "host": host,
        "port": port,
        "request_timeout": timeout,
        "token_file": token_file,
    }
    try:
        _run(flags, as_json=as_json)
    except KeyboardInterrupt:
        print(STOPPED_EARLY, file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _run(flags: Mapping[str, Any], *, as_json: bool) -> None:
    from moltbot.cli.loops import run
    from moltbot.cli.serving import serve
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings(flags)
    if "sandbox_base_dir" not in sources:
        settings, sources = load_settings({**flags, "sandbox_base_dir": default_gateway_directory()})
    run(serve(settings, as_json=as_json))
