"""Runs a gateway for as long as `moltbot gateway` lives: start, tell where it is, wait for a signal, stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from moltbot.cli.output import STOPPED_EARLY, say, say_json
from moltbot.cli.settings import Settings
from moltbot.cli.wiring import build_gateway
from moltbot.core.collector import spare_requests
from moltbot.gateway.origins import WILDCARDS
from moltbot.gateway.server import Gateway
from moltbot.sandbox.log_lines import line_formatter


async def serve(settings: Settings, *, as_json: bool) -> None:
    """Run until the first SIGINT or SIGTERM, then stop in order; raises what starting raises.

    Raises KeyboardInterrupt if SIGINT came before it listened; after SIGTERM it just ends.
    """
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    _end_on_signals(ended)
    service = build_gateway(settings)
    with _log_to_stderr(log_user_ids=settings.log_user_ids) as begin:
        starting = asyncio.create_task(service.start())
        try:
            either: set[asyncio.Future[Any]] = {starting, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                await service.stop()
                if ended.result() == signal.SIGINT:
                    raise KeyboardInterrupt
                print(STOPPED_EARLY, file=sys.stderr)
                return
            starting.result()
            spare_requests()
            begin()
            _tell_started(service, settings, as_json=as_json)
            await ended
            if not as_json:
                _tell_stopping(service)
        finally:
            await asyncio.gather(starting, return_exceptions=True)
            await service.stop()


def _end_on_signals(ended: asyncio.Future[int]) -> None:
    """The first signal asks for an orderly end; after it the second one has its usual, deadly effect."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def end(received: int) -> None:
        if not ended.done():
            ended.set_result(received)
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, end, number)


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


def _tell_stopping(service: Gateway) -> None:
    status = service.router.get_status()
    running = status.running_requests if status is not None else 0
    requests = "1 request still runs" if running == 1 else f"{running} requests still run"
    say(f"Stopping; {requests}. Press Ctrl+C again to stop at once.")


def _on_tmpfs(directory: Path) -> bool:
    mounts = [m for m in psutil.disk_partitions(all=True) if directory.is_relative_to(m.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda m: len(m.mountpoint)).fstype == "tmpfs"


@contextlib.contextmanager
def _log_to_stderr(*, log_user_ids: bool) -> Iterator[Callable[[], None]]:
    """Let the operator see what goes wrong, from the call of what this yields on; all of it is in the pool's own log.

    What is logged before is kept back: it is shown then, and never if the start fails, whose one sentence says it all.
    """
    stderr = logging.StreamHandler()
    stderr.setFormatter(line_formatter("text", log_user_ids=log_user_ids))
    handler = logging.handlers.MemoryHandler(1, logging.WARNING, flushOnClose=False)
    handler.setLevel(logging.WARNING)

    def begin() -> None:
        handler.setTarget(stderr)
        handler.flush()

    logger = logging.getLogger("moltbot")
    logger.addHandler(handler)
    try:
        yield begin
    finally:
        logger.removeHandler(handler)
        handler.close()
