"""Many deadlines, one timer.

Almost every deadline here is dropped long before it is due, so setting and dropping one costs a dict entry, and only the
earliest of all is armed. When it fires, all of them are looked through, so it fires at most every `GRAIN` seconds: what
is due within one grain is told together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from moltbot.core.clock import Clock, Timer

K = TypeVar("K")
GRAIN = 0.02


class Deadlines(Generic[K]):
    """Calls `on_due(key)` once for every key whose time has come and that was not dropped before."""

    def __init__(self, clock: Clock, on_due: Callable[[K], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._due: dict[K, float] = {}
        self._timer: Timer | None = None
        self._armed_for = math.inf

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, seconds: float) -> None:
        """Let `key` be due in `seconds`, in place of an earlier deadline of the same key."""
        due = self._clock.monotonic() + seconds
        self._due[key] = due
        if due < self._armed_for:
            self._arm(due)

    def drop(self, key: K) -> None:
        """Forget the key's deadline; harmless if it has none."""
        self._due.pop(key, None)

    def close(self) -> None:
        """Forget all of them."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_for = None, math.inf

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due
        self._timer = self._clock.call_later(max(0.0, due - self._clock.monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer, self._armed_for = None, math.inf
        now = self._clock.monotonic()
        for key in [key for key, due in self._due.items() if due <= now]:
            if self._due.pop(key, None) is not None:  # an earlier one's `on_due` may have dropped it
                self._on_due(key)
        earliest = min(self._due.values(), default=math.inf)
        if earliest < self._armed_for:
            self._arm(max(earliest, now + GRAIN))
