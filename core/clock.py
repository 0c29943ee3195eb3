"""Time as something that is passed in.

Every decision that depends on time takes a `Clock` (or the time itself), so tests turn the hands instead of waiting.
Wall-clock time is only for people (`time()`); deadlines and durations use `monotonic()`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A pending callback."""

    def cancel(self) -> None:
        """Forget the callback; harmless when it has run."""


class Clock(Protocol):
    """What the system asks of time; all values are seconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; its zero means nothing."""

    def time(self) -> float:
        """Seconds since 1970, for showing and storing."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the event loop in `delay` seconds."""

    async def sleep(self, delay: float) -> None:
        """Return in `delay` seconds."""


class SystemClock:
    """The clock of the machine and of the running event loop."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)
