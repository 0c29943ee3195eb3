"""The frames of a session: frozen bytes of each kind, and what breaks the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moltbot.core.errors import FrameError, ProtocolError
from moltbot.core.frames import (
    PROTOCOL_VERSION,
    CancelRequested,
    CreditGranted,
    Final,
    Notice,
    Requested,
    Streamed,
)
from moltbot.core.framing import Frame, encode
from moltbot.core.session import CREDIT_BYTES, Callee, Caller


def opened(caller: Caller) -> None:
    """Begin call 1 and forget its bytes."""
    caller.request("agent", "ada", {"m": "hi"}, epoch=3, deadline_ms=1000, meta={})
    caller.data_to_send()


def serving(callee: Callee) -> None:
    caller = Caller()
    caller.request("agent", "ada", {"m": "hi"}, epoch=3, deadline_ms=1000, meta={})
    assert len(list(callee.receive(caller.data_to_send()))) == 1


REQUEST: Frame = {
    "kind": "request",
    "id": 1,
    "type": "agent",
    "user_id": "ada",
    "payload": {"m": "hi"},
    "epoch": 3,
    "deadline_ms": 1000,
    "meta": {},
}

# A gateway and a worker of different versions, or in different languages, meet here: never changes.
TO_WORKER: dict[str, tuple[Callable[[Caller], object], str]] = {
    "hello": (
        lambda caller: caller.hello("worker-0", 7, {"a": 1}),
        (
            "0000003a85a46b696e64a568656c6c6fa17601a9776f726b65725f6964a8776f726b65722d30ab696e6361726e61"
            "74696f6e07a6636f6e66696781a16101"
        ),
    ),
    "request": (
        lambda caller: caller.request("agent", "ada", {"m": "hi"}, epoch=3, deadline_ms=1000, meta={}),
        (
            "0000005388a46b696e64a772657175657374a2696402a474797065a56167656e74a7757365725f6964a3616461a7"
            "7061796c6f616481a16da26869a565706f636803ab646561646c696e655f6d73cd03e8a46d65746180"
        ),
    ),
    "cancel": (lambda caller: caller.cancel(1), "0000001182a46b696e64a663616e63656ca2696401"),
    "credit": (
        lambda caller: caller.consumed(1, CREDIT_BYTES),
        "0000001883a46b696e64a6637265646974a2696401a16ece00040000",
    ),
    "arrive": (
        lambda caller: caller.arrive("ada", 3),
        "0000002083a46b696e64a6617272697665a7757365725f6964a3616461a565706f636803",
    ),
    "leave": (
        lambda caller: caller.leave("ada"),
        "0000001882a46b696e64a56c65617665a7757365725f6964a3616461",
    ),
    "ping": (Caller.ping, "0000000b81a46b696e64a470696e67"),
    "drain": (Caller.drain, "0000000c81a46b696e64a5647261696e"),
    "shutdown": (
        lambda caller: caller.shutdown(250),
        "0000001a82a46b696e64a873687574646f776ea867726163655f6d73ccfa",
    ),
}

FROM_WORKER: dict[str, tuple[Callable[[Callee], object], str]] = {
    "ready": (
        lambda callee: callee.notice("ready", v=1, pid=5, handlers=["agent"]),
        "0000002484a46b696e64a57265616479a17601a370696405a868616e646c65727391a56167656e74",
    ),
    "chunk": (
        lambda callee: callee.stream(1, "chunk", data="x"),
        "0000001783a46b696e64a56368756e6ba2696401a464617461a178",
    ),
    "event": (
        lambda callee: callee.stream(1, "event", name="n", data=None),
        "0000001d84a46b696e64a56576656e74a2696401a46e616d65a16ea464617461c0",
    ),
    "usage": (
        lambda callee: callee.stream(1, "usage", amounts={"t": 1}),
        "0000001c83a46b696e64a57573616765a2696401a7616d6f756e747381a17401",
    ),
    "reply": (
        lambda callee: callee.finish(1, callee.prepare(1, "reply", payload=5, usage={})),
        "0000002084a46b696e64a57265706c79a2696401a77061796c6f616405a5757361676580",
    ),
    "error": (
        lambda callee: callee.finish(1, callee.prepare(1, "error", code="c", message="m", details=None)),
        "0000002a85a46b696e64a56572726f72a2696401a4636f6465a163a76d657373616765a16da764657461696c73c0",
    ),
    "arrived": (
        lambda callee: callee.notice("arrived", user_id="ada", epoch=3),
        "0000002183a46b696e64a761727269766564a7757365725f6964a3616461a565706f636803",
    ),
    "left": (
        lambda callee: callee.notice("left", user_id="ada", epoch=3, error=None),
        "0000002584a46b696e64a46c656674a7757365725f6964a3616461a565706f636803a56572726f72c0",
    ),
    "beat": (
        lambda callee: callee.notice("beat", lag_ms=1.5, in_flight=2, at=3.0),
        (
            "0000003284a46b696e64a462656174a66c61675f6d73cb3ff8000000000000a9696e5f666c6967687402a26174"
            "cb4008000000000000"
        ),
    ),
    "pong": (lambda callee: callee.notice("pong"), "0000000b81a46b696e64a4706f6e67"),
    "drained": (lambda callee: callee.notice("drained"), "0000000e81a46b696e64a7647261696e6564"),
}


@pytest.mark.parametrize(("send", "data"), TO_WORKER.values(), ids=TO_WORKER.keys())
def test_the_bytes_to_a_worker_never_change(send: Callable[[Caller], object], data: str) -> None:
    caller = Caller()
    opened(caller)
    send(caller)
    assert caller.wants_to_send
    assert caller.data_to_send().hex() == data
    assert not caller.wants_to_send


@pytest.mark.parametrize(("send", "data"), FROM_WORKER.values(), ids=FROM_WORKER.keys())
def test_the_bytes_from_a_worker_never_change(send: Callable[[Callee], object], data: str) -> None:
    callee = Callee()
    serving(callee)
    send(callee)
    assert callee.data_to_send().hex() == data


def test_a_worker_reads_every_kind() -> None:
    callee = Callee()
    stream = b"".join(bytes.fromhex(data) for _, data in TO_WORKER.values())
    assert PROTOCOL_VERSION == 1
    first = {**REQUEST, "id": 1}
    assert list(callee.receive(encode(first) + stream)) == [
        Requested(1, first),
        Notice(
            "hello", {"kind": "hello", "v": 1, "worker_id": "worker-0", "incarnation": 7, "config": {"a": 1}}
        ),
        Requested(2, {**REQUEST, "id": 2}),
        CancelRequested(1),
        CreditGranted(1),
        Notice("arrive", {"kind": "arrive", "user_id": "ada", "epoch": 3}),
        Notice("leave", {"kind": "leave", "user_id": "ada"}),
        Notice("ping", {"kind": "ping"}),
        Notice("drain", {"kind": "drain"}),
        Notice("shutdown", {"kind": "shutdown", "grace_ms": 250}),
    ]


@pytest.mark.parametrize("kind", ["chunk", "event", "usage"])
def test_a_gateway_reads_every_streamed_kind(kind: str) -> None:
    caller = Caller()
    opened(caller)
    data = bytes.fromhex(FROM_WORKER[kind][1])
    (event,) = caller.receive(data)
    assert isinstance(event, Streamed)
    assert (event.id, event.kind, event.size) == (1, kind, len(data) - 4)
    assert caller.open_calls == 1


@pytest.mark.parametrize("kind", ["reply", "error"])
def test_a_gateway_reads_every_final_kind(kind: str) -> None:
    caller = Caller()
    opened(caller)
    (event,) = caller.receive(bytes.fromhex(FROM_WORKER[kind][1]))
    assert isinstance(event, Final)
    assert (event.id, event.kind, caller.open_calls) == (1, kind, 0)


@pytest.mark.parametrize("kind", ["ready", "arrived", "left", "beat", "pong", "drained"])
def test_a_gateway_reads_every_notice(kind: str) -> None:
    (event,) = Caller().receive(bytes.fromhex(FROM_WORKER[kind][1]))
    assert isinstance(event, Notice)
    assert event.kind == event.frame["kind"] == kind


def test_an_error_with_id_zero_is_about_the_worker_itself() -> None:
    frame: Frame = {"kind": "error", "id": 0, "code": "boot_failed", "message": "m", "details": None}
    assert list(Caller().receive(encode(frame))) == [Notice("error", frame)]


REPLY: Frame = {"kind": "reply", "id": 1, "payload": 5, "usage": {}}
ERROR: Frame = {"kind": "error", "id": 1, "code": "c", "message": "m"}
CHUNK: Frame = {"kind": "chunk", "id": 1, "data": "x"}
READY: Frame = {"kind": "ready", "v": 1, "pid": 5, "handlers": []}
BEAT: Frame = {"kind": "beat", "lag_ms": 1, "in_flight": 0, "at": 1}
ARRIVED: Frame = {"kind": "arrived", "user_id": "ada", "epoch": 1}


def without(frame: Frame, name: str) -> Frame:
    return {key: value for key, value in frame.items() if key != name}


WRONG_FROM_WORKER: list[Frame] = [
    {},
    {"kind": None},
    {"kind": ["reply"]},
    {"kind": "ping"},
    {"kind": "request"},
    {"kind": "nonsense"},
    {"kind": b"pong"},
    {**CHUNK, "id": 2},
    {**CHUNK, "id": 0},
    {**CHUNK, "id": -1},
    {**CHUNK, "id": True},
    {**CHUNK, "id": 1.0},
    {**CHUNK, "id": "1"},
    without(CHUNK, "id"),
    without(CHUNK, "data"),
    {"kind": "event", "id": 1, "name": 5, "data": 1},
    {"kind": "event", "id": 1, "name": "n"},
    {"kind": "usage", "id": 1, "amounts": [1]},
    {**REPLY, "id": 99},
    {**REPLY, "id": 0},
    {**REPLY, "usage": 5},
    without(REPLY, "payload"),
    {**ERROR, "code": 5},
    {**ERROR, "message": None},
    {**ERROR, "id": 99},
    without(ERROR, "message"),
    {**READY, "handlers": "agent"},
    {**READY, "handlers": [1]},
    {**READY, "pid": "5"},
    without(READY, "v"),
    {**BEAT, "lag_ms": "1"},
    {**BEAT, "in_flight": 1.5},
    {**BEAT, "at": True},
    {**ARRIVED, "user_id": 5},
    {**ARRIVED, "epoch": None},
    {**ARRIVED, "error": {"text": 5}},
    {**ARRIVED, "kind": "left", "error": 5},
]
WRONG_TO_WORKER: list[Frame] = [
    {},
    {"kind": "pong"},
    {"kind": "reply", "id": 1, "payload": 1},
    {**REQUEST, "id": 1},  # open already
    {**REQUEST, "id": "2"},
    {**REQUEST, "id": 2, "type": 5},
    {**REQUEST, "id": 2, "user_id": None},
    {**REQUEST, "id": 2, "epoch": "3"},
    {**REQUEST, "id": 2, "meta": 5},
    {**REQUEST, "id": 2, "deadline_ms": "soon"},
    without({**REQUEST, "id": 2}, "payload"),
    {"kind": "cancel"},
    {"kind": "cancel", "id": None},
    {"kind": "credit", "id": 1},
    {"kind": "credit", "id": 1, "n": "5"},
    {"kind": "arrive", "user_id": "ada"},
    {"kind": "leave"},
    {"kind": "shutdown", "grace_ms": None},
    {"kind": "hello", "v": 1, "worker_id": "w", "incarnation": 1, "config": []},
]


@pytest.mark.parametrize("frame", WRONG_FROM_WORKER, ids=range(len(WRONG_FROM_WORKER)))
def test_what_a_worker_must_not_send_is_a_protocol_error(frame: Frame) -> None:
    caller = Caller()
    opened(caller)
    events = iter(caller.receive(encode({"kind": "pong"}) + encode(frame)))
    assert next(events) == Notice("pong", {"kind": "pong"})  # what was good before it is still told
    with pytest.raises(ProtocolError) as caught:
        next(events)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("frame", WRONG_TO_WORKER, ids=range(len(WRONG_TO_WORKER)))
def test_what_a_gateway_must_not_send_is_a_protocol_error(frame: Frame) -> None:
    callee = Callee()
    serving(callee)
    with pytest.raises(ProtocolError):
        list(callee.receive(encode(frame)))


def test_a_hostile_kind_makes_a_short_message() -> None:
    with pytest.raises(ProtocolError) as caught:
        list(Caller().receive(encode({"kind": "x\n" * 10_000})))
    assert len(caught.value.message) < 150
    assert caught.value.message.isprintable()


def test_a_second_final_is_a_protocol_error() -> None:
    caller = Caller()
    opened(caller)
    list(caller.receive(encode(REPLY)))
    with pytest.raises(ProtocolError, match="a reply frame for id 1, which is not open"):
        list(caller.receive(encode(REPLY)))


def test_a_chunk_after_the_final_is_a_protocol_error() -> None:
    caller = Caller()
    opened(caller)
    with pytest.raises(ProtocolError, match="a chunk frame for id 1, which is not open"):
        list(caller.receive(encode(REPLY) + encode(CHUNK)))


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    for side in (Caller(max_frame=100), Callee(max_frame=100)):
        with pytest.raises(FrameError):
            list(side.receive(b"\0\0\0\x65"))


def test_a_request_that_cannot_be_carried_begins_nothing() -> None:
    caller = Caller(max_frame=1000)
    bad: list[Any] = [object(), 1 << 64, "\ud800", "x" * 1000]
    for payload in bad:
        with pytest.raises((TypeError, ValueError, OverflowError, FrameError)):
            caller.request("agent", "ada", payload, epoch=1, deadline_ms=1, meta={})
    assert (caller.open_calls, caller.next_id, caller.wants_to_send, caller.queued) == (0, 1, False, 0)
