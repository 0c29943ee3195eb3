"""A request on its way: what its caller sees, when it is put back by itself, and when it must never run again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from moltbot.core.errors import Cancelled, HandlerError, NotRunning, QueueFull, WorkerDied
from moltbot.core.frames import Final, Streamed
from moltbot.core.framing import encode
from moltbot.core.messages import Request
from moltbot.router.flight import MAX_RERUNS, Flight
from moltbot.sandbox.channel import Call
from tests.fakes import PATIENCE, Line


class Runway:
    """Plays the router's part: dispatches a flight, and remembers that it was put back or is over."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.put_back = 0
        self.over = 0

    def dispatch(self, flight: Flight, *, unwritten: bool = False) -> Line:
        """Run the flight on a fresh worker; `unwritten`: the kernel takes nothing of its frame."""
        line = Line()
        self.lines.append(line)
        if unwritten:
            line.block()

        def ended(_: Call) -> None:
            if flight.may_run_again():
                self.put_back += 1
            else:
                self.over += 1

        flight.dispatched(line.call(flight.request.payload, ended))
        return line

    def kill(self, line: Line) -> None:
        """The worker dies."""
        line.channel.close("crashed", "signal 9")


@pytest.fixture
async def runway() -> Iterator[Runway]:  # type: ignore[misc]  # an async fixture that yields
    runway = Runway()
    yield runway
    for line in runway.lines:
        line.close()


def flight(*, idempotent: bool = False) -> Flight:
    return Flight(1, Request("agent", "a", "hello", idempotent=idempotent), "r1", "worker-0", 1)


async def following(flight: Flight) -> Streamed | Final:
    async with asyncio.timeout(PATIENCE):
        return await flight.next()


async def waiting_reader(flight: Flight) -> asyncio.Task[Streamed | Final]:
    """A caller that already waits in `next`."""
    reader = asyncio.create_task(following(flight))
    await asyncio.sleep(0)
    assert not reader.done()
    return reader


def payload(item: Streamed | Final) -> object:
    assert isinstance(item, Final)
    return item.frame["payload"]


async def test_the_caller_waits_for_the_turn_then_reads_all_that_comes(runway: Runway) -> None:
    mine = flight()
    reader = await waiting_reader(mine)
    line = runway.dispatch(mine)
    await line.peer.send("chunk", id=1, data="a")
    first = await reader
    assert isinstance(first, Streamed)
    assert first.frame["data"] == "a"
    await line.peer.send("reply", id=1, payload=7)
    assert payload(await following(mine)) == 7
    assert (runway.put_back, runway.over) == (0, 1)


async def test_a_refusal_reaches_a_caller_that_waits_and_one_that_asks_later() -> None:
    mine = flight()
    reader = await waiting_reader(mine)
    mine.refuse(QueueFull("full"))
    mine.refuse(NotRunning("only the first refusal counts"))
    for pending in (reader, following(mine)):
        with pytest.raises(QueueFull):
            await pending


# --- run again? --------------------------------------------------------------------------------------------


async def test_what_the_worker_never_saw_is_put_back_by_itself_however_often(runway: Runway) -> None:
    mine = flight(idempotent=False)
    reader = await waiting_reader(mine)
    for count in range(1, MAX_RERUNS + 4):
        runway.kill(runway.dispatch(mine, unwritten=True))
        assert (runway.put_back, mine.call) == (count, None)
    await asyncio.sleep(0)
    assert not reader.done(), "its caller notices nothing"
    line = runway.dispatch(mine)
    await line.peer.send("reply", id=1, payload="at last")
    assert payload(await reader) == "at last"


async def test_what_may_have_run_fails_unless_it_is_idempotent(runway: Runway) -> None:
    mine = flight(idempotent=False)
    runway.kill(runway.dispatch(mine))
    with pytest.raises(WorkerDied) as caught:
        await following(mine)
    assert (caught.value.verdict, runway.put_back) == ("maybe_ran", 0)


async def test_what_is_idempotent_runs_again_at_most_twice(runway: Runway) -> None:
    mine = flight(idempotent=True)
    reader = await waiting_reader(mine)
    for count in range(1, 3):
        runway.kill(runway.dispatch(mine))
        assert runway.put_back == count
    runway.kill(runway.dispatch(mine))
    assert (runway.put_back, runway.over) == (2, 1)
    with pytest.raises(WorkerDied):
        await reader


async def test_nothing_runs_again_after_a_chunk_was_delivered(runway: Runway) -> None:
    mine = flight(idempotent=True)
    line = runway.dispatch(mine)
    await line.peer.send("chunk", id=1, data="a")
    await following(mine)
    runway.kill(line)
    with pytest.raises(WorkerDied):
        await following(mine)
    assert runway.put_back == 0


async def test_a_chunk_of_an_earlier_run_that_nobody_read_is_forgotten(runway: Runway) -> None:
    mine = flight(idempotent=True)
    line = runway.dispatch(mine)
    await line.peer.send("chunk", id=1, data="from the first run")
    await line.peer.send("beat", lag_ms=0, in_flight=1, at=0)
    await line.until(lambda: bool(line.notices))
    runway.kill(line)
    assert runway.put_back == 1
    line = runway.dispatch(mine)
    await line.peer.send("reply", id=1, payload="from the second run")
    assert payload(await following(mine)) == "from the second run"


async def test_a_chunk_that_dies_with_its_worker_is_not_delivered_twice(runway: Runway) -> None:
    mine = flight(idempotent=True)
    line = runway.dispatch(mine)
    reader = await waiting_reader(mine)
    line.when_lost = lambda: runway.kill(line)
    await line.peer.send_bytes(encode({"kind": "chunk", "id": 1, "data": "first run"}) + b"\0\0\0\1\xc1")
    await line.until(lambda: bool(line.lost))
    assert runway.put_back == 1
    line = runway.dispatch(mine)
    await line.peer.send("chunk", id=1, data="second run")
    item = await reader
    assert isinstance(item, Streamed)
    assert item.frame["data"] == "second run"


async def test_a_handlers_own_error_is_an_answer(runway: Runway) -> None:
    mine = flight(idempotent=True)
    line = runway.dispatch(mine)
    await line.peer.send("error", id=1, code="handler_error", message="no")
    with pytest.raises(HandlerError):
        await following(mine)
    assert (runway.put_back, runway.over) == (0, 1)


async def test_a_refusal_after_it_was_put_back_is_final(runway: Runway) -> None:
    mine = flight(idempotent=True)
    runway.kill(runway.dispatch(mine))
    assert runway.put_back == 1
    mine.refuse(NotRunning("the gateway is stopping"))
    with pytest.raises(NotRunning):
        await following(mine)
    runway.kill(runway.dispatch(mine))
    assert runway.put_back == 1


# --- the caller gives up ---------------------------------------------------------------------------------------


async def test_a_caller_that_gives_up_in_the_lane_is_cancelled() -> None:
    mine = flight()
    reader = await waiting_reader(mine)
    mine.abandon()
    with pytest.raises(Cancelled, match="r1"):
        await reader


async def test_a_caller_that_gives_up_tells_the_worker_and_the_call_stays_open(runway: Runway) -> None:
    mine = flight(idempotent=True)
    line = runway.dispatch(mine)
    mine.abandon()
    with pytest.raises(Cancelled):
        await following(mine)
    assert [(await line.peer.receive())["kind"] for _ in range(2)] == ["request", "cancel"]
    assert (runway.over, line.channel.in_flight) == (0, 1), "the lane is held until the worker is done"
    runway.kill(line)
    assert (runway.put_back, runway.over) == (0, 1), "nobody waits for it: it is not run again"


async def test_giving_up_after_the_end_is_harmless(runway: Runway) -> None:
    mine = flight()
    line = runway.dispatch(mine)
    await line.peer.send("reply", id=1, payload=7)
    assert payload(await following(mine)) == 7
    mine.abandon()
    assert payload(await following(mine)) == 7
    assert (await line.peer.receive())["kind"] == "request"
    line.channel.close("stopped", "")
    assert await line.peer.at_end(), "no cancel was sent for it"


# --- its time in the queue ------------------------------------------------------------------------------------
