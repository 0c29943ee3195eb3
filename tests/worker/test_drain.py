"""The worker as a whole: drain, ping, shutdown, and a gateway that goes away or breaks the protocol."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.frames import Final, Notice
from moltbot.core.framing import encode
from moltbot.core.session import Caller
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from moltbot.worker.loop import EXIT_BOOT_FAILED, EXIT_OK, EXIT_ORPHANED, EXIT_PROTOCOL, Worker
from tests.worker.peer import DEADLINE, Peer


class Held(Registry):
    """A handler that ends when told to, and one that ends before its reader has room for what it sent."""

    def __init__(self) -> None:
        super().__init__()
        self.end = asyncio.Event()
        self.add("wait", self.wait)
        self.add("much", self.much)

    async def wait(self, ctx: Context, payload: Any) -> str:
        await self.end.wait()
        return "end"

    async def much(self, ctx: Context, payload: Any) -> None:
        for _ in range(2):
            ctx.emit("much", "x" * 300_000)


def drain(peer: Peer) -> None:
    peer.caller.drain()
    peer.flush()


async def test_an_idle_worker_is_drained_at_once(tmp_path: Path) -> None:
    async with Peer(Held(), tmp_path) as peer:
        drain(peer)
        await peer.notice("drained")
        drain(peer)
        await peer.notice("drained", 2)


async def test_drained_comes_after_the_last_final_and_once(tmp_path: Path) -> None:
    registry = Held()
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        ids = [peer.request("wait") for _ in range(3)]
        await peer.round_trip()
        drain(peer)
        await peer.round_trip()
        assert peer.notices("drained") == []
        registry.end.set()
        await peer.notice("drained")
        assert all(peer.finals(id) for id in ids)
        await peer.round_trip()
        assert len(peer.notices("drained")) == 1


async def test_a_request_that_comes_while_draining_is_still_served(tmp_path: Path) -> None:
    registry = Held()
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        first = peer.request("wait")
        drain(peer)
        second = peer.request("wait")
        refused = peer.request("nope")
        assert (await peer.final(refused)).frame["code"] == "unknown_type"
        assert peer.notices("drained") == []
        registry.end.set()
        await peer.notice("drained")
        assert peer.finals(first)
        assert peer.finals(second)


@pytest.mark.parametrize("how", ["read", "cancel"])
async def test_drained_waits_for_a_final_that_waits_for_its_reader(tmp_path: Path, how: str) -> None:
    async with Peer(Held(), tmp_path, reading=False) as peer:
        peer.arrive()
        id = peer.request("much")
        await peer.until(lambda: len(peer.streamed(id, "event")) == 1)
        drain(peer)
        await peer.round_trip()
        assert peer.notices("drained") == []
        if how == "cancel":
            peer.cancel(id)
        else:
            peer.reading = True
            peer.read(id)
        await peer.notice("drained")
        assert peer.finals(id)


async def test_shutdown_ends_the_worker_and_requests_in_flight(tmp_path: Path) -> None:
    registry = Held()
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        id = peer.request("wait")
        await peer.round_trip()
        peer.caller.shutdown(1000)
        peer.flush()
        await peer.until(lambda: peer.closed)
        assert peer.finals(id) == []
        assert await peer.worker == EXIT_OK


async def test_a_gateway_that_goes_away_ends_the_worker_and_interrupts_its_handlers(tmp_path: Path) -> None:
    registry = Registry()
    interrupted = asyncio.Event()

    async def wait(ctx: Context, payload: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    registry.add("wait", wait)
    async with Peer(registry, tmp_path) as peer:
        peer.arrive()
        peer.request("wait")
        await peer.round_trip()
        peer.wire.close()
        assert await peer.worker == EXIT_ORPHANED
        assert interrupted.is_set()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc1",
        encode({"kind": "nonsense"}),
        encode({"kind": "cancel"}),
        encode({"kind": "request", "id": 5}),
    ],
    ids=range(5),
)
async def test_a_gateway_that_breaks_the_protocol_ends_the_worker(tmp_path: Path, data: bytes) -> None:
    async with Peer(Held(), tmp_path) as peer:
        peer.wire.write(data)
        await peer.until(lambda: peer.closed)
        assert await peer.worker == EXIT_PROTOCOL


async def test_a_request_before_the_worker_is_ready_is_refused(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    caller = Caller()
    caller.request("agent", "ada", None, epoch=1, deadline_ms=1, meta={})
    worker = asyncio.create_task(Worker(theirs).serve())
    with ours:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, caller.data_to_send())
        async with asyncio.timeout(DEADLINE):
            (event,) = caller.receive(await loop.sock_recv(ours, 4096))
        assert isinstance(event, Final)
        assert (
            event.frame["message"] == "no handler answers type 'agent': there is none, the worker is booting"
        )
    assert await asyncio.wait_for(worker, DEADLINE) == EXIT_ORPHANED


async def test_another_version_of_the_protocol_is_refused_at_boot(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    worker = asyncio.create_task(Worker(theirs).serve())
    hello = {"kind": "hello", "v": 99, "worker_id": "worker-0", "incarnation": 1, "config": {}}
    with ours:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, encode(hello))
        async with asyncio.timeout(DEADLINE):
            (event,) = Caller().receive(await loop.sock_recv(ours, 4096))
            assert await worker == EXIT_BOOT_FAILED
    assert isinstance(event, Notice)
    assert event.frame["message"] == "the gateway speaks protocol 99, this worker 1"
