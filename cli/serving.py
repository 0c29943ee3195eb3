"""Runs a gateway for as long as `moltbot gateway` lives: start, tell where it is, wait for a signal, stop in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import psutil

from moltbot.cli.output import say, say_json
from moltbot.cli.settings import Settings
from moltbot.cli.wiring import build_gateway
from moltbot.gateway.origins import WILDCARDS
from moltbot.gateway.server import Gateway


async def serve(settings: Settings, *, as_json: bool) -> None:
    """Run until the first SIGINT or SIGTERM, then stop in order; raises what starting raises."""
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


def _tell_started(service: Gateway, settings: Settings, *, as_json: bool) -> None:
    status = service.router.get_status()
    assert status is not None
    directory = service.router.config.sandbox_base_dir
    if as_json:
        say_json(
            {"url": service.url, "pid": os.getpid(), "directory": str(directory), "status": status.to_json()}
        )
        return
    plural = "" if status.total_workers == 1 else "s"
    where = f"{service.url} (all addresses)" if settings.host in WILDCARDS else service.url
    say(
        f"Listening on {where} with {status.total_workers} worker{plural}, isolation level {status.isolation}."
    )
    say(f"Base directory {directory}; the operator's token is in {service.token_source}.")
    if _on_tmpfs(directory):
        say("Warning: that directory is in memory (tmpfs) and ends with the machine: choose another with -s.")
    say("Press Ctrl+C to stop.")


def _on_tmpfs(directory: Path) -> bool:
    mounts = [m for m in psutil.disk_partitions(all=True) if directory.is_relative_to(m.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda m: len(m.mountpoint)).fstype == "tmpfs"


def log_to_stderr() -> None:
    """Let the operator see what goes wrong; all of it is in the pool's own log."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.getLogger("moltbot").addHandler(handler)
