"""The listener by itself, on a port that fails: who is closed for it, by whom, and how often that is told.

How many connections there may be, and who makes room, is in `test_connections.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from moltbot.gateway import listening
from tests.fakes import eventually


class Port:
    """Stands in for a listening socket that a test lets fail, or on which connections come."""

    def __init__(self, *accepted: OSError | socket.socket) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._accepted = list(accepted)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if not self._accepted:
            raise BlockingIOError
        match self._accepted.pop(0):
            case OSError() as error:
                raise error
            case socket.socket() as sock:
                return sock, None

    def close(self) -> None:
        self._socket.close()


@contextlib.asynccontextmanager
async def listener_on(port: Port, seats: listening.Seats) -> AsyncIterator[listening.Listener]:
    listener = listening.Listener(cast(socket.socket, port), seats, lambda seat: asyncio.Protocol(), None)
    try:
        yield listener
    finally:
        await listener.stop()
        port.close()


@pytest.mark.parametrize(
    ("number", "closed", "told"),
    [(errno.EMFILE, 1, "idle ones are closed for them"), (errno.EPERM, 0, "the port lets none in")],
)
async def test_only_what_an_idle_connection_could_help_closes_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, closed: int, told: str
) -> None:
    monkeypatch.setattr(listening, "_PAUSE", 0.0)
    seats, ended = listening.Seats(16), []
    seat = seats.take()
    assert seat is not None
    seat.abort = lambda: ended.append(seat)
    failures = [OSError(number, os.strerror(number)) for _ in range(20)]
    port = Port(*failures)
    async with listener_on(port, seats) as listener:
        with socket.create_connection(port._socket.getsockname()):  # readable from now on
            listener.start()
            await eventually(lambda: not port._accepted)
    assert len(ended) == closed
    assert [told in record.getMessage() for record in caplog.records] == [True], "once, not for each failure"


async def test_a_connection_is_closed_by_whom_it_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transport may still have something to send; before there is one, nobody else would close it."""
    loop = asyncio.get_running_loop()

    async def fail(factory: Callable[[], asyncio.Protocol], *_: object, **__: object) -> None:
        factory()  # from here on asyncio has a transport, which closes the socket
        raise ConnectionResetError

    monkeypatch.setattr(loop, "connect_accepted_socket", fail)
    seats, ours, theirs = listening.Seats(16), [], []
    for _ in range(2):
        near, far = socket.socketpair()
        ours.append(near)
        theirs.append(far)
    with contextlib.ExitStack() as stack:
        for sock in (*ours, *theirs):
            stack.enter_context(sock)
        async with listener_on(Port(ours[0]), seats) as listener:
            listener._accept()
            await eventually(lambda: not seats.taken)
            assert ours[0].fileno() >= 0, "its transport closes it"
        async with listener_on(Port(ours[1]), seats) as listener:
            listener._accept()
            seats.free_one()  # before its task has begun
            await eventually(lambda: ours[1].fileno() < 0)
        assert not seats.taken
