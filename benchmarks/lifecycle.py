"""How long a pool takes to be ready, how long a killed worker takes to come back, and what an idle worker costs in memory.

Measured: `router.start()` of three workers to all READY, in a fresh base directory, libraries already imported; from
`kill -9` of a worker's process to its next READY; private memory (USS) of a worker and of what holds it (a guard, or the two processes
of its wall) a second after the start. Workers run at the strongest isolation level that works here.
The floor of starting is three isolated Python children that import msgpack and send one byte, at once. Not measured: importing the
gateway, the handler's own imports, deaths after the first (they wait on purpose), memory that users and handlers add.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import psutil

from benchmarks.runner import Plan, Row, at_most, compared, running_router, scratch
from moltbot.core.events import WorkerChanged
from moltbot.router.gateway_router import GatewayRouter

WORKERS = 3
MIB = 1 << 20
_CHILD = "import sys; sys.path.append(sys.argv[1]); import msgpack, os; os.write(0, b'x'); sys.stdin.read()"


def measure(plan: Plan) -> list[Row]:
    return plan.run(_measure(plan))


async def _measure(plan: Plan) -> list[Row]:
    starts, floors, kills = [], [], []
    memory: list[tuple[float, float]] = []
    for turn in range(plan.turns + 1):  # the first one warms up
        floor = _bare_start() * 1000
        with scratch() as base:
            begun = time.perf_counter()
            async with running_router(base, worker_count=WORKERS) as router:
                start = (time.perf_counter() - begun) * 1000
                await asyncio.sleep(1)
                if turn:
                    starts.append(start)
                    floors.append(floor)
                    memory += _memory(router)
                    kills += [await _kill(router, worker_id) * 1000 for worker_id in _pids(router)]
    workers, guards = zip(*memory, strict=True)
    together = [worker + guard for worker, guard in memory]
    return [
        compared(f"start to {WORKERS} workers READY", "ms", starts, floors, at_most(300)),
        Row("kill -9 to READY", "ms", statistics.median(kills), aim=at_most(150)),
        Row("idle worker, USS of the worker", "MiB", statistics.median(workers)),
        Row("idle worker, USS of what holds it", "MiB", statistics.median(guards)),
        Row("idle worker, USS of both", "MiB", statistics.median(together), aim=at_most(14)),
    ]


def _pids(router: GatewayRouter) -> dict[str, int]:
    status = router.get_status()
    assert status is not None
    return {worker.worker_id: worker.pid for worker in status.workers if worker.pid is not None}


def _memory(router: GatewayRouter) -> list[tuple[float, float]]:
    """USS of each worker, and of the processes between it and us."""
    found = []
    for pid in _pids(router).values():
        worker = psutil.Process(pid)
        holders = itertools.takewhile(lambda process: process.pid != os.getpid(), worker.parents())
        held = sum(process.memory_full_info().uss for process in holders)
        found.append((worker.memory_full_info().uss / MIB, held / MIB))
    return found


async def _kill(router: GatewayRouter, worker_id: str) -> float:
    """Seconds from the signal to READY."""
    with router.events() as events:
        begun = time.perf_counter()
        os.kill(_pids(router)[worker_id], signal.SIGKILL)
        async for event in events:
            if isinstance(event, WorkerChanged) and (event.worker_id, event.state) == (worker_id, "ready"):
                break
        return time.perf_counter() - begun


def _bare_start() -> float:
    """Seconds until three children, started at once, have each sent a byte."""
    path = str(Path(msgpack.__file__).parents[1])
    pairs = [socket.socketpair() for _ in range(WORKERS)]
    begun = time.perf_counter()
    command = [sys.executable, "-I", "-S", "-c", _CHILD, path]
    children = [subprocess.Popen(command, stdin=theirs.fileno()) for _, theirs in pairs]
    for ours, theirs in pairs:
        theirs.close()
        ours.settimeout(30)
        ours.recv(1)
    seconds = time.perf_counter() - begun
    for ours, _ in pairs:
        ours.close()
    for child in children:
        child.kill()
        child.wait()
    return seconds
