"""The socket of a channel, with real socket pairs: partial writes, threads, and ends in every order."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from moltbot.core.wire import Wire

DEADLINE = 30
MEGABYTE = 1 << 20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a half-closed socket takes bytes")


class End:
    """One wire and what it told."""

    def __init__(self, sock: socket.socket) -> None:
        self.received = bytearray()
        self.closes = 0
        self._changed = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.sock = sock
        self.wire = Wire(sock, asyncio.get_running_loop(), self._data, self._close)

    def _data(self, data: bytes) -> None:
        self.received += data
        self._changed.set()
        self.on_data(data)

    def _close(self) -> None:
        self.closes += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def read(self, size: int) -> bytes:
        await self.until(lambda: len(self.received) >= size)
        return bytes(self.received)

    async def closed(self) -> None:
        await self.until(lambda: self.closes > 0)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[End, End]]:
    one, other = (End(sock) for sock in socket.socketpair())
    yield one, other
    one.wire.close()
    other.wire.close()
    assert one.sock.fileno() == other.sock.fileno() == -1


@pytest.fixture
async def raw() -> AsyncIterator[tuple[End, socket.socket]]:
    """A wire whose other side is a bare socket that nobody reads."""
    one, other = socket.socketpair()
    end = End(one)
    yield end, other
    end.wire.close()
    other.close()


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251 + 1)


async def test_bytes_go_both_ways(pair: tuple[End, End]) -> None:
    one, other = pair
    one.wire.write(b"ping")
    other.wire.write(b"pong")
    assert await other.read(4) == b"ping"
    assert await one.read(4) == b"pong"
    assert (one.wire.written, one.wire.unwritten) == (4, 0)


async def test_many_megabytes_arrive_whole_through_partial_writes(pair: tuple[End, End]) -> None:
    one, other = pair
    data = pattern(8 * MEGABYTE)
    for start in range(0, len(data), MEGABYTE):
        one.wire.write(data[start : start + MEGABYTE])
    assert one.wire.unwritten > 0
    assert one.wire.written + one.wire.unwritten == len(data)
    assert await other.read(len(data)) == data
    assert (one.wire.written, one.wire.unwritten) == (len(data), 0)


async def test_both_sides_write_much_at_once(pair: tuple[End, End]) -> None:
    one, other = pair
    data = pattern(3 * MEGABYTE)
    one.wire.write(data)
    other.wire.write(data[::-1])
    assert await other.read(len(data)) == data
    assert await one.read(len(data)) == data[::-1]


async def test_written_counts_what_the_kernel_took_and_nothing_more(
    raw: tuple[End, socket.socket],
) -> None:
    end, other = raw
    end.wire.write(pattern(4 * MEGABYTE))
    taken = end.wire.written
    assert 0 < taken < 4 * MEGABYTE
    end.wire.write(b"more")
    assert end.wire.written == taken
    end.wire.close()
    other.setblocking(True)
    received = 0
    while data := other.recv(MEGABYTE):
        received += len(data)
    assert received == taken


async def test_a_wire_that_was_blocked_writes_on_later_and_again(raw: tuple[End, socket.socket]) -> None:
    end, other = raw
    loop = asyncio.get_running_loop()
    other.setblocking(False)
    for round_ in range(3):
        data = pattern(MEGABYTE + round_)
        end.wire.write(data)
        assert end.wire.unwritten > 0
        received = bytearray()
        async with asyncio.timeout(DEADLINE):
            while len(received) < len(data):
                received += await loop.sock_recv(other, MEGABYTE)
        assert received == data
        assert end.wire.unwritten == 0


async def test_a_thread_writes_while_the_loop_is_blocked(raw: tuple[End, socket.socket]) -> None:
    end, other = raw
    other.settimeout(DEADLINE)
    thread = threading.Thread(target=end.wire.write, args=(b"beat",))
    thread.start()
    assert other.recv(10) == b"beat"  # the loop stands here, on purpose
    thread.join(DEADLINE)


async def test_writes_of_many_threads_are_never_mixed_or_lost(pair: tuple[End, End]) -> None:
    one, other = pair
    count, size, each = 6, 5000, 60

    def write(letter: int) -> None:
        for _ in range(each):
            one.wire.write(bytes([letter]) * size)

    threads = [threading.Thread(target=write, args=(65 + number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    data = await other.read(count * each * size)
    for thread in threads:
        thread.join(DEADLINE)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert all(len(set(piece)) == 1 for piece in pieces)
    assert sorted({piece[0]: pieces.count(piece) for piece in pieces}.values()) == [each] * count


async def test_the_end_of_the_other_side_is_told_once_after_its_data(pair: tuple[End, End]) -> None:
    one, other = pair
    one.wire.write(pattern(MEGABYTE))
    await other.read(MEGABYTE)
    one.wire.write(b"last")
    one.wire.close()
    await other.closed()
    assert other.received.endswith(b"last")
    await asyncio.sleep(0)
    assert (one.closes, other.closes) == (0, 1)


async def test_a_killed_peer_is_an_end_like_any_other(raw: tuple[End, socket.socket]) -> None:
    end, other = raw
    end.wire.write(b"unread")  # a close with unread data is a reset for the other side
    other.close()
    await end.closed()
    assert end.closes == 1


async def test_close_first_means_no_callback(pair: tuple[End, End]) -> None:
    one, other = pair
    other.wire.close()
    one.wire.close()
    one.wire.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (one.closes, other.closes) == (0, 0)


async def test_writing_after_the_end_is_ignored(pair: tuple[End, End]) -> None:
    one, other = pair
    other.wire.close()
    one.wire.write(b"into the void")
    await one.closed()
    one.wire.write(b"after")
    other.wire.write(b"after")
    assert (one.wire.unwritten, other.wire.written) == (0, 0)


async def test_close_while_bytes_wait_drops_them(raw: tuple[End, socket.socket]) -> None:
    end, _ = raw
    end.wire.write(pattern(4 * MEGABYTE))
    await asyncio.sleep(0)
    end.wire.close()
    await asyncio.sleep(0)
    assert (end.wire.unwritten, end.closes) == (0, 0)


async def test_close_inside_the_data_callback_ends_it_there(pair: tuple[End, End]) -> None:
    one, other = pair
    other.on_data = lambda data: other.wire.close()
    one.wire.write(b"x")
    await other.read(1)
    await one.closed()
    assert (one.closes, other.closes) == (1, 0)


async def test_close_inside_the_data_callback_of_a_peer_that_also_ended(pair: tuple[End, End]) -> None:
    one, other = pair
    other.on_data = lambda data: other.wire.close()
    one.wire.write(b"x")
    one.wire.close()
    await other.read(1)
    await asyncio.sleep(0)
    assert (one.closes, other.closes) == (0, 0)


@on_linux
async def test_a_peer_that_stopped_reading_for_good_costs_no_memory_and_ends_after_its_last_words(
    raw: tuple[End, socket.socket],
) -> None:
    end, other = raw
    other.send(b"last words")
    other.shutdown(socket.SHUT_RD)
    for _ in range(100):
        end.wire.write(pattern(10_000))
    assert (end.wire.written, end.wire.unwritten) == (0, 0)
    await end.closed()
    assert end.received == b"last words"
    await asyncio.sleep(0.05)
    assert (end.closes, end.sock.fileno()) == (1, -1)


@on_linux
async def test_a_peer_that_stopped_reading_and_goes_on_talking_is_not_heard_for_ever(
    raw: tuple[End, socket.socket],
) -> None:
    end, other = raw
    other.settimeout(DEADLINE)
    end.on_data = lambda data: other.sendall(b"again")
    other.send(b"first")
    other.shutdown(socket.SHUT_RD)
    end.wire.write(b"x")
    await end.closed()
    assert end.received.startswith(b"firstagain")
    assert end.closes == 1


@on_linux
async def test_what_it_said_last_may_close_the_wire(raw: tuple[End, socket.socket]) -> None:
    end, other = raw
    end.on_data = lambda data: end.wire.close()
    other.send(b"last words")
    other.shutdown(socket.SHUT_RD)
    end.wire.write(b"x")
    await end.until(lambda: end.sock.fileno() == -1)
    await asyncio.sleep(0.05)
    assert (bytes(end.received), end.closes) == (b"last words", 0)


@on_linux
async def test_bytes_that_wait_for_a_peer_that_then_stops_reading_are_dropped(
    raw: tuple[End, socket.socket],
) -> None:
    end, other = raw
    end.wire.write(pattern(4 * MEGABYTE))
    await asyncio.sleep(0)
    written = end.wire.written
    other.shutdown(socket.SHUT_RD)
    end.wire.write(b"more")
    assert (end.wire.written, end.wire.unwritten) == (written, 0)


def test_a_thread_that_writes_after_the_loop_is_closed_is_harmless() -> None:
    one, other = socket.socketpair()
    loop = asyncio.new_event_loop()
    try:
        wire = Wire(one, loop, lambda data: None, lambda: None)
        loop.close()
        wire.write(pattern(4 * MEGABYTE))
        assert wire.unwritten > 0
    finally:
        one.close()
        other.close()
