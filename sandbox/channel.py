"""The gateway's end of one worker's socket: a session on a wire, and the calls that are open on it.

A `Call` outlives its caller: when the caller gives up, the worker is told, and the call stays open until the worker's
final frame (or end), because only then its lane may go on. Deadlines are set in `supervisor.py`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moltbot.core.errors import (
    Cancelled,
    InvalidRequest,
    MoltbotError,
    ProtocolError,
    Verdict,
    WorkerDied,
    clean_text,
    error_of_handler,
)
from moltbot.core.frames import CallerEvent, Final, Notice, Streamed
from moltbot.core.framing import Frame
from moltbot.core.session import Caller
from moltbot.core.wire import Wire

_NEVER_RAN = frozenset({"unknown_type", "not_loaded"})
MAX_DETAILS = 4096
EVENTS_PER_TURN = 200


class Call:
    """One request that was written to a worker; `next` is for its caller, the rest for its supervisor."""

    __slots__ = (
        "_channel",
        "_failure",
        "_final",
        "_items",
        "_waiter",
        "ended",
        "expired",
        "id",
        "incarnation",
        "on_end",
        "request_id",
        "timeout",
        "user_id",
    )

    def __init__(self, channel: Channel, id: int, user_id: str, on_end: Callable[[Call], None]) -> None:
        self._channel = channel
        self._items: deque[Streamed] = deque()
        self._final: Final | None = None
        self._failure: MoltbotError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.id = id
        self.user_id = user_id
        self.on_end = on_end
        self.ended = False
        # The supervisor's notes, for its deadline: the caller's name of the request, the milliseconds it had, whether they are over;
        # and who served it.
        self.incarnation = 0
        self.request_id = str(id)
        self.timeout = 0.0
        self.expired = False

    async def next(self) -> Streamed | Final:
        """Return what comes next, last the Final of kind reply; raises a MoltbotError instead if the call failed."""
        while True:
            if self._items:
                item = self._items.popleft()
                self._channel.consumed(self.id, item.size)
                return item
            if self._failure is not None:
                raise self._failure
            if self._final is not None:
                return self._final
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def wake_too(self, waiter: asyncio.Future[None]) -> None:
        """The caller waits already, on `waiter`: end that wait when there is something for `next`."""
        self._waiter = waiter

    def abandon(self, error: MoltbotError) -> None:
        """The caller waits no longer: it gets `error`, the handler is cancelled and told why, and the call stays open until it ends."""
        if self._final is None and self._failure is None:
            self._failure = error
            self._items.clear()
            self._wake()
        self._channel.cancel(self.id, None if isinstance(error, Cancelled) else error.message)

    def discard(self) -> None:
        """Forget what the caller has not read: the request will run again."""
        self._items.clear()

    @property
    def failure(self) -> MoltbotError | None:
        """What the caller gets instead of a reply, if it is known already."""
        return self._failure

    def _add(self, item: Streamed) -> None:
        if self._failure is None:
            self._items.append(item)
            self._wake()
        else:
            self._channel.consumed(self.id, item.size)

    def _end(self, final: Final | None, failure: MoltbotError | None) -> None:
        self.ended = True
        if self._failure is None:
            self._final, self._failure = final, failure
            self._wake()
        self.on_end(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Channel:
    """One incarnation's socket; `first_id` goes on where the slot's last channel ended."""

    def __init__(
        self,
        sock: socket.socket,
        worker_id: str,
        first_id: int,
        on_notice: Callable[[str, Frame], None],
        on_lost: Callable[[str | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker_id = worker_id
        self._session = Caller(first_id=first_id)
        self._on_notice = on_notice
        self._on_lost = on_lost
        self._calls: dict[int, Call] = {}
        self._flush_scheduled = False
        self._closed = False
        self._wire = Wire(sock, self._loop, self._received, lambda: self._lose(None))

    @property
    def next_id(self) -> int:
        return self._session.next_id

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    @property
    def calls(self) -> list[Call]:
        return list(self._calls.values())

    def call(
        self,
        kind: str,
        user_id: str,
        payload: Any,
        *,
        epoch: int,
        deadline_ms: float,
        meta: Mapping[str, Any],
        on_end: Callable[[Call], None],
    ) -> Call:
        """Write a request; raises InvalidRequest if its payload cannot be carried, and then nothing was written."""
        try:
            id = self._session.request(
                kind, user_id, payload, epoch=epoch, deadline_ms=deadline_ms, meta=meta
            )
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the payload has a text that is not valid UTF-8 (half of a surrogate pair)"
            ) from None
        except (TypeError, ValueError, OverflowError, ProtocolError) as error:
            raise InvalidRequest(f"the payload cannot be sent to a worker: {error}") from None
        call = self._calls[id] = Call(self, id, user_id, on_end)
        self.flush_soon()
        return call

    def cancel(self, id: int, reason: str | None = None) -> None:
        self._session.cancel(id, reason)
        self.flush_soon()

    def consumed(self, id: int, size: int) -> None:
        self._session.consumed(id, size)
        self.flush_soon()

    def send(self, write: Callable[[Caller], None]) -> None:
        """Send a frame about the worker as a whole: `channel.send(lambda session: session.drain())`."""
        if not self._closed:
            write(self._session)
            self.flush_soon()

    def flush_soon(self) -> None:
        """Write at once if no other call could add to it, else with theirs at the end of this turn of the loop."""
        if not self._session.wants_to_send:
            return
        if len(self._calls) <= 1:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._session.wants_to_send and not self._closed:
            self._wire.write(self._session.data_to_send())

    def _received(self, data: bytes) -> None:
        self._take(iter(self._session.receive(data)))

    def _take(self, events: Iterator[CallerEvent]) -> None:
        """Handle what came, but at most so much in one turn of the loop: other workers want theirs too."""
        try:
            for count, event in enumerate(events, 1):
                self._handle(event)
                if self._closed:
                    return
                if count == EVENTS_PER_TURN:
                    self._wire.pause_reading()
                    self._loop.call_soon(self._take_rest, events)
                    return
        except ProtocolError as error:
            self._wire.close()
            self._lose(f"it broke the frame protocol: {error}")

    def _take_rest(self, events: Iterator[CallerEvent]) -> None:
        if not self._closed:
            self._wire.resume_reading()
            self._take(events)

    def _handle(self, event: CallerEvent) -> None:
        match event:
            case Final(id, kind, frame):
                call = self._calls.pop(id)
                if kind == "reply":
                    call._end(event, None)
                else:
                    call._end(None, self._error(frame))
            case Streamed(id):
                self._calls[id]._add(event)
            case Notice(kind, frame):
                self._on_notice(kind, frame)

    def _error(self, frame: Frame) -> MoltbotError:
        kind = error_of_handler(frame["code"])
        verdict: Verdict = "not_started" if frame["code"] in _NEVER_RAN else "done"
        return kind(
            clean_text(frame["message"]),
            worker=self._worker_id,
            verdict="maybe_ran" if kind is Cancelled else verdict,
            details=_carriable(frame.get("details")),
        )

    def _lose(self, detail: str | None) -> None:
        if not self._closed:
            self._on_lost(detail)

    def close(self, reason: str, detail: str) -> None:
        """End every open call with its verdict and close the socket; may be repeated."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        written = self._wire.written
        self._wire.close()
        calls, self._calls = self._calls, {}
        for id, call in calls.items():
            unsent = self._session.unsent(id, written)
            call._end(None, self._died(reason, detail, unsent=unsent))

    def _died(self, reason: str, detail: str, *, unsent: bool) -> WorkerDied:
        return WorkerDied(
            f"{self._worker_id} ended while it had the request ({reason}: {detail})",
            worker=self._worker_id,
            reason=reason,
            verdict="not_started" if unsent else "maybe_ran",
            retryable=unsent,
        )


def _carriable(details: Any) -> Any:
    """The details of a worker's error, if they are small JSON; else nothing, for they travel to clients and logs."""
    try:
        text = json.dumps(details, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return details if len(text) <= MAX_DETAILS else None
