"""Frames as bytes: a 4-byte big-endian length, then one msgpack map. Sans-IO: bytes in, maps out.

What the maps mean is in `session.py`; the table of frames is in `docs/reference/frames.md`.
"""

from __future__ import annotations

from typing import Any

import msgpack

from moltbot.core.errors import FrameError

MAX_FRAME_BYTES = 16 << 20
_HEADER = 4
# Keys are text or bytes: others could be chosen to collide in a dict. Lengths are bounded because an empty item costs one byte
# on the wire and a hundred times that in memory.
_UNPACK: dict[str, Any] = {"strict_map_key": True, "max_array_len": 1 << 20, "max_map_len": 1 << 18}

# Lengths bound one item; in a large frame the items are counted too, for there many can lie in one another.
_COUNTED_FROM = 256 << 10
_MOST_ITEMS = 400_000

Frame = dict[str, Any]


def encode(frame: Frame, limit: int = MAX_FRAME_BYTES) -> bytes:
    """Return the bytes of one frame.

    Raises FrameError if the body is over `limit` bytes, and TypeError, ValueError or OverflowError if msgpack cannot carry a value.
    """
    body: bytes = msgpack.packb(frame)
    if len(body) > limit:
        raise FrameError(
            f"a frame of {len(body)} bytes is over the limit of {limit}: send less, or stream it in pieces"
        )
    return len(body).to_bytes(_HEADER, "big") + body


def encode_checked(frame: Frame, limit: int = MAX_FRAME_BYTES) -> bytes:
    """As `encode`, and sure that the other side can read it; for values that strangers' code made.

    msgpack packs some values that no one can unpack, such as a map whose key is a list or a number: these raise ValueError here.
    """
    data = encode(frame, limit)
    try:
        _load(memoryview(data)[_HEADER:])
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return data


class Decoder:
    """Cuts a byte stream into frames: `feed` it what arrives, then take frames until there is none."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Add bytes; at most one frame of them is kept beyond what was taken."""
        self._buffer += data

    def next_frame(self) -> tuple[Frame, int] | None:
        """Return the next complete frame as `(map, body size in bytes)`, None if more bytes are needed.

        Raises FrameError if the bytes are not a frame; the stream has no meaning after that.
        """
        buffer, start = self._buffer, self._position + _HEADER
        if len(buffer) >= start:
            size = int.from_bytes(buffer[self._position : start], "big")
            if size > self._limit:
                raise FrameError(f"a frame of {size} bytes was announced, the limit is {self._limit}")
            if len(buffer) >= start + size:
                self._position = start + size
                return _unpack(memoryview(buffer)[start : self._position]), size
        if self._position:
            del buffer[: self._position]
            self._position = 0
        return None


def _load(body: memoryview) -> Any:
    if len(body) < _COUNTED_FROM:
        return msgpack.unpackb(body, **_UNPACK)
    left = _MOST_ITEMS

    def count(item: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {_MOST_ITEMS} lists and maps in one frame")
        return item

    return msgpack.unpackb(body, list_hook=count, object_hook=count, **_UNPACK)


def _unpack(body: memoryview) -> Frame:
    try:
        frame = _load(body)
    except (
        Exception
    ) as error:  # the unpacker raises its own errors, ValueError, TypeError and UnicodeDecodeError
        raise FrameError(f"a frame is not msgpack: {str(error) or type(error).__name__}") from None
    finally:
        body.release()
    if not isinstance(frame, dict):
        raise FrameError(f"a frame must be a map, not {type(frame).__name__}")
    return frame
