"""Nothing that a worker starts outlives it, however it detaches itself and however the worker ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from moltbot import IsolationUnavailable, Request, WorkerDied
from moltbot.client.http import GatewayClient
from moltbot.sandbox.isolation.plan import Level
from tests.escape.harness import unavailable
from tests.escape.siege import LEVELS, Siege, besieged, marked
from tests.escape.siege_programs import PRELUDE, handler_file
from tests.fakes import PATIENCE, eventually
from tests.support import Running

# Programs that want to live on; each says "settled" once all of its processes have begun.
DYNASTY = """
os.set_inheritable(3, True)
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
ready, begun = os.pipe()

def settle(*behaviours):
    '''Each in a session of its own, its parent gone; the worker's socket stays open in it.'''
    for behaviour in behaviours:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(begun, b"x")
                behaviour()
            os._exit(0)
        os.wait()

def adopts():
    '''A reaper of its own: orphans below it become its children, not the guard's.'''
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    for _ in range(3):
        if os.fork() == 0:
            if os.fork() == 0:
                linger()
            os._exit(0)
    linger()

def dodges():
    '''Never the same process for long: each lives until it has a child.'''
    while not over():
        if os.fork():
            os._exit(0)
        os.setsid()

def stops():
    os.kill(os.getpid(), signal.SIGSTOP)
    linger()

def writes():
    with open(given["ticks"], "ab", buffering=0) as file:
        while not over():
            file.write(b"%.9f\\n" % time.monotonic())

behaviours = (linger, adopts, stops, writes, *[dodges] * 6)
settle(*behaviours)
for _ in behaviours:
    os.read(ready, 1)
say("settled")
linger()
"""

ENDS = {
    "killed from outside": None,
    "exits": "import os; os._exit(0)",
    "aborts": "import os; os.abort()",
    "shuts its socket": "import socket; socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)",
    "stops itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
}


async def settle(siege: Siege, user: str) -> None:
    assert await siege.attack(DYNASTY, user, ticks=ticks_in(siege.base, siege.level)) == "settled"
    await eventually(lambda: len(siege.marked()) >= 8)


def ticks_in(base: Path, level: Level) -> str:
    """Where `writes` writes, as the worker names it."""
    state = Path("/sandbox/state") if level is Level.BUBBLEWRAP else base / "worker-0" / "state"
    return str(state / "ticks")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", ENDS)
async def test_nothing_outlives_its_worker_and_nothing_of_it_is_there_when_the_next_begins(
    tmp_path: Path, level: Level, end: str
) -> None:
    async with besieged(tmp_path, level, heartbeat_interval=200) as siege:
        user = await siege.attacker()
        await settle(siege, user)
        incarnation = siege.worker().incarnation
        program = ENDS[end]
        if program is None:
            os.kill(siege.pid, signal.SIGKILL)
        else:
            with pytest.raises(WorkerDied):
                await siege.inside(program, user)
        await siege.restarted(incarnation + 1)
        assert siege.marked() == []
        ticks = (siege.root / "state" / "ticks").read_bytes().split(b"\n")[:-1]
        born = (await siege.router.route(Request("born", user))).payload
        assert float(ticks[-1]) < born, "the old process wrote after the new one had begun"


@pytest.mark.parametrize("level", LEVELS)
async def test_a_stop_ends_whoever_ignores_it(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level) as siege:
        user = await siege.attacker()
        await settle(siege, user)
        deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 15)]; answer = 1"
        await siege.inside(deaf, user)
        await siege.resident()
        held = asyncio.create_task(siege.inside("import time; time.sleep(60)", user))
        await eventually(lambda: siege.worker().in_flight == 1)
        await siege.end()
        async with asyncio.timeout(PATIENCE):
            await siege.router.stop()
        assert siege.marked() == []
        with pytest.raises(WorkerDied):
            await held
        siege.over = True


def in_force(siege: Siege, protection: str) -> bool:
    return any(found.in_force for found in siege.worker().protections if found.name == protection)


GUARD = """
outcome = []
for number in (signal.SIGSTOP, signal.SIGKILL):
    try:
        os.kill(given["guard"], number)
        outcome.append("open")
    except OSError as error:
        outcome.append(errno.errorcode[error.errno])
say(outcome)
linger()
"""


async def test_the_guard_of_a_landlocked_worker_is_out_of_its_reach(tmp_path: Path) -> None:
    async with besieged(tmp_path, Level.LANDLOCK) as siege:
        if not in_force(siege, "signals and abstract sockets"):
            pytest.skip("the Landlock of this kernel does not bound signals")
        user = await siege.attacker()
        guard = await siege.inside("import os; answer = os.getppid()", user)
        assert await siege.attack(GUARD, user, guard=guard) == ["EPERM", "EPERM"]
        await settle(siege, user)
        await siege.kill()
        assert siege.marked() == []


async def test_a_stopped_guard_delays_its_end_but_does_not_prevent_it(tmp_path: Path) -> None:
    """At the level `directories` a worker can signal its guard; then the gateway kills the tree itself."""
    async with besieged(tmp_path, Level.DIRECTORIES, heartbeat_interval=200) as siege:
        user = await siege.attacker()
        program = "import os, signal; os.kill(os.getppid(), signal.SIGSTOP); answer = 1"
        await siege.inside(program, user)
        assert await siege.attack('say("settled"); linger()', user) == "settled"
        await siege.kill()
        assert siege.marked() == []


async def test_without_a_wall_a_worker_that_kills_its_guard_is_still_mended(tmp_path: Path) -> None:
    """Open at the level `directories`: with the guard gone, only a delegated cgroup ends what is left."""
    async with besieged(tmp_path, Level.DIRECTORIES) as siege:
        user = await siege.attacker()
        daemon = "if os.fork(): os._exit(0)\nos.setsid()\nsay('settled')\nlinger()"
        assert await siege.attack(daemon, user) == "settled"
        incarnation = siege.worker().incarnation
        with pytest.raises(WorkerDied):
            await siege.inside("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", user)
        await siege.restarted(incarnation + 1)
        for pid in siege.marked():
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: siege.marked() == [])


@pytest.mark.parametrize("level", LEVELS)
async def test_nothing_outlives_a_killed_gateway(tmp_path: Path, level: Level) -> None:
    base = tmp_path / "base"
    arguments = ("-w", "1", "-s", str(base), "--handler", str(handler_file(tmp_path)))
    marker = f"marker-{secrets.token_hex(8)}"
    with gateway_process(tmp_path, level, *arguments) as gateway:
        program = f"{PRELUDE}{DYNASTY}"
        given = {"ticks": ticks_in(base, level)}
        payload = {"program": program, "marker": marker, "given": given}
        token = (base / "token").read_text().strip()
        async with GatewayClient(gateway.document["url"], token) as client:
            assert (await client.route(Request("attack", "user-a", payload)))["payload"] == "settled"
        await eventually(lambda: len(marked(marker)) >= 8)
        gateway.process.kill()
        await eventually(lambda: marked(marker) == [])


@contextmanager
def gateway_process(directory: Path, level: Level, *arguments: str) -> Iterator[Running]:
    """A gateway as a process of its own; skips where its isolation level does not work."""
    with ExitStack() as stack:
        try:
            gateway = stack.enter_context(Running(directory, *arguments, MOLTBOT_ISOLATION=level))
        except AssertionError as error:
            if "does not work here" not in str(error):
                raise
            unavailable(level, IsolationUnavailable(str(error)))
        yield gateway
