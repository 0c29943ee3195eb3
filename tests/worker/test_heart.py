"""The heartbeat: it goes on while the loop is blocked, and tells how far the loop lags behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.framing import Decoder, Frame
from moltbot.worker.context import Context
from moltbot.worker.handlers import Registry
from moltbot.worker.heart import Heart
from tests.worker.peer import DEADLINE, Peer

INTERVAL = 0.005


class Beats:
    """Where a heart writes; `next` waits for a beat, on any thread."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(DEADLINE)
        self._decoder = Decoder()

    def write(self, data: bytes) -> None:
        self._ours.sendall(data)

    def next(self) -> Frame:
        while (item := self._decoder.next_frame()) is None:
            data = self._theirs.recv(4096)
            assert data
            self._decoder.feed(data)
        return item[0]

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def beats() -> Iterator[Beats]:
    beats = Beats()
    yield beats
    beats.close()


def start(
    loop: asyncio.AbstractEventLoop,
    beats: Beats,
    in_flight: Callable[[], int] = lambda: 0,
    on_orphaned: Callable[[], None] | None = None,
) -> Heart:
    heart = Heart(loop, beats.write, in_flight, interval=INTERVAL, on_orphaned=on_orphaned)
    heart.start()
    return heart


def stop(heart: Heart) -> None:
    heart.stop()
    heart.join(DEADLINE)
    assert not heart.is_alive()


async def test_beats_go_on_while_the_loop_is_blocked_and_the_lag_grows(beats: Beats) -> None:
    heart = start(asyncio.get_running_loop(), beats)
    lags = [beats.next()["lag_ms"] for _ in range(20)]  # the loop stands in this line
    stop(heart)
    assert lags == sorted(lags)
    assert lags[-1] > lags[5] > 0
    assert lags[-1] >= 15 * INTERVAL * 1000  # it waited at least that often


async def test_the_lag_falls_when_the_loop_answers_again(beats: Beats) -> None:
    heart = start(asyncio.get_running_loop(), beats)
    blocked = [beats.next()["lag_ms"] for _ in range(20)][-1]
    while (await asyncio.to_thread(beats.next))["lag_ms"] >= blocked:
        pass
    await asyncio.to_thread(stop, heart)


async def test_a_beat_carries_what_the_supervisor_judges(beats: Beats) -> None:
    heart = start(asyncio.get_running_loop(), beats, in_flight=lambda: 7)
    beat = await asyncio.to_thread(beats.next)
    await asyncio.to_thread(stop, heart)
    assert beat.keys() == {"kind", "lag_ms", "in_flight", "at"}
    assert (beat["kind"], beat["in_flight"]) == ("beat", 7)
    assert beat["lag_ms"] >= 0
    assert beat["at"] > 0


def test_a_heart_whose_loop_is_closed_ends(beats: Beats) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    heart = start(loop, beats)
    heart.join(DEADLINE)
    assert not heart.is_alive()


async def test_stop_does_not_wait_and_may_come_twice(beats: Beats) -> None:
    heart = Heart(asyncio.get_running_loop(), beats.write, lambda: 0, interval=3600, on_orphaned=None)
    heart.start()
    await asyncio.to_thread(beats.next)
    heart.stop()
    heart.stop()
    await asyncio.to_thread(heart.join, DEADLINE)
    assert not heart.is_alive()


async def test_a_parent_that_is_still_there_is_not_reported_gone(beats: Beats) -> None:
    gone: list[None] = []
    heart = start(asyncio.get_running_loop(), beats, on_orphaned=lambda: gone.append(None))
    for _ in range(5):
        await asyncio.to_thread(beats.next)
    await asyncio.to_thread(stop, heart)
    assert gone == []


async def test_a_change_of_the_parent_is_told(beats: Beats, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    parent = iter([1000])
    monkeypatch.setattr("os.getppid", lambda: next(parent, 1))
    heart = start(asyncio.get_running_loop(), beats, on_orphaned=gone.set)
    assert await asyncio.to_thread(gone.wait, DEADLINE)
    await asyncio.to_thread(stop, heart)


async def test_a_worker_beats_with_its_requests_in_flight(tmp_path: Path) -> None:
    registry = Registry()
    end = asyncio.Event()

    async def wait(ctx: Context, payload: Any) -> None:
        await end.wait()

    registry.add("wait", wait)
    async with Peer(registry, tmp_path, interval=INTERVAL) as peer:
        assert (await peer.notice("beat"))["in_flight"] == 0
        peer.arrive()
        ids = [peer.request("wait") for _ in range(3)]
        await peer.until(lambda: peer.notices("beat")[-1]["in_flight"] == 3)
        end.set()
        for id in ids:
            await peer.final(id)
        await peer.until(lambda: peer.notices("beat")[-1]["in_flight"] == 0)


async def test_the_beats_of_a_worker_tell_that_a_handler_blocked_its_loop(tmp_path: Path) -> None:
    registry = Registry()
    async with Peer(registry, tmp_path, interval=INTERVAL) as peer:

        async def block(ctx: Context, payload: Any) -> None:
            beats = 0
            while beats < 10:
                threading.Event().wait(INTERVAL)
                with contextlib.suppress(BlockingIOError):
                    beats = peer.sock.recv(1 << 16, socket.MSG_PEEK).count(b"beat")

        registry.add("block", block)
        peer.arrive()
        await peer.final(peer.request("block"))
        await peer.until(lambda: any(beat["lag_ms"] >= 8 * INTERVAL * 1000 for beat in peer.notices("beat")))
