"""Whoever takes nothing of an answer is let go, and whoever takes a little again and again is not; sockets are raw.

Who sends too slowly is in `test_slow.py`; streams and their readers who leave, in `test_streams.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from moltbot.gateway import readers
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE, eventually
from tests.gateway.test_slow import nobody_is_there, nothing_runs
from tests.gateway.test_tls import write_pair
from tests.support import call, gateway_in, log_lines, logged, request_bytes, stage

SIZE = 8 << 20  # more than all buffers on the way
KINDS = pytest.mark.parametrize("kind", ["stream", "answer", "export"])
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])


@contextlib.asynccontextmanager
async def served(tmp_path: Path, *, secure: bool, **edge: Any) -> AsyncIterator[Gateway]:
    """A gateway with a stage; a user ada with much to export is there."""
    stage(tmp_path / "stage")
    files = write_pair(tmp_path, trustme.CA()) if secure else {}
    async with gateway_in(tmp_path / "base", edge={**files, **edge}) as gateway:
        await ask(gateway, "count")
        receipt = (await call(gateway, "GET", "/api/users?userId=ada", ssl=False)).json
        (Path(receipt["directories"]["state"]) / "much").write_bytes(b"x" * SIZE)
        yield gateway


async def ask(gateway: Gateway, kind: str = "echo") -> Any:
    document = {"type": kind, "userId": "ada", "payload": 1}
    return (await call(gateway, "POST", "/api/route", json=document, ssl=False)).json["payload"]


def request_for(kind: str, at: Path) -> bytes:
    """For more than all buffers on the way can hold."""
    if kind == "export":
        return request_bytes(b"", target="GET /api/users/export?userId=ada")
    flood = {"type": "flood", "userId": "ada", "payload": {"stage": str(at), "chunks": 1 << 30}}
    if kind == "stream":
        return request_bytes(json.dumps(flood).encode(), "Accept: text/event-stream")
    return request_bytes(json.dumps({"type": "echo", "userId": "ada", "payload": "x" * SIZE}).encode())


def asked(gateway: Gateway, request: bytes, *, secure: bool) -> socket.socket:
    """A connection that has sent this and has room for little; blocks until it is sent."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", gateway.port))
    if secure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(request)
    return sock


@SECURE
@KINDS
async def test_who_takes_nothing_is_let_go_and_the_lane_is_free(
    tmp_path: Path, kind: str, secure: bool
) -> None:
    at = tmp_path / "stage"
    async with served(tmp_path, secure=secure, send_timeout=300) as gateway:
        with await asyncio.to_thread(asked, gateway, request_for(kind, at), secure=secure):
            if kind == "stream":
                await logged(at, "cancelled ada 0")
            await eventually(lambda: nobody_is_there(gateway) and nothing_runs(gateway))
            assert await ask(gateway) == 1
        assert log_lines(at) == (["begin ada 0", "cancelled ada 0"] if kind == "stream" else [])


@SECURE
@KINDS
async def test_who_takes_a_little_again_and_again_is_not(tmp_path: Path, kind: str, secure: bool) -> None:
    """About as much within the timeout as one piece that is sent: less than the buffers on the way hand on at once."""
    enough = 100_000

    def read(gateway: Gateway) -> int:
        received = 0
        with asked(gateway, request_for(kind, tmp_path / "stage"), secure=secure) as sock:
            while received < enough and (piece := sock.recv(2000)):
                received += len(piece)
                threading.Event().wait(0.02)
        return received

    async with served(tmp_path, secure=secure, send_timeout=500) as gateway:
        assert await asyncio.to_thread(read, gateway) >= enough
        await eventually(lambda: nobody_is_there(gateway))


async def test_where_the_kernel_does_not_tell_what_was_taken_the_deaf_are_let_go_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "taken_by", lambda transport: transport.get_write_buffer_size())
    async with served(tmp_path, secure=False, send_timeout=300) as gateway:
        with await asyncio.to_thread(asked, gateway, request_for("stream", tmp_path / "stage"), secure=False):
            await logged(tmp_path / "stage", "cancelled ada 0")
            await eventually(lambda: nobody_is_there(gateway))
