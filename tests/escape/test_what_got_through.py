"""What got through once, tried again by a real worker: descriptors for the gateway, its port, another's process number."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from moltbot import Request
from moltbot.core.errors import MoltbotError
from moltbot.sandbox.isolation.plan import Level
from moltbot.worker.confine import landlock_abi
from tests.escape.hostile import HANDLER, WALLS, gateway_at, run
from tests.escape.siege import LEVELS
from tests.fakes import all_gone, eventually, pids_outside, watch
from tests.support import call

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's own")

SO_PASSRIGHTS = 83

# --- descriptors for the gateway ----------------------------------------------------------------------------

PASSES = """
own, _ = socket.socketpair()
sock = socket.socket(fileno=os.dup(3))
answer = tried({
    "a socket": lambda: socket.send_fds(sock, [b"x"], [own.fileno()]),
    "a file": lambda: socket.send_fds(sock, [b"x"], [0]),
    "many": lambda: socket.send_fds(sock, [b"x"], [0] * 200),
})
"""
LINGERS = """
tcp, (one, other) = socket.socket() if inet else None, socket.socketpair()
linger = struct.pack("ii", 1, 1000)
answer = tried({
    "linger": lambda: (tcp or one).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger),
    "linger of a pair": lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger),
    "another option": lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096),
})
"""


def rights_can_be_refused() -> bool:
    """True if a socket of this kernel can refuse descriptors."""
    one, other = socket.socketpair()
    with one, other:
        try:
            one.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            return False
    return True


@pytest.mark.skipif(not rights_can_be_refused(), reason="needs Linux 6.16")
@pytest.mark.parametrize("level", LEVELS)
async def test_nobody_passes_descriptors_to_the_gateway(tmp_path: Path, level: Level) -> None:
    async with gateway_at(tmp_path, level) as gateway:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            outcome = await run(gateway, PASSES)
            assert outcome == {"a socket": "EPERM", "a file": "EPERM", "many": "EPERM"}
        assert (await call(gateway, "GET", "/livez")).status == 200
        assert await run(gateway, "answer = 7", "bea") == 7
        assert len(os.listdir("/proc/self/fd")) <= before + 4, "what /livez needs, perhaps"


@pytest.mark.parametrize("network", ["none", "full"])
@pytest.mark.parametrize("level", WALLS)
async def test_no_socket_behind_a_wall_waits_at_its_end(tmp_path: Path, level: Level, network: str) -> None:
    async with gateway_at(tmp_path, level, network=network) as gateway:
        outcome = await run(gateway, LINGERS, inet=network == "full")
        assert outcome == {"linger": "EPERM", "linger of a pair": "EPERM", "another option": "done"}
        assert (await call(gateway, "GET", "/livez")).status == 200


# --- the gateway's port -------------------------------------------------------------------------------------

PORTS = """
def take(address, number=None, family=socket.AF_INET):
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port if number is None else number))
        sock.listen()

def reach(address, family=socket.AF_INET):
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect((address, port))

def fast(flags=0x20000000):
    with socket.socket() as sock:
        sock.sendto(b"GET /livez HTTP/1.0\\r\\n\\r\\n", flags, (LOOPBACK, port))

def fast_message():
    with socket.socket() as sock:
        sock.sendmsg([b"x"], [], 0x20000000, (LOOPBACK, port))

def others():
    with socket.create_server((LOOPBACK, 0)) as server:
        with socket.create_connection(server.getsockname(), 10) as sock:
            server.accept()[0].sendall(b"fine")
            assert sock.recv(10) == b"fine"

LOOPBACK = "127.0.0.1"
attempts = {
    "take": lambda: take("127.0.0.2"), "take everywhere": lambda: take(""), "reach": lambda: reach(LOOPBACK),
    "reach elsewhere": lambda: reach("127.0.0.2"), "fast": fast, "fast message": fast_message, "others": others,
}
if inet6:
    attempts["take6"] = lambda: take("::1", family=socket.AF_INET6)
    attempts["reach6"] = lambda: reach("::1", socket.AF_INET6)
answer = tried(attempts)
"""


def has_inet6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(landlock_abi() < 4, reason="Landlock knows ports from ABI 4 on")
@pytest.mark.parametrize("level", WALLS)
async def test_a_worker_with_network_neither_takes_the_gateways_port_nor_reaches_it(
    tmp_path: Path, level: Level
) -> None:
    async with gateway_at(tmp_path, level, network="full") as gateway:
        outcome = await run(gateway, PORTS, port=gateway.port, inet6=has_inet6())
        assert outcome.pop("others") == "done", "any other port is its own affair"
        assert {outcome.pop(name) for name in ("fast", "fast message")} <= {"EOPNOTSUPP", "ENOTSUP"}
        assert set(outcome.values()) == {"EACCES"}, outcome
        assert (await call(gateway, "GET", "/livez")).status == 200


# --- a handler that says it is another process --------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
async def test_the_gateway_signals_the_worker_whoever_it_says_it_is(tmp_path: Path, level: Level) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as decoy:  # noqa: ASYNC220  # returns at once
        source = f"import os\nos.getpid = lambda: {decoy.pid}\n{HANDLER}"
        async with gateway_at(tmp_path, level, source, drain_timeout=0) as gateway:
            status = gateway.router.get_status()
            assert status is not None
            worker = status.workers[0].pid
            assert worker is not None
            assert worker in {child.pid for child in psutil.Process().children(recursive=True)} - {decoy.pid}
            assert await run(gateway, "answer = os.getpid()") == decoy.pid, "it believes so itself"
            inside = await run(gateway, "answer = call(172 if platform.machine() == 'aarch64' else 39)")
            assert pids_outside(worker, inside) == [worker]
            watched = watch(worker)
            frozen = asyncio.ensure_future(gateway.router.route(Request("freeze", "ada")))
            await eventually(
                lambda: (now := gateway.router.get_status()) is not None and now.workers[0].in_flight == 1
            )
        with pytest.raises(MoltbotError):
            await frozen
        assert await all_gone(watched) == []
        assert decoy.poll() is None, "that the gateway kills a worker is nobody else's affair"
        decoy.kill()
