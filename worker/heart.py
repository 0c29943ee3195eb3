"""The worker's heartbeat: a thread that tells the gateway, at every interval, that the process runs and how far the
event loop lags behind.

It beats while the loop is blocked by Python code (the lag grows: wedged) and falls silent when the process is stopped
or C code holds the interpreter's lock (no beat: unresponsive). What follows is judged in `sandbox/health.py`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

from moltbot.core.framing import encode


class Heart(threading.Thread):
    """Beats until stopped; `on_orphaned` is called (in this thread) when the parent process is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        write: Callable[[bytes], None],
        in_flight: Callable[[], int],
        *,
        interval: float,
        on_orphaned: Callable[[], None] | None,
    ) -> None:
        super().__init__(name="heart", daemon=True)
        self._loop = loop
        self._write = write
        self._in_flight = in_flight
        self._interval = interval
        self._on_orphaned = on_orphaned
        self._parent = os.getppid()
        self._stopped = threading.Event()
        self._asked_at: float | None = None
        self._lag = 0.0

    def run(self) -> None:
        while True:
            self._measure()
            frame = {
                "kind": "beat",
                "lag_ms": round(self._current_lag() * 1000, 3),
                "in_flight": self._in_flight(),
                "at": time.time(),
            }
            self._write(encode(frame))
            if self._stopped.wait(self._interval):
                return
            if self._on_orphaned is not None and os.getppid() != self._parent:
                self._on_orphaned()

    def _measure(self) -> None:
        """Ask the loop to answer, unless it still owes the last answer."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed
                self._stopped.set()

    def _answer(self) -> None:
        if self._asked_at is not None:
            self._lag = time.monotonic() - self._asked_at
            self._asked_at = None

    def _current_lag(self) -> float:
        asked_at = self._asked_at
        return self._lag if asked_at is None else time.monotonic() - asked_at

    def stop(self) -> None:
        """Beat no more; does not wait."""
        self._stopped.set()
