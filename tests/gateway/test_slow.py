"""Whoever sends too slowly is let go, and what they began with them; sockets are raw, so that nothing helps.

Readers who take nothing, or little, are in `test_readers.py`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path

import pytest

from moltbot.gateway import protocol
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE, eventually
from tests.support import BEHAVIOURS, gateway_in, request_bytes

BODY = b'{"type": "echo", "userId": "ada", "payload": 1}'


def deaf(gateway: Gateway, request: bytes) -> socket.socket:
    """A connection that asks and takes nothing of the answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", gateway.port))
    sock.sendall(request)
    return sock


def nobody_is_there(gateway: Gateway) -> bool:
    assert gateway.seats is not None
    return not gateway.seats.taken


def nothing_runs(gateway: Gateway) -> bool:
    status = gateway.router.get_status()
    return status is not None and (status.running_requests, status.queued_requests) == (0, 0)


async def test_a_slow_reader_who_takes_something_is_served_to_the_end(tmp_path: Path) -> None:
    size = 8 << 20
    body = json.dumps({"type": "echo", "userId": "ada", "payload": "x" * size}).encode()
    async with gateway_in(tmp_path / "base", edge={"send_timeout": 500}) as gateway:

        def read() -> int:
            """A few hundred pieces: together they take longer than the timeout, each of them much less."""
            received = 0
            with deaf(gateway, request_bytes(body, "Connection: close")) as sock:
                sock.settimeout(PATIENCE)
                while piece := sock.recv(1 << 15):
                    received += len(piece)
                    threading.Event().wait(0.005)
            return received

        assert await asyncio.to_thread(read) > size


async def answer_to_a_part(gateway: Gateway, request: bytes) -> tuple[bytes, bytes]:
    """What comes until the other end closes, for a request that is never finished."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return head, body


@pytest.mark.parametrize("sent", [0, 1, len(BODY) - 1])
async def test_a_body_that_does_not_come_in_time_is_told_and_the_connection_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    request = request_bytes(BODY)
    async with gateway_in(tmp_path / "base", edge={"body_timeout": 300}) as gateway:
        head, body = await answer_to_a_part(gateway, request[: len(request) - len(BODY) + sent])
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in head
        assert json.loads(body)["code"] == "body_timeout"
        await eventually(lambda: nobody_is_there(gateway))


async def test_after_a_408_nothing_more_is_read(tmp_path: Path) -> None:
    request = request_bytes(BODY)
    async with gateway_in(tmp_path / "base", edge={"body_timeout": 300}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request[:-1])
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
            writer.write(request[-1:] + request)
            assert (await reader.read()).count(b"HTTP/1.1") == 0
        writer.close()


async def test_a_body_that_trickles_ends_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    async with gateway_in(tmp_path / "base", edge={"body_timeout": 300}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request_bytes(b" " * 10_000_000)[:-10_000_000])
        answer = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(PATIENCE):
            while not answer.done():
                writer.write(b" ")
                await asyncio.wait([answer], timeout=0.02)
        assert answer.exception() is not None or answer.result().startswith(b"HTTP/1.1 408 ")
        writer.close()
        await eventually(lambda: nobody_is_there(gateway))


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if "logs" not in path.parts)


async def test_an_upload_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", handler=BEHAVIOURS) as gateway:
        before = files(tmp_path)
        for end in ("close", "abort"):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(request_bytes(b"x" * 5_000_000)[:-2_000_000])
            await writer.drain()
            getattr(writer.transport, end)()
        await eventually(lambda: nobody_is_there(gateway) and nothing_runs(gateway))
        assert files(tmp_path) == before


async def test_who_is_still_sending_what_is_refused_gets_the_answer(tmp_path: Path) -> None:
    """To close before all of it was read would reset the connection, and take the answer along."""

    def send_all() -> bytes:
        with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as sock:
            sock.sendall(b"GET /" + b"x" * 8_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return sock.recv(12)

    async with gateway_in(tmp_path / "base") as gateway:
        assert await asyncio.to_thread(send_all) == b"HTTP/1.0 414"


async def test_a_body_that_breaks_off_is_told_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only when its time is over: what follows can never become the rest of it."""
    head = request_bytes(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with gateway_in(tmp_path / "base", edge={"body_timeout": 600_000}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head + b"5\r\nhello\r\n")
        await eventually(lambda: not nobody_is_there(gateway))
        assert gateway.seats is not None
        await eventually(lambda: not gateway.seats.idle)  # type: ignore[union-attr]  # its head was read
        writer.write(b"no size\r\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        writer.close()
    assert "Traceback" not in caplog.text
