"""A gateway's and a worker's session, joined by plain bytes: calls side by side, credit, cancel, verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from moltbot.core.errors import FrameError, ProtocolError
from moltbot.core.frames import (
    CalleeEvent,
    CallerEvent,
    CancelRequested,
    CreditGranted,
    Final,
    Requested,
    Streamed,
)
from moltbot.core.framing import encode
from moltbot.core.session import Callee, Caller

WINDOW = 1000


class Pair:
    """Both sides; nothing travels until `down` (to the worker) or `up` (to the gateway) is called."""

    def __init__(self, *, credit: int = WINDOW) -> None:
        self.caller = Caller(credit=credit)
        self.callee = Callee(credit=credit)

    def request(self, payload: Any = None) -> int:
        return self.caller.request("agent", "ada", payload, epoch=1, deadline_ms=1000, meta={})

    def begun(self, count: int = 1) -> list[int]:
        """Begin calls and let them reach the worker."""
        ids = [self.request() for _ in range(count)]
        assert [type(event) for event in self.down()] == [Requested] * count
        return ids

    def down(self) -> list[CalleeEvent]:
        return list(self.callee.receive(self.caller.data_to_send()))

    def up(self) -> list[CallerEvent]:
        return list(self.caller.receive(self.callee.data_to_send()))

    def reply(self, id: int, payload: Any = None) -> None:
        self.callee.finish(id, self.callee.prepare(id, "reply", payload=payload, usage={}))


def chunks(events: list[CallerEvent], id: int = 1) -> list[Any]:
    return [event.frame["data"] for event in events if isinstance(event, Streamed) and event.id == id]


def finals(events: list[CallerEvent]) -> list[int]:
    return [event.id for event in events if isinstance(event, Final)]


def test_calls_run_side_by_side_and_end_in_any_order() -> None:
    pair = Pair()
    first, second, third = pair.begun(3)
    pair.callee.stream(second, "chunk", data="b1")
    pair.callee.stream(first, "chunk", data="a1")
    pair.reply(third, "c")
    pair.callee.stream(second, "chunk", data="b2")
    pair.reply(second, "b")
    pair.reply(first, "a")
    events = pair.up()
    assert (chunks(events, first), chunks(events, second)) == (["a1"], ["b1", "b2"])
    assert finals(events) == [third, second, first]
    assert (pair.caller.open_calls, pair.callee.in_flight) == (0, 0)


def test_ids_continue_those_of_earlier_sessions() -> None:
    caller = Caller(first_id=41)
    ids = [caller.request("agent", "ada", None, epoch=1, deadline_ms=1, meta={}) for _ in range(2)]
    assert (ids, caller.next_id) == ([41, 42], 43)


def test_a_slow_reader_stops_only_its_own_call() -> None:
    pair = Pair()
    slow, quick = pair.begun(2)
    received: list[CallerEvent] = []
    for number in range(100):
        for id in (slow, quick):
            pair.callee.stream(id, "chunk", data=f"{number:03}" + "x" * 97)
        for event in pair.up():
            received.append(event)
            if isinstance(event, Streamed) and event.id == quick:
                pair.caller.consumed(quick, event.size)
        pair.down()
    assert len(chunks(received, quick)) == 100
    assert len(chunks(received, slow)) < 12
    assert not pair.callee.may_stream(slow)
    assert pair.callee.may_stream(quick)


def test_what_waits_for_credit_comes_in_order_and_the_final_behind_it() -> None:
    pair = Pair()
    (id,) = pair.begun()
    for number in range(50):
        pair.callee.stream(id, "chunk", data=[number, "x" * 90])
    pair.reply(id, "end")
    received = pair.up()
    assert len(received) < 12
    assert pair.callee.in_flight == 1
    while not finals(received):
        size = sum(event.size for event in received[-5:] if isinstance(event, Streamed))
        pair.caller.consumed(id, max(size, WINDOW // 2))
        assert pair.down() == [CreditGranted(id)]
        received += pair.up()
    assert [data[0] for data in chunks(received)] == list(range(50))
    assert isinstance(received[-1], Final)
    assert pair.callee.in_flight == 0


def test_a_frame_larger_than_the_window_passes_alone() -> None:
    pair = Pair()
    (id,) = pair.begun()
    pair.callee.stream(id, "chunk", data="x" * 10 * WINDOW)
    pair.callee.stream(id, "chunk", data="next")
    (event,) = pair.up()
    assert isinstance(event, Streamed)
    assert event.size > 10 * WINDOW
    pair.caller.consumed(id, event.size)
    assert pair.down() == [CreditGranted(id)]
    assert chunks(pair.up()) == ["next"]


def test_credit_is_granted_in_steps_of_half_the_window() -> None:
    pair = Pair()
    (id,) = pair.begun()
    pair.caller.consumed(id, WINDOW // 2 - 1)
    assert not pair.caller.wants_to_send
    pair.caller.consumed(id, 1)
    assert pair.caller.data_to_send() == encode({"kind": "credit", "id": id, "n": WINDOW // 2})
    pair.caller.consumed(99, WINDOW)
    assert not pair.caller.wants_to_send


def test_streaming_beyond_the_credit_is_a_protocol_error() -> None:
    pair = Pair()
    (id,) = pair.begun()
    frame = encode({"kind": "chunk", "id": id, "data": "x" * WINDOW})
    assert len(list(pair.caller.receive(frame))) == 1  # below zero by one frame is allowed
    with pytest.raises(ProtocolError, match=f"a chunk frame for id {id}, which has no credit left"):
        list(pair.caller.receive(frame))


def test_the_backlog_is_the_bytes_that_wait() -> None:
    pair = Pair()
    (id,) = pair.begun()
    assert pair.callee.backlog(id) == 0
    pair.callee.stream(id, "chunk", data="x" * WINDOW)
    assert pair.callee.backlog(id) == 0
    sizes = [len(encode({"kind": "chunk", "id": id, "data": "y" * size})) - 4 for size in (10, 1100, 5)]
    for size in (10, 1100, 5):
        pair.callee.stream(id, "chunk", data="y" * size)
    assert pair.callee.backlog(id) == sum(sizes)
    (event,) = pair.up()
    assert isinstance(event, Streamed)
    pair.caller.consumed(id, event.size)
    pair.down()
    assert pair.callee.backlog(id) == sizes[2]
    pair.caller.cancel(id)
    pair.down()
    assert pair.callee.backlog(id) == 0


@pytest.mark.parametrize("streamed", range(6))
@pytest.mark.parametrize("delivered", [True, False])
def test_a_cancel_at_any_point_gives_exactly_one_final(streamed: int, delivered: bool) -> None:
    pair = Pair()
    (id,) = pair.begun()
    received: list[CallerEvent] = []
    for _ in range(streamed):
        pair.callee.stream(id, "chunk", data="x" * 400)
        if delivered:
            received += pair.up()
    pair.caller.cancel(id)
    pair.caller.cancel(id)
    assert pair.down() == [CancelRequested(id)]
    pair.callee.stream(id, "chunk", data="dropped")
    pair.reply(id)
    received += pair.up()
    assert finals(received) == [id]
    assert "dropped" not in chunks(received)
    assert (pair.caller.open_calls, pair.callee.in_flight) == (0, 0)


def test_a_cancel_releases_a_final_that_waits_for_credit() -> None:
    pair = Pair()
    (id,) = pair.begun()
    for _ in range(5):
        pair.callee.stream(id, "chunk", data="x" * WINDOW)
    pair.reply(id, "end")
    assert finals(pair.up()) == []
    pair.caller.cancel(id)
    pair.down()
    events = pair.up()
    assert (finals(events), chunks(events)) == ([id], [])


def test_a_cancel_that_crosses_the_final_is_harmless() -> None:
    pair = Pair()
    (id,) = pair.begun()
    pair.reply(id)
    pair.caller.cancel(id)
    pair.caller.consumed(id, WINDOW)
    assert pair.down() == []
    assert finals(pair.up()) == [id]
    pair.caller.cancel(id)
    assert not pair.caller.wants_to_send


def test_a_cancel_before_the_worker_read_the_request_still_gets_its_final() -> None:
    pair = Pair()
    id = pair.request()
    pair.caller.cancel(id)
    assert [type(event) for event in pair.down()] == [Requested, CancelRequested]
    assert pair.callee.may_stream(id)
    pair.reply(id)
    assert finals(pair.up()) == [id]


def test_a_cancel_does_not_touch_the_other_calls() -> None:
    pair = Pair()
    first, second = pair.begun(2)
    pair.caller.cancel(first)
    pair.down()
    pair.callee.stream(second, "chunk", data="x")
    pair.reply(second)
    events = pair.up()
    assert (chunks(events, second), finals(events), pair.caller.open_calls) == (["x"], [second], 1)


def test_a_request_is_unsent_until_its_first_byte_is_written() -> None:
    pair = Pair()
    pair.caller.ping()
    first, second = pair.request(), pair.request("x" * 100)
    data = pair.caller.data_to_send()
    start = len(encode({"kind": "ping"}))
    size = int.from_bytes(data[start : start + 4], "big") + 4
    for written in range(len(data) + 1):
        assert pair.caller.unsent(first, written) == (written <= start)
        assert pair.caller.unsent(second, written) == (written <= start + size)


def test_a_request_that_is_not_yet_taken_from_the_session_is_unsent() -> None:
    pair = Pair()
    pair.begun()
    written = pair.caller.queued
    id = pair.request()
    assert pair.caller.unsent(id, written)
    assert pair.caller.queued > written
    assert not pair.caller.unsent(id, pair.caller.queued)


def test_a_call_that_ended_is_never_unsent() -> None:
    pair = Pair()
    (id,) = pair.begun()
    pair.reply(id)
    pair.up()
    assert not pair.caller.unsent(id, 0)
    assert not pair.caller.unsent(99, 0)


def test_an_id_can_be_used_again_only_after_its_final() -> None:
    callee, caller = Callee(), Caller()
    caller.request("agent", "ada", None, epoch=1, deadline_ms=1, meta={})
    data = caller.data_to_send()
    list(callee.receive(data))
    with pytest.raises(ProtocolError, match="a second request with id 1"):
        list(callee.receive(data))


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, 1 << 64, "\ud800"], ids=range(4))
def test_what_cannot_be_carried_changes_nothing(value: Any) -> None:
    pair = Pair()
    (id,) = pair.begun()
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pair.callee.stream(id, "chunk", data=value)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pair.callee.prepare(id, "reply", payload=value, usage={})
    assert not pair.callee.wants_to_send
    pair.reply(id)
    assert finals(pair.up()) == [id]


def test_a_streamed_frame_over_the_limit_changes_nothing() -> None:
    callee, caller = Callee(max_frame=200), Caller()
    caller.request("agent", "ada", None, epoch=1, deadline_ms=1, meta={})
    list(callee.receive(caller.data_to_send()))
    with pytest.raises(FrameError):
        callee.stream(1, "chunk", data="x" * 200)
    assert (callee.wants_to_send, callee.backlog(1)) == (False, 0)
