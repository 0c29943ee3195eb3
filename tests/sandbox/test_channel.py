"""The gateway's end of a worker's socket, against a peer that does not keep the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from moltbot.core.errors import (
    Cancelled,
    HandlerError,
    InvalidRequest,
    MoltbotError,
    ReplyTooLarge,
    RequestTimeout,
    UnknownType,
    WorkerDied,
)
from moltbot.core.frames import Final, Streamed
from moltbot.core.framing import MAX_FRAME_BYTES, encode
from moltbot.core.session import CREDIT_BYTES
from moltbot.sandbox.channel import Call
from tests.fakes import PATIENCE, Line


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    line.close()


async def following(call: Call) -> Streamed | Final:
    async with asyncio.timeout(PATIENCE):
        return await call.next()


async def failure(call: Call) -> WorkerDied:
    with pytest.raises(WorkerDied) as caught:
        await following(call)
    return caught.value


# --- a peer that keeps the rules ------------------------------------------------------------------------------


async def test_many_calls_share_the_socket_and_each_gets_its_own_answer(line: Line) -> None:
    calls = [line.call(number) for number in range(5)]
    for call in calls:
        assert (await line.peer.receive())["id"] == call.id
    for call in reversed(calls):
        await line.peer.send("chunk", id=call.id, data=f"chunk {call.id}")
        await line.peer.send("reply", id=call.id, payload=f"reply {call.id}")
    for call in calls:
        assert (await following(call)).frame["data"] == f"chunk {call.id}"
        assert (await following(call)).frame["payload"] == f"reply {call.id}"
    assert line.channel.in_flight == 0


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("unknown_type", UnknownType),
        ("invalid_request", InvalidRequest),
        ("cancelled", Cancelled),
        ("reply_too_large", ReplyTooLarge),
        ("handler_error", HandlerError),
        ("whatever a stranger writes", HandlerError),
    ],
)
async def test_an_error_frame_becomes_the_error_of_its_code(
    line: Line, code: str, kind: type[MoltbotError]
) -> None:
    call = line.call()
    await line.peer.send("error", id=call.id, code=code, message="no", details={"a": 1})
    with pytest.raises(kind, match="no") as caught:
        await following(call)
    assert (type(caught.value), caught.value.worker, caught.value.details) == (kind, "worker-0", {"a": 1})


@pytest.mark.parametrize("payload", [object(), {1, 2}, 1 << 70, b"x" * (MAX_FRAME_BYTES + 1)], ids=type)
async def test_a_payload_that_cannot_be_carried_costs_only_its_sender(line: Line, payload: Any) -> None:
    with pytest.raises(InvalidRequest, match="the payload cannot be sent to a worker"):
        line.call(payload)
    call = line.call("good")
    assert (await line.peer.receive())["payload"] == "good"
    assert (line.channel.in_flight, call.ended, line.lost) == (1, False, [])


async def test_ids_go_on_where_the_last_channel_ended() -> None:
    first = Line()
    first.call()
    second = Line(first_id=first.channel.next_id)
    assert second.call().id == 2
    first.close()
    second.close()


# --- a peer that breaks them --------------------------------------------------------------------------------------


async def garbage(line: Line) -> None:
    await line.peer.send_bytes(b"\x00\x00\x00\x05GET /")


async def an_oversized_announcement(line: Line) -> None:
    await line.peer.send_bytes((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


async def an_unknown_kind(line: Line) -> None:
    await line.peer.send("take_over", id=1)


async def a_missing_field(line: Line) -> None:
    await line.peer.send("chunk", id=1)


async def an_id_never_given(line: Line) -> None:
    await line.peer.send("reply", id=99, payload=None)


async def a_second_final(line: Line) -> None:
    await line.peer.send("reply", id=3, payload=None)
    await line.peer.send("reply", id=3, payload=None)


async def chunks_without_credit(line: Line) -> None:
    data = b"x" * (CREDIT_BYTES // 2)
    for _ in range(3):
        await line.peer.send("chunk", id=3, data=data)


async def half_a_frame_and_the_end(line: Line) -> None:
    await line.peer.send_bytes(encode({"kind": "reply", "id": 1, "payload": "x" * 100})[:50])
    line.peer.sock.close()


async def the_end(line: Line) -> None:
    line.peer.sock.close()


BREACHES: list[Callable[[Line], Awaitable[None]]] = [
    garbage,
    an_oversized_announcement,
    an_unknown_kind,
    a_missing_field,
    an_id_never_given,
    a_second_final,
    chunks_without_credit,
    half_a_frame_and_the_end,
    the_end,
]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: str(breach.__name__))
async def test_a_breach_loses_the_channel_once_and_every_call_gets_its_verdict(
    line: Line, breach: Callable[[Line], Awaitable[None]]
) -> None:
    ended: list[int] = []
    calls = [line.call(on_end=lambda call: ended.append(call.id)) for _ in range(2)]
    line.call()  # id 3, for the breach that answers twice
    for _ in range(3):
        await line.peer.receive()
    await breach(line)
    await line.until(lambda: bool(line.lost))
    line.channel.close("crashed", line.lost[0] or "its socket ended")
    line.channel.close("crashed", "again")
    for call in calls:
        error = await failure(call)
        assert (error.verdict, error.retryable, error.reason) == ("maybe_ran", False, "crashed")
    assert (ended, len(line.lost), line.channel.in_flight) == ([1, 2], 1, 0)


async def test_what_came_before_a_breach_still_counts(line: Line) -> None:
    call = line.call()
    await line.peer.send_bytes(
        encode({"kind": "reply", "id": call.id, "payload": 7}) + b"\x00\x00\x00\x01\xc1"
    )
    assert (await following(call)).frame["payload"] == 7
    await line.until(lambda: bool(line.lost))


# --- verdicts -----------------------------------------------------------------------------------------------------


async def test_a_call_whose_frame_was_never_written_has_not_started(line: Line) -> None:
    begun, unwritten, behind = line.block(), line.call("a"), line.call("b")
    line.channel.close("crashed", "signal 9")
    assert (await failure(begun)).verdict == "maybe_ran", "a part of it was written"
    for call in (unwritten, behind):
        error = await failure(call)
        assert (error.verdict, error.retryable) == ("not_started", True)


async def test_a_call_behind_a_full_socket_counts_as_started_once_the_worker_reads_on(line: Line) -> None:
    line.block()
    call = line.call("a")
    for _ in range(2):
        await line.peer.receive()
    line.channel.close("crashed", "signal 9")
    assert (await failure(call)).verdict == "maybe_ran"


async def test_a_worker_that_is_gone_before_the_write_has_not_started_the_call(line: Line) -> None:
    line.peer.sock.close()
    call = line.call()
    await line.until(lambda: bool(line.lost))
    line.channel.close("crashed", "its socket ended")
    assert (await failure(call)).verdict == "not_started"


# --- a caller that gives up --------------------------------------------------------------------------------------------


async def test_an_abandoned_call_fails_at_once_and_stays_open_until_its_final_frame(line: Line) -> None:
    ended: list[Call] = []
    call = line.call(on_end=ended.append)
    reader = asyncio.create_task(following(call))
    await line.peer.receive()
    call.abandon(RequestTimeout("too slow"))
    with pytest.raises(RequestTimeout):
        await reader
    assert (ended, call.ended, line.channel.in_flight) == ([], False, 1)
    assert (await line.peer.receive()) == {"kind": "cancel", "id": call.id, "reason": "too slow"}
    await line.peer.send("chunk", id=call.id, data="it crossed the cancel")
    await line.peer.send("reply", id=call.id, payload="and so did this")
    await line.peer.send("beat", lag_ms=0, in_flight=0, at=0)
    await line.until(lambda: bool(line.notices))
    assert (ended, call.ended, line.channel.in_flight, line.lost) == ([call], True, 0, [])
    with pytest.raises(RequestTimeout):
        await following(call)


async def test_a_call_abandoned_twice_is_cancelled_once(line: Line) -> None:
    call = line.call()
    call.abandon(RequestTimeout("first"))
    call.abandon(Cancelled("second"))
    with pytest.raises(RequestTimeout):
        await following(call)
    await line.peer.receive()
    await line.peer.receive()
    line.channel.close("stopped", "")
    assert await line.peer.at_end()


async def test_what_an_abandoned_call_still_streams_is_paid_for(line: Line) -> None:
    """Its chunks are dropped but give credit back, or a handler that must finish a write would hang for ever."""
    call = line.call()
    await line.peer.receive()
    call.abandon(Cancelled("gone"))
    await line.peer.receive()
    for _ in range(8):
        await line.peer.send("chunk", id=call.id, data=b"x" * (CREDIT_BYTES // 2))
        assert (await line.peer.receive())["kind"] == "credit"
    assert line.lost == []


async def test_a_reader_that_stops_reading_gives_no_credit(line: Line) -> None:
    call, other = line.call(), line.call()
    for _ in range(2):
        await line.peer.receive()
    for _ in range(2):
        await line.peer.send("chunk", id=call.id, data=b"x" * (CREDIT_BYTES // 2 - 100))
    await line.peer.send("reply", id=other.id, payload="not held up")
    assert (await following(other)).frame["payload"] == "not held up"
    await following(call)
    await following(call)
    frame = await line.peer.receive()
    assert (frame["kind"], frame["id"]) == ("credit", call.id)


async def test_a_call_that_is_read_again_after_its_end_says_the_same(line: Line) -> None:
    call = line.call()
    line.channel.close("crashed", "signal 9")
    assert str(await failure(call)) == str(await failure(call))


async def test_after_the_end_nothing_is_sent_and_nothing_breaks(line: Line) -> None:
    call = line.call()
    await line.peer.receive()
    line.channel.close("stopped", "")
    line.channel.send(lambda session: session.ping())
    call.abandon(Cancelled("late"))
    line.channel.cancel(call.id)
    assert await line.peer.at_end()
    assert line.lost == [], "it was closed, not lost"
