"""Restarts a healthy worker in order: after so many requests, or when it uses much memory. One worker of a pool at a time.

What happens to the slot then is `lifecycle.py`'s; that a worker uses too much, and must be killed, is judged in `health.py`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from moltbot.core.clock import Clock
from moltbot.sandbox import lifecycle
from moltbot.sandbox.lifecycle import ExitReason, Slot, State


class Recyclable(Protocol):
    """What a recycler needs of its supervisor."""

    slot: Slot

    def handle(self, event: lifecycle.Event) -> None:
        """Let the lifecycle decide."""

    async def settled(self, *states: State) -> State:
        """Wait for one of the states."""


class Recycler:
    """The recycler of one slot. turn: held by the one worker of the pool that is being recycled. window: seconds."""

    def __init__(self, worker: Recyclable, turn: asyncio.Lock, window: float, clock: Clock) -> None:
        self._worker = worker
        self._turn = turn
        self._window = window
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._for_memory_at: float | None = None

    def for_memory(self, detail: str) -> None:
        """At most once in a restart window: a worker that needs so much from its start would be restarted for ever."""
        now = self._clock.monotonic()
        if self._for_memory_at is None or now - self._for_memory_at >= self._window:
            self._for_memory_at = now
            self.soon(detail)

    def soon(self, detail: str) -> None:
        """Restart in order as soon as no other worker of the pool is doing so."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._in_turn(detail, self._worker.slot.incarnation))

    async def _in_turn(self, detail: str, incarnation: int) -> None:
        async with self._turn:
            if self._worker.slot.incarnation != incarnation or self._worker.slot.state is not State.READY:
                return
            self._worker.handle(lifecycle.Drain(ExitReason.RECYCLED, detail))
            await self._worker.settled(State.READY, State.BACKOFF, State.QUARANTINED, State.STOPPED)

    async def close(self) -> None:
        """Recycle no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
