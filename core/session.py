"""Many calls over one byte stream. Sans-IO: bytes and commands in, events and bytes out.

`Caller` is the gateway's side, `Callee` the worker's. Both keep the same three promises:

- every call gets exactly one final frame, also after `cancel`; until then its id is known, afterwards it is an error;
- streamed frames (chunk, event, usage) cost credit, counted in bytes of frame body, so that a reader who stops reading
  stops only its own call. A sender may go below zero by one frame, never further;
- anything unexpected raises ProtocolError: the other side may be hostile, and the only safe answer is to close.

A late final frame cannot reach another call: ids grow for ever within a slot, and a session serves one incarnation.
Who reads the socket: `sandbox/channel.py` and `worker/loop.py`. Deadlines and retries are theirs, not ours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from moltbot.core.errors import ProtocolError
from moltbot.core.frames import (
    FROM_WORKER,
    PROTOCOL_VERSION,
    TO_WORKER,
    CalleeEvent,
    CallerEvent,
    CancelRequested,
    CreditGranted,
    Final,
    Notice,
    Requested,
    Streamed,
    checked_kind,
)
from moltbot.core.framing import MAX_FRAME_BYTES, Decoder, Frame, encode, encode_checked

CREDIT_BYTES = 256 << 10


class _Side:
    """What both sides share: a decoder, and the bytes that wait to be written."""

    def __init__(self, max_frame: int) -> None:
        self._max_frame = max_frame
        self._decoder = Decoder(max_frame)
        self._out: list[bytes] = []
        self.queued = 0
        """Bytes handed to `data_to_send` or waiting there, since the session began."""

    def _send(self, frame: Frame) -> None:
        self._send_bytes(encode(frame, self._max_frame))

    def _send_bytes(self, data: bytes) -> None:
        self._out.append(data)
        self.queued += len(data)

    @property
    def wants_to_send(self) -> bool:
        return bool(self._out)

    def data_to_send(self) -> bytes:
        """Return, once, the bytes that must be written next."""
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data


# --- the gateway's side --------------------------------------------------------------------------


class _Open:
    """A call that has no final frame yet."""

    __slots__ = ("cancelled", "credit", "offset", "unreported")

    def __init__(self, offset: int, credit: int) -> None:
        self.offset = offset
        self.credit = credit
        self.unreported = 0
        self.cancelled = False


class Caller(_Side):
    """The gateway's side of a channel; `first_id` continues the numbering of the slot's earlier sessions."""

    def __init__(
        self, *, max_frame: int = MAX_FRAME_BYTES, credit: int = CREDIT_BYTES, first_id: int = 1
    ) -> None:
        super().__init__(max_frame)
        self._credit = credit
        self._calls: dict[int, _Open] = {}
        self.next_id = first_id

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    def hello(self, worker_id: str, incarnation: int, config: Mapping[str, Any]) -> None:
        self._send(
            {
                "kind": "hello",
                "v": PROTOCOL_VERSION,
                "worker_id": worker_id,
                "incarnation": incarnation,
                "config": config,
            }
        )

    def request(
        self,
        kind: str,
        user_id: str,
        payload: Any,
        *,
        epoch: int,
        deadline_ms: float,
        meta: Mapping[str, Any],
    ) -> int:
        """Begin a call and return its id; raises what `framing.encode_checked` raises, and then nothing was begun."""
        id = self.next_id
        data = encode_checked(
            {
                "kind": "request",
                "id": id,
                "type": kind,
                "user_id": user_id,
                "payload": payload,
                "epoch": epoch,
                "deadline_ms": deadline_ms,
                "meta": meta,
            },
            self._max_frame,
        )
        self.next_id = id + 1
        self._calls[id] = _Open(self.queued, self._credit)
        self._send_bytes(data)
        return id

    def cancel(self, id: int, reason: str | None = None) -> None:
        """Ask for an early end, and tell why; harmless if the call has ended or was cancelled before."""
        call = self._calls.get(id)
        if call is not None and not call.cancelled:
            call.cancelled = True
            self._send({"kind": "cancel", "id": id} | ({"reason": reason} if reason is not None else {}))

    def consumed(self, id: int, size: int) -> None:
        """The reader has taken streamed frames of `size` bytes: grant credit again, in steps of half the window."""
        call = self._calls.get(id)
        if call is None:
            return
        call.unreported += size
        if call.unreported * 2 >= self._credit:
            call.credit += call.unreported
            self._send({"kind": "credit", "id": id, "n": call.unreported})
            call.unreported = 0

    def arrive(self, user_id: str, epoch: int) -> None:
        self._send({"kind": "arrive", "user_id": user_id, "epoch": epoch})

    def leave(self, user_id: str) -> None:
        self._send({"kind": "leave", "user_id": user_id})

    def ping(self) -> None:
        self._send({"kind": "ping"})

    def drain(self) -> None:
        self._send({"kind": "drain"})

    def shutdown(self, grace_ms: float) -> None:
        self._send({"kind": "shutdown", "grace_ms": grace_ms})

    def unsent(self, id: int, written: int) -> bool:
        """True if not one byte of the call's request is among the first `written` bytes of the stream."""
        call = self._calls.get(id)
        return call is not None and call.offset >= written

    def receive(self, data: bytes) -> Iterable[CallerEvent]:
        """Yield what `data` means, in order; raises ProtocolError after what was still good."""
        decoder = self._decoder
        decoder.feed(data)
        while (item := decoder.next_frame()) is not None:
            yield self._read(*item)

    def _read(self, frame: Frame, size: int) -> CallerEvent:
        kind = checked_kind(frame, FROM_WORKER)
        if "id" not in FROM_WORKER[kind]:
            return Notice(kind, frame)
        id = frame["id"]
        if id == 0 and kind == "error":
            return Notice(
                "error", frame
            )  # about the worker itself, for example a handler that does not import
        call = self._calls.get(id)
        if call is None:
            raise ProtocolError(f"a {kind} frame for id {id}, which is not open")
        if kind in ("reply", "error"):
            del self._calls[id]
            return Final(id, kind, frame)
        if call.credit <= 0:
            raise ProtocolError(f"a {kind} frame for id {id}, which has no credit left")
        call.credit -= size
        return Streamed(id, kind, frame, size)


# --- the worker's side ---------------------------------------------------------------------------


class _Serving:
    """A call that still owes its final frame."""

    __slots__ = ("backlog", "cancelled", "credit", "final", "waiting")

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.backlog = 0
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.final: bytes | None = None
        self.cancelled = False


class Callee(_Side):
    """The worker's side of a channel."""

    def __init__(self, *, max_frame: int = MAX_FRAME_BYTES, credit: int = CREDIT_BYTES) -> None:
        super().__init__(max_frame)
        self._credit = credit
        self._calls: dict[int, _Serving] = {}

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    def notice(self, kind: str, **fields: Any) -> None:
        """Send a frame about the worker as a whole: ready, arrived, left, pong, drained, error with id 0."""
        self._send({"kind": kind, **fields})

    def stream(self, id: int, kind: str, **fields: Any) -> None:
        """Send a chunk, event or usage frame, or queue it until there is credit; dropped after a cancel.

        Raises what `framing.encode_checked` raises.
        """
        call = self._calls[id]
        data = encode_checked({"kind": kind, "id": id, **fields}, self._max_frame)
        if not call.cancelled:
            call.waiting.append((data, len(data) - 4))
            call.backlog += len(data) - 4
            self._release(id, call)

    def backlog(self, id: int) -> int:
        """Bytes of this call that wait for credit."""
        return self._calls[id].backlog

    def may_stream(self, id: int) -> bool:
        """True if the next streamed frame of this call would leave at once, or be dropped."""
        call = self._calls[id]
        return call.cancelled or (call.credit > 0 and not call.waiting)

    def prepare(self, id: int, kind: str, **fields: Any) -> bytes:
        """Encode a final frame, `reply` or `error`, for `finish`; raises what `framing.encode_checked` raises."""
        return encode_checked({"kind": kind, "id": id, **fields}, self._max_frame)

    def finish(self, id: int, final: bytes) -> None:
        """Send the final frame behind what still waits for credit."""
        call = self._calls[id]
        call.final = final
        self._release(id, call)

    def receive(self, data: bytes) -> Iterable[CalleeEvent]:
        """Yield what `data` means, in order; raises ProtocolError after what was still good."""
        self._decoder.feed(data)
        while (item := self._decoder.next_frame()) is not None:
            event = self._read(item[0])
            if event is not None:
                yield event

    def _read(self, frame: Frame) -> CalleeEvent | None:
        kind = checked_kind(frame, TO_WORKER)
        if kind == "request":
            id = frame["id"]
            if id in self._calls:
                raise ProtocolError(f"a second request with id {id}")
            self._calls[id] = _Serving(self._credit)
            return Requested(id, frame)
        if kind not in ("cancel", "credit"):
            return Notice(kind, frame)
        id = frame["id"]
        call = self._calls.get(id)
        if call is None:
            return None  # it crossed our final frame on the way
        if kind == "cancel":
            call.cancelled = True
            call.waiting.clear()
            call.backlog = 0
            self._release(id, call)
            return CancelRequested(id, frame.get("reason"))
        call.credit += frame["n"]
        self._release(id, call)
        return CreditGranted(id)

    def _release(self, id: int, call: _Serving) -> None:
        while call.waiting and call.credit > 0:
            data, size = call.waiting.popleft()
            call.backlog -= size
            call.credit -= size
            self._send_bytes(data)
        if call.final is not None and not call.waiting:
            del self._calls[id]
            self._send_bytes(call.final)
