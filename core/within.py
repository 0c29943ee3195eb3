"""`asyncio.timeout` by a `Clock`: an end to a wait that a test can bring about by turning the hands.

Many deadlines with one timer are in `deadlines.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from moltbot.core.clock import Clock


@contextlib.asynccontextmanager
async def within(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """Cancel what the block waits for, and raise TimeoutError, once `seconds` of `clock` have passed."""
    async with asyncio.timeout(None) as bound:
        timer = clock.call_later(seconds, partial(expire, bound))
        try:
            yield
        finally:
            timer.cancel()


def expire(bound: asyncio.Timeout) -> None:
    """End an `asyncio.timeout` block that is open, now; any moment that is past means that."""
    bound.reschedule(0.0)
