"""A pool under attack, for the tests of floods, frames, lifetimes and planted files.

`besieged` starts two workers at one level. Attackers and a *resident* live on worker-0, a *witness* who sends
all the time on worker-1. At the end each answer of the witness must have been right, and its worker be the
same process; the resident must be served by worker-0 with the state of before; nothing of the attack lives.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from moltbot import GatewayRouter, IsolationUnavailable, Request, create_gateway_router
from moltbot.core.events import PoolEvent, Subscription
from moltbot.router.status import WorkerStatus
from moltbot.sandbox.isolation.plan import Level
from tests.escape.harness import unavailable
from tests.escape.siege_programs import PRELUDE, handler_file
from tests.fakes import PATIENCE, change_to, descendants, eventually

LEVELS = tuple(Level)
RESIDENT, WITNESS = "user-a", "user-b"  # on worker-0 and on worker-1
_PACE = 0.01


class Siege:
    """The running router and what the attack and its witnesses need."""

    def __init__(
        self, router: GatewayRouter, base: Path, level: Level, events: Subscription[PoolEvent]
    ) -> None:
        self.router = router
        self.base = base
        self.level = level
        self.events = events
        self.marker = f"marker-{secrets.token_hex(8)}"
        self._answers: list[int] = []
        self._counted: int | None = None
        self._stop = asyncio.Event()
        self._witness: asyncio.Task[None] | None = None
        self._first: WorkerStatus | None = None
        self._used: set[str] = set()
        self.over = False
        """The test has stopped the router itself: nobody is left to be asked."""

    def worker(self, index: int = 0) -> WorkerStatus:
        status = self.router.get_status()
        assert status is not None
        return status.workers[index]

    @property
    def pid(self) -> int:
        """The pid of the worker under attack."""
        pid = self.worker().pid
        assert pid is not None
        return pid

    @property
    def root(self) -> Path:
        """The directory of the worker under attack."""
        return self.base / "worker-0"

    # --- attacking ------------------------------------------------------------------------------------

    async def attacker(self) -> str:
        """A new user on worker-0. Whoever is found for worker-1 first is settled there: both fill evenly."""
        for number in itertools.count():
            user = f"attacker-{number}"
            if user in self._used:
                continue
            self._used.add(user)
            if self.router.get_worker_for_user(user) == "worker-0":
                return user
            await self.router.route(Request("count", user))
        raise AssertionError

    async def attack(self, program: str, user: str | None = None, **given: Any) -> Any:
        """Run `program` as a child of worker-0 and return what it says."""
        payload = {"program": PRELUDE + program, "marker": self.marker, "given": given}
        request = Request("attack", user or await self.attacker(), payload)
        async with asyncio.timeout(PATIENCE):
            reply = await self.router.route(request)
        assert reply.worker_id == "worker-0"
        return reply.payload

    async def inside(self, program: str, user: str | None = None, **given: Any) -> Any:
        """Run `program` in the process of worker-0."""
        payload = {"program": program, "given": given}
        async with asyncio.timeout(PATIENCE):
            return (
                await self.router.route(Request("inside", user or await self.attacker(), payload))
            ).payload

    async def restarted(self, incarnation: int | None = None) -> None:
        """Wait until worker-0 is back."""
        await change_to(self.events, "ready", incarnation=incarnation)

    async def kill(self) -> None:
        """End the worker under attack from outside, and wait until it is back."""
        incarnation = self.worker().incarnation
        os.kill(self.pid, signal.SIGKILL)
        await self.restarted(incarnation + 1)

    def marked(self) -> list[int]:
        """Processes of the attack that live. One look may miss a process that is another all the time."""
        return sorted({pid for _ in range(3) for pid in marked(self.marker)})

    async def trash_emptied(self) -> None:
        """Wait until what was put aside is deleted."""
        await eventually(lambda: os.listdir(self.base / "trash") == [])

    # --- witnesses ------------------------------------------------------------------------------------

    async def begin(self) -> None:
        assert await self.resident() == "worker-0"
        self._witness = asyncio.create_task(self._testify())
        await self.witnessed()
        self._first = self.worker(1)

    async def resident(self) -> str:
        """The resident is served, with the state of before; returns by whom."""
        async with asyncio.timeout(PATIENCE):
            reply = await self.router.route(Request("count", RESIDENT))
        assert self._counted is None or reply.payload == self._counted + 1
        self._counted = reply.payload
        return reply.worker_id

    async def _testify(self) -> None:
        while not self._stop.is_set():
            reply = await self.router.route(Request("count", WITNESS))
            assert reply.worker_id == "worker-1"
            self._answers.append(reply.payload)
            await asyncio.sleep(_PACE)

    async def witnessed(self, more: int = 3) -> None:
        """Wait until the witness has got some answers more than now."""
        assert self._witness is not None
        wanted = len(self._answers) + more
        await eventually(lambda: self._answered(wanted))

    def _answered(self, wanted: int) -> bool:
        assert self._witness is not None
        if self._witness.done():
            self._witness.result()
        return len(self._answers) >= wanted

    async def check(self) -> None:
        """What must hold after any attack."""
        assert await self.resident() == "worker-0"
        await self.witnessed()
        await self.end()
        first = self._answers[0]
        assert self._answers == list(range(first, first + len(self._answers)))
        assert self._first is not None
        now = self.worker(1)
        assert (now.pid, now.restart_count) == (self._first.pid, 0)

    async def dismiss(self) -> None:
        """The witness says no more, whatever they had to say."""
        if self._witness is not None:
            self._witness.cancel()
            await asyncio.gather(self._witness, return_exceptions=True)

    async def end(self) -> None:
        self._stop.set()
        if self._witness is not None:
            async with asyncio.timeout(PATIENCE):
                await self._witness


def pool_at(tmp_path: Path, level: Level, **settings: Any) -> GatewayRouter:
    """A router with two workers at `level`, not started."""
    values = {
        "sandbox_base_dir": tmp_path / "base",
        "worker_count": 2,
        "handler": str(handler_file(tmp_path)),
        "isolation": level,
        "restart_delay": 0,
        "max_restart_attempts": 100,
        "drain_timeout": 0,
    }
    return create_gateway_router(pool_config=values | settings)


@asynccontextmanager
async def besieged(tmp_path: Path, level: Level, **settings: Any) -> AsyncIterator[Siege]:
    """Two workers at `level`; skips where it does not work, unless TEST_REQUIRE_ISOLATION is 1."""
    before = descendants()
    router = pool_at(tmp_path, level, **settings)
    events = router.events()
    siege = Siege(router, tmp_path / "base", level, events)
    try:
        async with started(router, level):
            await siege.begin()
            try:
                yield siege
                if not siege.over:
                    await siege.check()
            finally:
                await siege.dismiss()
        assert siege.marked() == [], "a stopped pool leaves no process of the attack"
        assert descendants() <= before, "a stopped pool leaves no process"
    finally:
        events.close()
        for pid in siege.marked():
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def started(router: GatewayRouter, level: Level) -> AsyncIterator[None]:
    """The router runs; that its level does not work here is a reason to skip, see `unavailable`."""
    try:
        async with asyncio.timeout(PATIENCE):
            await router.start()
    except IsolationUnavailable as error:
        unavailable(level, error)
    try:
        yield
    finally:
        async with asyncio.timeout(PATIENCE):
            await router.stop()


def remove(path: Path) -> None:
    """Delete a tree of any depth, as `shutil.rmtree` cannot."""
    subprocess.run(["rm", "-rf", "--", str(path)], check=True)


def marked(marker: str) -> list[int]:
    """Processes that have `marker` among their arguments, as every program of an attack has."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if marker.encode() in _command(pid)]


def _command(pid: int) -> bytes:
    """The arguments of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
