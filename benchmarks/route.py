"""`GatewayRouter.route()` with a stateless handler, one at a time and 64 at once, against the bare echo.

Measured: the time from the call to the reply in one event loop, with everything that a request passes: pin, lane, limits,
deadline, frames, worker loop, handler. Not measured: HTTP and credentials (`over_http.py`), a user's first request (a commit
to disk), handlers that keep state (a file write per request), large payloads. The floor's children run on the chosen
event loop; our workers are on asyncio's own in any case.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.bare_echo import bare_children
from benchmarks.runner import (
    Plan,
    Row,
    compared,
    in_turns,
    percentile,
    ratio_at_least,
    ratio_at_most,
    running_router,
    scratch,
)
from moltbot.core.messages import Request

AT_ONCE = 64
USERS = [f"user-{index}" for index in range(AT_ONCE)]
PAYLOAD = {"message": "hello, how are you today?", "turn": 7}

Send = Callable[[int], Awaitable[Any]]


def measure(plan: Plan) -> list[Row]:
    return plan.run(_measure(plan))


async def _measure(plan: Plan) -> list[Row]:
    with scratch() as base:
        async with running_router(base) as router, bare_children(plan.loop) as children:

            async def ours(index: int) -> None:
                await router.route(Request("echo", USERS[index], PAYLOAD))

            async def floor(index: int) -> None:
                await children[index % len(children)].call(USERS[index], PAYLOAD)

            await asyncio.gather(*map(ours, range(AT_ONCE)))  # everybody gets their pin
            one = await in_turns(plan, lambda: _one_by_one(plan, ours), lambda: _one_by_one(plan, floor))
            many = await in_turns(plan, lambda: _at_once(plan, ours), lambda: _at_once(plan, floor))
    return [
        compared("route(), one at a time, p50", "us", *_microseconds(one, 50), ratio_at_most(2.0)),
        compared("route(), one at a time, p99", "us", *_microseconds(one, 99)),
        compared(f"route(), {AT_ONCE} at once", "/s", *many, ratio_at_least(0.35)),
    ]


def _microseconds(
    series: tuple[list[list[float]], list[list[float]]], percent: int
) -> tuple[list[float], list[float]]:
    """The percentile of each turn, for ours and for the floor."""
    ours, floor = ([percentile(times, percent) * 1e6 for times in side] for side in series)
    return ours, floor


async def _one_by_one(plan: Plan, send: Send) -> list[float]:
    """Seconds of each call."""
    times = []
    end = time.perf_counter() + plan.seconds
    for index in itertools.cycle(range(AT_ONCE)):
        begun = time.perf_counter()
        if begun >= end:
            break
        await send(index)
        times.append(time.perf_counter() - begun)
    return times


async def _at_once(plan: Plan, send: Send) -> float:
    """Calls per second of AT_ONCE users that each have one under way."""
    begun = time.perf_counter()
    end = begun + plan.seconds

    async def user(index: int) -> int:
        count = 0
        while time.perf_counter() < end:
            await send(index)
            count += 1
        return count

    total = sum(await asyncio.gather(*map(user, range(AT_ONCE))))
    return total / (time.perf_counter() - begun)
