"""What a walled worker can still write to is its socket: what it writes ends only its own incarnation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moltbot import WorkerDied
from moltbot.sandbox.isolation.plan import Level
from tests.escape.siege import LEVELS, besieged

TOOLS = """
import array, os, signal, socket, time, msgpack

def frame(**fields):
    body = msgpack.packb(fields)
    return len(body).to_bytes(4, "big") + body

def write(data):
    while data:
        try:
            data = data[os.write(3, data):]
        except BlockingIOError:  # the gateway reads on, or is gone
            time.sleep(0.001)
        except OSError:
            return
"""
BEAT = 'frame(kind="beat", lag_ms=0, in_flight=0, at=0)'

# What is written to descriptor 3, and the reason for which the worker is ended.
FRAMES = {
    "garbage": ('write(b"\\xc1" * 65536)', "crashed"),
    "text": ('write(b"GET / HTTP/1.1\\r\\n\\r\\n")', "crashed"),
    "a length of four gigabytes": ('write(b"\\xff\\xff\\xff\\xff")', "crashed"),
    "a length over the limit": ('write(((16 << 20) + 1).to_bytes(4, "big"))', "crashed"),
    "an empty frame": ("write(bytes(4))", "crashed"),
    "a list": ('write(b"\\0\\0\\0\\x01\\x90")', "crashed"),
    "lists in lists": ('write((1 << 20).to_bytes(4, "big") + b"\\x91" * (1 << 20))', "crashed"),
    "an unknown kind": ('write(frame(kind="exec", command="id"))', "crashed"),
    "a kind of the gateway": ('write(frame(kind="shutdown", grace_ms=0))', "crashed"),
    "a reply to nobody": ('write(frame(kind="reply", id=4_000_000, payload="forged", usage={}))', "crashed"),
    "replies to another worker's ids": (
        'write(b"".join(frame(kind="reply", id=n, payload=-1, usage={}) for n in range(500, 100_000)))',
        "crashed",
    ),
    "an id that equals 1": ('write(frame(kind="reply", id=True, payload="forged", usage={}))', "crashed"),
    "an id below zero": ('write(frame(kind="reply", id=-1, payload="forged", usage={}))', "crashed"),
    "a huge id": ('write(frame(kind="reply", id=(1 << 64) - 1, payload="forged", usage={}))', "crashed"),
    "chunks without credit": (
        'write(frame(kind="chunk", id=4_000_000, data="x" * 65536) * 100)',
        "crashed",
    ),
    "a flood of ready": ('write(frame(kind="ready", v=1, pid=1, handlers=[]) * 10_000)', "crashed"),
    "a flood of arrivals": ('write(frame(kind="arrived", user_id="user-b", epoch=1) * 10_000)', "crashed"),
    "a flood of departures": ('write(frame(kind="left", user_id="user-b", epoch=1) * 10_000)', "crashed"),
    "a flood of beats": (f"write({BEAT} * 10_000)", "crashed"),
    "a frame that is never whole": ('write((1 << 20).to_bytes(4, "big"))', "unresponsive"),
    "half a length and silence": (
        'write(b"\\0\\0"); os.kill(os.getpid(), signal.SIGSTOP)',
        "unresponsive",
    ),
    "no more words": ("socket.socket(fileno=3).shutdown(socket.SHUT_WR)", "crashed"),
    "a closed socket": ("os.close(3)", "crashed"),
}
# What is read is the same at every level; that the worker ends, and how its end is seen, is the wall's affair.
EVERYWHERE = ("garbage", "half a length and silence", "no more words", "a closed socket")


@pytest.mark.parametrize("level", LEVELS)
async def test_whatever_a_worker_writes_ends_only_its_incarnation(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level, heartbeat_interval=200) as siege:
        open_files = len(os.listdir("/proc/self/fd"))
        names = FRAMES if level is Level.DIRECTORIES else EVERYWHERE
        for number, name in enumerate(names, 2):
            program, reason = FRAMES[name]
            with pytest.raises(WorkerDied) as caught:
                await siege.inside(TOOLS + program)
            assert caught.value.worker == "worker-0", name
            assert caught.value.reason == reason, name
            assert "\n" not in str(caught.value), name
            await siege.restarted(number)
            await siege.resident()
        assert len(os.listdir("/proc/self/fd")) <= open_files + 2, "descriptors of dead workers were kept"


@pytest.mark.parametrize("level", LEVELS)
async def test_an_answer_given_twice_counts_once(tmp_path: Path, level: Level) -> None:
    """The worker answers for its open request itself, and again when the handler is done."""
    async with besieged(tmp_path, level) as siege:
        program = 'for n in range(1, 200): write(frame(kind="reply", id=n, payload="forged", usage={}))\n'
        with pytest.raises(WorkerDied, match="broke the frame protocol"):
            await siege.inside(TOOLS + program)
        await siege.restarted(2)


SENDS_DESCRIPTORS = """
with socket.socket(fileno=os.dup(3)) as copy:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1] * 100))
    answer = "sent"
    for _ in range(8):
        try:
            copy.sendmsg([frame(kind="beat", lag_ms=0, in_flight=0, at=0)], [rights])
        except PermissionError:  # the gateway's end takes none: Linux 6.16
            answer = "refused"
"""


@pytest.mark.parametrize("level", LEVELS)
async def test_descriptors_sent_along_are_not_taken(tmp_path: Path, level: Level) -> None:
    async with besieged(tmp_path, level) as siege:
        open_files = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            assert await siege.inside(TOOLS + SENDS_DESCRIPTORS) in ("sent", "refused")
            await siege.resident()
        assert len(os.listdir("/proc/self/fd")) <= open_files + 2
        assert siege.worker().incarnation == 1


DEAF = """
import asyncio
asyncio.get_running_loop().remove_reader(3)  # else its own loop would see the end and obey
with socket.socket(fileno=os.dup(3)) as copy:
    copy.shutdown(socket.SHUT_RD)
answer = "deaf"
"""


@pytest.mark.parametrize("level", LEVELS)
async def test_a_worker_that_no_longer_listens_is_ended(tmp_path: Path, level: Level) -> None:
    """It goes on beating, but takes no frame: requests to it must not wait for their deadlines."""
    async with besieged(tmp_path, level, request_timeout=1000) as siege:
        await siege.inside(TOOLS + DEAF)
        await siege.resident()
        assert siege.worker().incarnation == 2
