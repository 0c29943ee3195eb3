"""Connections are bounded, so that nobody can use up what workers need, and nobody idle keeps others out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from moltbot.gateway import listening
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE, eventually
from tests.support import gateway_in, logged, post, request_bytes, stage

ALIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_A_HEAD = b"GET /livez HTTP/1.1\r\nHost: loc"
BOUND = {"max_connections": 16}

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def links(gateway: Gateway, count: int, says: bytes = b"") -> AsyncIterator[list[Link]]:
    """Connections that say one thing, each let in before the next one comes."""
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            stack.callback(writer.close)
            writer.write(says)
            opened.append((reader, writer))
        yield opened


async def answers(link: Link) -> bool:
    """Ask on an open connection; False if it was closed."""
    reader, writer = link
    async with asyncio.timeout(PATIENCE):
        try:
            writer.write(ALIVE)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"status":"alive"}'))
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
    return head.startswith(b"HTTP/1.1 200")


async def is_closed(link: Link) -> bool:
    async with asyncio.timeout(PATIENCE):
        try:
            return await link[0].read() == b""
        except ConnectionError:
            return True


async def test_the_longest_idle_connection_makes_room_for_a_new_one(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", edge=BOUND) as gateway, links(gateway, 16) as old:
        for link in old:
            assert await answers(link)
        assert await answers(old[0]), "the first is now the one that was idle for the shortest time"
        async with links(gateway, 2) as new:
            assert await answers(new[0])
            assert await answers(new[1])
            assert await is_closed(old[1])
            assert await is_closed(old[2])
            assert await answers(old[0])
            assert await answers(old[3])


async def test_a_connection_with_a_request_under_way_is_never_the_one(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with gateway_in(tmp_path / "base", edge=BOUND, max_concurrent=16) as gateway:
        requests = [
            asyncio.create_task(post(gateway, "hold", f"user-{n}", {"stage": str(at), "n": n}))
            for n in range(16)
        ]
        for n in range(10):  # as many as the worker may run
            await logged(at, f"begin user-{n} {n}")
        await eventually(lambda: status_of(gateway) == 16)
        async with links(gateway, 1) as new:
            assert await is_closed(new[0]), "there was no idle one, so the new one is refused"
        (at / "go").touch()
        assert [(await request).status for request in requests] == [200] * 16
        async with links(gateway, 1) as new:
            assert await answers(new[0])


def status_of(gateway: Gateway) -> int:
    status = gateway.router.get_status()
    assert status is not None
    return status.running_requests + status.queued_requests


async def test_a_form_that_never_ends_keeps_no_place(tmp_path: Path) -> None:
    form = (
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\ncode="
    )
    async with gateway_in(tmp_path / "base", edge=BOUND) as gateway, links(gateway, 16, form) as old:
        async with links(gateway, 1) as new:
            assert await answers(new[0])
        assert await is_closed(old[0])


async def test_who_asks_and_never_reads_keeps_no_place_and_piles_nothing_up(tmp_path: Path) -> None:
    def ask_on_and_on() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", gateway.port))
        sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:  # until the gateway reads no more of it
                sock.sendall(ALIVE * 100)
        return sock

    async with gateway_in(tmp_path / "base", edge=BOUND) as gateway:
        deaf = await asyncio.gather(*(asyncio.to_thread(ask_on_and_on) for _ in range(16)))
        seats = gateway.seats
        assert seats is not None
        try:
            await eventually(lambda: len(seats.idle) == 16)  # what they sent before is still being answered
            async with links(gateway, 1) as new:
                assert await answers(new[0])
        finally:
            for sock in deaf:
                sock.close()


@pytest.fixture
def enough_descriptors() -> Iterator[None]:
    """For 2,000 connections: both ends of each are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 6000:
        if hard != resource.RLIM_INFINITY and hard < 6000:
            pytest.skip(f"only {hard} files may be open here, this needs 6000")
        resource.setrlimit(resource.RLIMIT_NOFILE, (6000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("enough_descriptors")
@pytest.mark.parametrize("says", [b"", HALF_A_HEAD, ALIVE], ids=["silent", "half a head", "answered"])
async def test_two_thousand_idle_connections_keep_nobody_out(tmp_path: Path, says: bytes) -> None:
    async with (
        gateway_in(tmp_path / "base", edge={"max_connections": 500}) as gateway,
        links(gateway, 2000, says),
    ):
        for number in range(5):
            assert (await post(gateway, "echo", "ada", number)).json["payload"] == number


async def trickle(link: Link, piece: bytes) -> None:
    """Send a little, again and again, until the other end has enough of it."""
    reader, writer = link
    while not reader.at_eof():
        try:
            writer.write(piece)
            await asyncio.wait_for(reader.read(1), 0.02)
        except TimeoutError:
            continue
        except ConnectionError:
            return


async def test_a_head_that_trickles_ends_when_idle_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "IDLE_SECONDS", 0.3)
    async with gateway_in(tmp_path / "base") as gateway, links(gateway, 2) as (first, second):
        assert await answers(second)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(
                trickle(first, b"G"), trickle(second, b"\r\n")
            )  # the second between two requests
        assert (await post(gateway, "echo", "ada", 1)).json["payload"] == 1


async def test_a_head_is_bounded_as_a_whole(tmp_path: Path) -> None:
    line = b"X-%d: " + b"x" * 7000 + b"\r\n"
    async with gateway_in(tmp_path / "base") as gateway, links(gateway, 1, HALF_A_HEAD) as [(reader, writer)]:
        writer.write(b"\r\n" + b"".join(line % n for n in range(99)))
        async with asyncio.timeout(PATIENCE):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert b'"code": "headers_too_large"' in body


def test_descriptors_are_left_for_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    assert listening.connection_limit(4) + 4 * 8 + 100 == 1024
    assert listening.connection_limit(4, wanted=500) == 500
    assert listening.connection_limit(4, wanted=5000) + 4 * 8 + 100 == 1024


async def test_all_places_are_free_again_when_everybody_has_left(tmp_path: Path) -> None:
    body = b'{"type": "echo", "userId": "ada"}'
    async with gateway_in(tmp_path / "base", edge=BOUND) as gateway:
        async with links(gateway, 8, HALF_A_HEAD), links(gateway, 8, request_bytes(body)[:-5]):
            assert (await post(gateway, "echo", "ada", 1)).status == 200
        seats = gateway.seats
        assert seats is not None
        await eventually(lambda: not seats.taken and not seats.idle)
