"""Frames as bytes: frozen, cut anywhere, and nothing but frames accepted."""

from __future__ import annotations

import datetime
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.core.errors import FrameError, ProtocolError
from moltbot.core.framing import Decoder, Frame, encode, encode_checked

# What goes over the wire between versions: never changes.
VECTORS: list[tuple[str, Frame]] = [
    ("0000000180", {}),
    ("0000000b81a46b696e64a470696e67", {"kind": "ping"}),
    ("0000000681a16192c0c3", {"a": [None, True]}),
    ("0000000c81a161cb3ff8000000000000", {"a": 1.5}),
    ("0000000781a161c402ff00", {"a": b"\xff\x00"}),
    ("0000000681a161a2c3a9", {"a": "\u00e9"}),
    ("0000000981a16181a178cd012c", {"a": {"x": 300}}),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=20),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text("abc"), inner, max_size=4)),
    max_leaves=10,
)
frames = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), values, max_size=5)


def announced(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def drain(decoder: Decoder) -> list[Frame]:
    taken = []
    while (item := decoder.next_frame()) is not None:
        taken.append(item[0])
    return taken


@pytest.mark.parametrize(("data", "frame"), VECTORS, ids=range(len(VECTORS)))
def test_the_bytes_of_a_frame_never_change(data: str, frame: Frame) -> None:
    assert encode(frame).hex() == data
    assert encode_checked(frame).hex() == data
    decoder = Decoder()
    decoder.feed(bytes.fromhex(data))
    assert decoder.next_frame() == (frame, len(data) // 2 - 4)


def test_a_frame_fed_byte_by_byte_comes_out_with_its_last_byte() -> None:
    data = encode({"kind": "chunk", "id": 7, "data": "x" * 300})
    decoder = Decoder()
    for byte in data[:-1]:
        decoder.feed(bytes([byte]))
        assert decoder.next_frame() is None
    decoder.feed(data[-1:])
    assert decoder.next_frame() == ({"kind": "chunk", "id": 7, "data": "x" * 300}, len(data) - 4)
    assert decoder.next_frame() is None


def test_several_frames_at_once_come_out_in_order() -> None:
    sent: list[Frame] = [{"n": number} for number in range(1000)]
    decoder = Decoder()
    decoder.feed(b"".join(encode(frame) for frame in sent))
    assert drain(decoder) == sent


@given(st.lists(frames, max_size=6), st.data())
def test_any_frames_survive_any_cuts(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode_checked(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = Decoder()
    taken: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        taken += drain(decoder)
    assert taken == sent


@given(st.binary(max_size=200))
def test_garbage_gives_frames_or_a_frame_error_and_nothing_else(data: bytes) -> None:
    decoder = Decoder(limit=100)
    decoder.feed(data)
    try:
        for frame in drain(decoder):
            assert type(frame) is dict
    except FrameError:
        pass


@given(st.binary(max_size=50))
def test_garbage_of_the_announced_length_is_a_frame_or_a_frame_error(body: bytes) -> None:
    decoder = Decoder()
    decoder.feed(announced(body))
    try:
        assert len(drain(decoder)) == 1
    except FrameError:
        pass


def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    exact = encode({"a": "x" * 95}, limit=100)
    assert len(exact) == 4 + 100
    decoder = Decoder(limit=100)
    decoder.feed(exact)
    assert drain(decoder) == [{"a": "x" * 95}]
    with pytest.raises(FrameError, match="a frame of 101 bytes is over the limit of 100"):
        encode({"a": "x" * 96}, limit=100)


def test_an_oversized_announcement_is_refused_before_its_body_comes() -> None:
    decoder = Decoder(limit=100)
    decoder.feed((101).to_bytes(4, "big"))
    with pytest.raises(FrameError, match="a frame of 101 bytes was announced, the limit is 100"):
        decoder.next_frame()


def test_the_frames_before_a_bad_one_are_still_given() -> None:
    decoder = Decoder(limit=100)
    decoder.feed(encode({"good": 1}) + encode({"good": 2}) + b"\xff\xff\xff\xff")
    assert decoder.next_frame() == ({"good": 1}, 7)
    assert decoder.next_frame() == ({"good": 2}, 7)
    with pytest.raises(FrameError):
        decoder.next_frame()


BODIES = {
    "nothing": b"",
    "a reserved byte": b"\xc1",
    "a cut map": b"\x81\xa1a",
    "a map and more": b"\x80\x80",
    "invalid UTF-8": b"\x81\xa1a\xa1\xff",
    "too deep": b"\x91" * 5000 + b"\x90",
    "a huge count": b"\xdd\xff\xff\xff\xff",
    "a list as key": b"\x81\x90\x01",
    "a map as key": b"\x81\x80\x01",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_what_is_not_msgpack_is_a_frame_error(body: bytes) -> None:
    decoder = Decoder()
    decoder.feed(announced(body))
    with pytest.raises(FrameError, match="a frame is not msgpack"):
        decoder.next_frame()


@pytest.mark.parametrize(("value", "name"), [([], "list"), (None, "NoneType"), (5, "int"), ("kind", "str")])
def test_a_frame_that_is_no_map_is_refused(value: Any, name: str) -> None:
    decoder = Decoder()
    decoder.feed(announced(msgpack.packb(value)))
    with pytest.raises(FrameError, match=f"a frame must be a map, not {name}"):
        decoder.next_frame()


def test_a_frame_error_is_a_protocol_error() -> None:
    assert issubclass(FrameError, ProtocolError)


UNSENDABLE: dict[str, Any] = {
    "an object": object(),
    "a set": {1},
    "a date": datetime.datetime(2020, 1, 1),
    "a huge int": 1 << 64,
    "a lone surrogate": "\ud800",
    "complex": 1j,
}


@pytest.mark.parametrize("value", UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_a_value_that_msgpack_cannot_carry_raises_what_is_documented(value: Any) -> None:
    for pack in (encode, encode_checked):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            pack({"a": value})


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="recursion"):
        encode({"a": endless})


def test_a_map_that_only_the_reader_would_choke_on_is_caught_by_the_checked_form() -> None:
    for key in ((1, 2), 5, None, 1.5):
        frame = {"a": {key: 3}}
        encode(frame)
        with pytest.raises(ValueError, match="is not allowed for map key"):
            encode_checked(frame)


def test_lengths_that_would_cost_far_more_memory_than_bytes_are_refused() -> None:
    for value in ([None] * ((1 << 20) + 1), dict.fromkeys(map(str, range((1 << 18) + 1)))):
        with pytest.raises(ValueError, match="exceeds max_"):
            encode_checked({"a": value})


def test_what_was_taken_is_not_kept() -> None:
    decoder, data = Decoder(), encode({"a": "x" * 1000})
    tracemalloc.start()
    try:
        decoder.feed(data[:1])
        for _ in range(2000):
            decoder.feed(data[1:] + data[:1])  # there is always the beginning of another frame
            assert decoder.next_frame() is not None
            assert decoder.next_frame() is None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
