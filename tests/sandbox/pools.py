"""A real pool of real workers whose handler does what its payload says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moltbot.core.clock import SystemClock
from moltbot.core.errors import MoltbotError
from moltbot.core.events import Broadcast, PoolEvent, Subscription
from moltbot.core.frames import Final
from moltbot.core.messages import Request
from moltbot.sandbox.channel import Call
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.pool import WorkerPool
from moltbot.sandbox.supervisor import Supervisor
from tests.fakes import PATIENCE, descendants

OBEDIENT = """
import asyncio, ctypes, os, time
from moltbot import handler

kept = []

@handler("agent")
async def agent(ctx, payload):
    match payload:
        case "pid":
            return os.getpid()
        case "exit":
            os._exit(9)
        case "wait":
            await asyncio.sleep(1000)
        case ["until", path]:
            while not os.path.exists(path):
                await asyncio.sleep(0.01)
            return "done"
        case "block the loop":
            time.sleep(1000)
        case "hold the interpreter's lock":
            while ctypes.PyDLL(None).sleep(1000):  # a signal ends it early
                pass
        case ["allocate", size]:
            kept.append(b"x" * size)
        case "ignore cancellation":
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    pass
        case ["write to descriptor 3", data]:
            os.write(3, data)
            await asyncio.sleep(1000)
    return payload
"""


@dataclass
class Running:
    """A started pool and a subscription to its events since before its start."""

    pool: WorkerPool
    events: Subscription[PoolEvent]
    base: Path
    broadcast: Broadcast[PoolEvent]

    def __getitem__(self, index: int) -> Supervisor:
        return self.pool.workers[f"worker-{index}"]

    def log(self, index: int = 0) -> str:
        path = self.base / f"worker-{index}" / "logs" / "worker.log"
        return path.read_text() if path.exists() else ""

    def send(self, payload: Any, index: int = 0, user: str = "a") -> Call:
        """Dispatch a request as the router does."""
        request = Request("agent", user, payload)
        return self[index].dispatch(request, "r1", 1, lambda _: None)

    async def ask(self, payload: Any, index: int = 0) -> Any:
        return await answer(self.send(payload, index))


async def answer(call: Call) -> Any:
    async with asyncio.timeout(PATIENCE):
        item = await call.next()
    assert isinstance(item, Final)
    return item.frame["payload"]


async def failure(call: Call) -> MoltbotError:
    """The error that the caller of `call` gets."""
    try:
        result = await answer(call)
    except MoltbotError as error:
        return error
    raise AssertionError(f"it succeeded: {result!r}")


def make_pool(tmp_path: Path, source: str = OBEDIENT, **settings: Any) -> Running:
    """A pool that is not started; one worker and prompt restarts unless `settings` say otherwise.

    Without a wall: these tests are about slots and processes, and their handlers tell pids and wait for files anywhere.
    That all of it happens behind walls as well is shown in `tests/router/test_promises_*.py` and `tests/e2e/`.
    """
    file = tmp_path / "author" / "obedient.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    base = tmp_path / "base"
    base.mkdir(mode=0o700, exist_ok=True)
    plain = {"workerCount": 1, "restartDelay": 0, "handler": str(file), "isolation": "directories"}
    values = {**plain, "sandboxBaseDir": base, **settings}
    if values.get("workerCommand"):
        del values["handler"]
    broadcast: Broadcast[PoolEvent] = Broadcast()
    pool = WorkerPool(PoolConfig.read(values), base, SystemClock(), broadcast)
    return Running(pool, broadcast.subscribe(), base, broadcast)


@asynccontextmanager
async def running_pool(tmp_path: Path, source: str = OBEDIENT, **settings: Any) -> AsyncIterator[Running]:
    """A started pool; when it stops, no process of it may be left."""
    before = descendants()
    running = make_pool(tmp_path, source, **settings)
    async with asyncio.timeout(PATIENCE):
        await running.pool.start()
    try:
        yield running
    finally:
        async with asyncio.timeout(PATIENCE):
            await running.pool.stop()
        running.events.close()
    assert descendants() <= before, "a stopped pool leaves no process"
