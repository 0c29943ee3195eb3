"""One request on its way: waiting in its lane, running on its worker, put back if the worker never saw it.

A flight belongs to its caller (`next`, `abandon`) and to the router (`dispatched`, `ended`, `refuse`). Order is kept by
`lanes.py`; deadlines after dispatch are set in `sandbox/supervisor.py`.
"""

from __future__ import annotations

import asyncio

from moltbot.core.errors import Cancelled, MoltbotError, WorkerDied
from moltbot.core.frames import Final, Streamed
from moltbot.core.messages import Request
from moltbot.sandbox.channel import Call

MAX_RERUNS = 2


class Flight:
    """The ticket of a request in its lane, and its caller's end of the answer."""

    __slots__ = (
        "_failure",
        "_reruns",
        "_streamed",
        "_turn",
        "call",
        "epoch",
        "number",
        "request",
        "request_id",
        "user_id",
        "worker_id",
    )

    def __init__(self, number: int, request: Request, request_id: str, worker_id: str, epoch: int) -> None:
        self.number = number
        self.request = request
        self.request_id = request_id
        self.user_id = request.user_id
        self.worker_id = worker_id
        self.epoch = epoch
        self.call: Call | None = None
        self._turn: asyncio.Future[None] | None = None
        self._failure: MoltbotError | None = None
        self._streamed = False
        self._reruns = 0

    async def next(self) -> Streamed | Final:
        """Return what comes next, last the Final of kind reply; raises a MoltbotError instead if the request failed."""
        while True:
            call = self.call
            if call is None:
                if self._failure is not None:
                    raise self._failure
                self._turn = asyncio.get_running_loop().create_future()
                await self._turn
                continue
            try:
                item = await call.next()
            except WorkerDied:
                if self.call is call:
                    raise
                continue  # it was put back into its lane, or has been dispatched anew
            if type(item) is Streamed:
                self._streamed = True
            return item

    def dispatched(self, call: Call) -> None:
        """Its turn came: `call` runs on the worker."""
        self.call = call
        if self._turn is not None:
            call.wake_too(self._turn)  # its caller sleeps on until there is an answer

    def refuse(self, error: MoltbotError) -> None:
        """It will never be dispatched (any more)."""
        if self._failure is None:
            if self._reruns:  # it ran before: whatever is said of this turn, it may have run
                error.verdict, error.retryable = "maybe_ran", False
            self._failure = error
            self._wake()

    def may_run_again(self) -> bool:
        """Asked when its call has ended: may it go back into its lane? If so, it does."""
        call = self.call
        failure = call.failure if call is not None else None
        if call is None or not isinstance(failure, WorkerDied) or self._failure is not None:
            return False
        if failure.verdict != "not_started":
            if not self.request.idempotent or self._streamed or self._reruns >= MAX_RERUNS:
                return False
            self._reruns += 1
        call.discard()
        self.call = None
        return True

    def abandon(self) -> None:
        """The caller is gone: interrupt what runs. What still waits must be withdrawn from its lane by the router."""
        error = Cancelled(f"request {self.request_id} was cancelled by its caller", worker=self.worker_id)
        if self.call is not None:
            self.call.abandon(error)
        else:
            self.refuse(error)

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
