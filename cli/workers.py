"""`moltbot workers ...`: demo, info, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway
from moltbot.cli.output import say, say_json, table

app = typer.Typer(help="The worker processes.", rich_markup_mode=None, no_args_is_help=True)


@app.command(
    epilog="\b\nExamples:\n  moltbot workers demo -w 3\n  moltbot workers demo -w 3 -t 0 -s /var/tmp/workers"
)
def demo(
    workers: Annotated[int, typer.Option("-w", "--workers", help="Number of workers.")] = 3,
    timeout: Annotated[
        str, typer.Option("-t", "--timeout", help="Stop this long after the story; 0 waits for Ctrl+C.")
    ] = "5s",
    sandbox_dir: Annotated[
        Path | None, typer.Option("-s", "--sandbox-dir", help="Base directory; a fresh one if not given.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 18789, or a free one if that is taken.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a gateway and workers, send real requests, kill a worker, and check that all promises held."""
    from moltbot.cli.demo import run_demo

    raise typer.Exit(
        run_demo(workers=workers, linger=timeout, directory=sandbox_dir, port=port, as_json=as_json)
    )


@app.command()
def info(as_json: Json = False) -> None:
    """Show the architecture, the directories, every setting with its value and source, and the guarantees."""
    from moltbot.cli.info import info_document, info_text
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings({})
    if as_json:
        say_json(info_document(settings, sources))
    else:
        say(info_text(settings, sources))


@app.command(epilog="\b\nExample:\n  moltbot workers status --json")
def status(
    sandbox_dir: SandboxDir = None, url: Url = None, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """Show the workers of the running gateway."""

    async def ask(client: Any) -> Any:
        return await client.workers()

    document = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if as_json:
        say_json(document)
    else:
        say(status_text(document))


def status_text(document: dict[str, Any]) -> str:
    """The status document for people; `document` is what `GET /api/workers` answers."""
    from moltbot.core.units import approximate_size

    headers = [
        "WORKER",
        "STATE",
        "PID",
        "UPTIME",
        "USERS",
        "IN FLIGHT",
        "QUEUED",
        "SERVED",
        "RESTARTS",
        "MEMORY",
        "DISK",
        "LAST EXIT",
    ]
    rows = []
    for worker in document["workers"]:
        last = worker["lastExit"]
        rows.append(
            [
                worker["workerId"],
                worker["state"],
                worker["pid"] or "-",
                f"{worker['uptime'] / 1000:.1f} s",
                worker["users"],
                worker["inFlight"],
                worker["queued"],
                worker["requests"],
                worker["restartCount"],
                approximate_size(worker["memory"]) if worker["memory"] else "-",
                approximate_size(worker["disk"]),
                f"{last['reason']} ({last['detail']})" if last else "-",
            ]
        )
    summary = (
        f"{document['healthyWorkers']} of {document['totalWorkers']} workers ready, {document['queuedRequests']} requests "
        f"waiting, {document['routingTableSize']} users pinned, isolation level {document['isolation']}"
    )
    return "\n".join([summary, table(headers, rows), *_isolation_lines(document)])


def _isolation_lines(document: dict[str, Any]) -> list[str]:
    """What the workers' walls do, and what they do not do here."""
    protections = document["protections"]
    held = ", ".join(item["name"] for item in protections if item["inForce"])
    missing = [f"  {item['name']}: {item['detail']}" for item in protections if not item["inForce"]]
    lines = ["", f"In force: {held}."]
    if missing:
        lines += ["Not in force:", *missing]
    return [*lines, f"WARNING: {document['warning']}."] if document["warning"] else lines
