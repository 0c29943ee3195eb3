"""`moltbot gateway`: run the gateway until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moltbot.cli.connect import Json, default_gateway_directory
from moltbot.cli.output import say, say_json

if TYPE_CHECKING:
    from moltbot.cli.settings import Settings

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
    from moltbot.cli.settings import load_settings
    from moltbot.cli.wiring import run

    flags: dict[str, Any] = {
        "worker_count": workers,
        "sandbox_base_dir": sandbox_dir,
        "handler": handler,
        "host": host,
        "port": port,
        "request_timeout": timeout,
        "token_file": token_file,
    }
    settings, sources = load_settings(flags)
    if "sandbox_base_dir" not in sources:
        settings, sources = load_settings(flags | {"sandbox_base_dir": default_gateway_directory()})
    _log_to_stderr()
    run(_serve(settings, as_json=as_json))


async def _serve(settings: Settings, *, as_json: bool) -> None:
    from moltbot.cli.wiring import build_gateway

    ended = asyncio.Event()
    _end_on_signals(ended)
    service = build_gateway(settings)
    starting = asyncio.create_task(service.start())
    stop = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            await service.stop()
            return
        starting.result()
        _tell_started(service, settings, as_json=as_json)
        await stop
        if not as_json:
            status = service.router.get_status()
            running = status.running_requests if status is not None else 0
            say(f"Stopping; {running} requests still run. Press Ctrl+C again to stop at once.")
    finally:
        stop.cancel()
        await asyncio.gather(starting, stop, return_exceptions=True)
        await service.stop()


def _end_on_signals(ended: asyncio.Event) -> None:
    """The first signal asks for an orderly end; after it the second one has its usual, deadly effect."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def end() -> None:
        ended.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, end)


def _tell_started(service: Any, settings: Settings, *, as_json: bool) -> None:
    status = service.router.get_status()
    directory = service.router.config.sandbox_base_dir
    if as_json:
        say_json({"url": service.url, "pid": _pid(), "directory": str(directory), "status": status.to_json()})
        return
    say(
        f"Listening on {service.url} with {status.total_workers} workers, isolation level {status.isolation}."
    )
    say(
        f"Base directory {directory}; the operator's token is in {settings.token_file or directory / 'token'}."
    )
    if _on_tmpfs(directory):
        say("Warning: that directory is in memory (tmpfs) and ends with the machine: choose another with -s.")
    say("Press Ctrl+C to stop.")


def _pid() -> int:
    import os

    return os.getpid()


def _on_tmpfs(directory: Path) -> bool:
    import psutil

    mounts = [m for m in psutil.disk_partitions(all=True) if directory.is_relative_to(m.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda m: len(m.mountpoint)).fstype == "tmpfs"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.getLogger("moltbot").addHandler(handler)
