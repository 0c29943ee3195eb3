"""What each isolation level costs beside the weakest one: a worker's start, a request, calls of the handler, memory.

Measured, one router with one worker at each level, side by side and in turns: from the spawn of a worker to its READY, after a
`kill -9` with restarts that do not wait; `route()` one at a time; small file calls, `stat`, echoes over a socketpair and over
TCP on the loopback, timed inside of the worker; memory (PSS) of the worker's whole process tree. The floor is the level
`directories`: the same worker without a wall. A level that does not work here is left out, with the reason. Not
measured: the probe at a gateway's start (one more worker, once), disks other than the base directory's, many workers at once,
the small files in memory that a wall makes for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.runner import (
    Plan,
    Row,
    at_most,
    compared,
    in_turns,
    percentile,
    running_router,
    scratch,
    skipped,
)
from moltbot.core.errors import IsolationUnavailable
from moltbot.core.events import WorkerChanged
from moltbot.core.messages import Request
from moltbot.router.gateway_router import GatewayRouter

HANDLER = str(Path(__file__).with_name("walled.py"))
FLOOR = "directories"
WALLS = ("bubblewrap", "landlock")
STARTS_PER_TURN = 4
MIB = 1 << 20
IDLE_SECONDS = 1.0
ROUNDS = 3000
CALLS = {
    "files": "write, rename, read, stat of 1 KiB",
    "stats": "stat",
    "pair": "echo over a socketpair",
    "loopback": "echo over TCP on the loopback",
}

Measure = Callable[[GatewayRouter], Awaitable[float]]


def measure(plan: Plan) -> list[Row]:
    return [row for level in WALLS for row in plan.run(_measure(plan, level))]


async def _measure(plan: Plan, level: str) -> list[Row]:
    with scratch() as base:
        try:
            async with _at(base, level) as router, _at(base, FLOOR) as floor:
                return await _compare(plan, level, router, floor)
        except IsolationUnavailable as error:
            return [skipped(f"isolation level {level}", str(error))]


def _at(base: Path, level: str) -> contextlib.AbstractAsyncContextManager[GatewayRouter]:
    return running_router(
        base / level,
        handler=HANDLER,
        worker_count=1,
        isolation=level,
        restart_delay=0,
        max_restart_attempts=1_000_000,
    )


async def _compare(plan: Plan, level: str, router: GatewayRouter, floor: GatewayRouter) -> list[Row]:
    """The rows of one level beside the floor."""

    async def turns(how: Measure) -> tuple[list[float], list[float]]:
        return await in_turns(plan, lambda: how(router), lambda: how(floor))

    # One here, one there: a start is short, and what else the machine does comes in longer stretches.
    many = replace(plan, turns=plan.turns * STARTS_PER_TURN)
    starts, floors = await in_turns(many, lambda: _start(router), lambda: _start(floor))
    added = statistics.median(mine - theirs for mine, theirs in zip(starts, floors, strict=True))
    await asyncio.sleep(IDLE_SECONDS)
    rows = [
        compared(f"{level}: spawn to READY", "ms", starts, floors),
        Row(f"{level}: added to a start", "ms", added, aim=at_most(15) if level == WALLS[0] else None),
        compared(f"{level}: idle worker, PSS of its tree", "MiB", [_memory(router)], [_memory(floor)]),
        compared(f"{level}: route(), one at a time, p50", "us", *await turns(_median_request(plan))),
    ]
    for kind, what in CALLS.items():
        if kind == "loopback" and level != WALLS[0]:
            continue  # without a network of its own, a worker has no internet sockets
        rows.append(compared(f"{level}: {what}", "us", *await turns(_calls(kind))))
    return rows


async def _start(router: GatewayRouter) -> float:
    """Milliseconds from spawn to READY, after a kill."""
    with router.events() as events:
        os.kill(_pid(router), signal.SIGKILL)
        begun = 0.0
        async for event in events:
            if isinstance(event, WorkerChanged) and event.state == "starting":
                begun = event.at
            if isinstance(event, WorkerChanged) and event.state == "ready":
                return (event.at - begun) * 1000
    raise AssertionError("the events ended")


def _median_request(plan: Plan) -> Measure:
    async def requests(router: GatewayRouter) -> float:
        """Microseconds of a request, in the middle of one slice."""
        times = []
        end = time.perf_counter() + plan.seconds
        for index in itertools.count():
            begun = time.perf_counter()
            if begun >= end:
                break
            await router.route(Request("echo", f"user-{index % 8}", {"message": "hello", "turn": 7}))
            times.append(time.perf_counter() - begun)
        return percentile(times, 50) * 1e6

    return requests


def _calls(kind: str) -> Measure:
    async def calls(router: GatewayRouter) -> float:
        """Microseconds of a round, as the worker measured it."""
        reply = await router.route(Request(kind, "user-0", ROUNDS))
        return float(reply.payload)

    return calls


def _pid(router: GatewayRouter) -> int:
    status = router.get_status()
    assert status is not None
    pid = status.workers[0].pid
    assert pid is not None
    return pid


def _memory(router: GatewayRouter) -> float:
    """PSS of the worker, of what started it up to this process, and of what it started, in MiB."""
    root = psutil.Process(_pid(router))
    while (parent := root.parent()) is not None and parent.pid != os.getpid():
        root = parent
    tree = [root, *root.children(recursive=True)]
    return float(sum(process.memory_full_info().pss for process in tree)) / MIB
