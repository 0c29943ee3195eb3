"""What a large frame may be made of: bytes as many as fit, lists and maps in a number that memory can bear."""

from __future__ import annotations

import subprocess
import sys

import msgpack
import pytest

from moltbot.core.errors import FrameError
from moltbot.core.framing import MAX_FRAME_BYTES, Decoder, Frame, encode, encode_checked

MB = 1 << 20
NESTED, EMPTY = b"\x91", b"\x80"  # a list of one, a map of none

# In a process of its own, so that its peak is this frame's alone. It prints the growth in KB and the error's name.
IN_A_CHILD = """
import resource, sys
from moltbot.core.framing import Decoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

decoder = Decoder()
decoder.feed(sys.stdin.buffer.read())
before = peak()
try:
    decoder.next_frame()
    how = "taken"
except Exception as error:
    how = type(error).__name__
print(peak() - before, how)
"""


def announced(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def listed(*items: bytes) -> bytes:
    """A list of what is encoded already."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def many(item: bytes, size: int) -> bytes:
    """A frame of about `size` bytes: lists, each as long as a list may be, of lists of `item`."""
    inner = listed(*([item] * ((1 << 16) // len(item))))
    return announced(b"\x81\xa1a" + listed(*([inner] * (size // len(inner)))))


def decoded(data: bytes) -> Frame:
    decoder = Decoder()
    decoder.feed(data)
    item = decoder.next_frame()
    assert item is not None
    assert item[1] == len(data) - 4
    return item[0]


# Each byte is a map or a list of its own, which would be hundreds of MB in memory; all lengths are small.
BOMBS = {
    "maps in lists": EMPTY,
    "lists in lists": b"\x90",
    "lists around maps": NESTED * 7 + EMPTY,
    "maps around maps": (b"\x81\xa1a" * 5) + EMPTY,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_millions_of_lists_and_maps_in_one_another_are_refused(bomb: str) -> None:
    data = many(BOMBS[bomb], 15 * MB)
    assert 14 * MB < len(data) < MAX_FRAME_BYTES
    with pytest.raises(FrameError, match="lists and maps in one frame"):
        decoded(data)


def test_and_that_costs_little_memory() -> None:
    data = many(EMPTY, 15 * MB)
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD], input=data, capture_output=True, check=True, timeout=60
    )
    growth, how = ended.stdout.decode().split()
    assert how == "FrameError"
    kilobytes = int(growth) >> (10 if sys.platform == "darwin" else 0)
    assert kilobytes < 150 << 10, "all of it would be ten times that"


def test_one_large_string_is_fine() -> None:
    frame = {"kind": "reply", "payload": "x" * (10 * MB)}
    assert decoded(encode(frame)) == frame


def test_one_large_block_of_bytes_is_fine() -> None:
    frame = {"payload": bytes(15 * MB)}
    assert decoded(encode_checked(frame)) == frame


def test_a_hundred_thousand_maps_are_fine() -> None:
    frame = {"payload": [{"number": number, "name": "x" * 80} for number in range(100_000)]}
    data = encode_checked(frame)
    assert len(data) > 9 * MB
    assert decoded(data) == frame


def test_a_million_numbers_are_fine() -> None:
    frame = {"payload": list(range(1_000_000))}
    assert decoded(encode_checked(frame)) == frame


def test_what_would_be_refused_there_is_not_sent_from_here() -> None:
    frame: Frame = {"payload": [[{}] * 100_000 for _ in range(5)]}
    with pytest.raises(ValueError, match="lists and maps in one frame"):
        encode_checked(frame)


@pytest.mark.parametrize("empty", [{}, []], ids=["maps", "lists"])
def test_the_bound_is_sharp(empty: object) -> None:
    """The frame itself and the list around them count too."""
    most = 399_998
    taken: list[object] = decoded(announced(msgpack.packb({"a": [empty] * most})))["a"]
    assert len(taken) == most
    with pytest.raises(FrameError):
        decoded(announced(msgpack.packb({"a": [empty] * (most + 1)})))
