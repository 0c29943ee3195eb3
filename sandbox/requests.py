"""The requests of one worker slot: written to the incarnation, ended at their deadline, refused while its storage is full.

Which requests come here, and in which order, is the router's business; how the slot lives, `supervisor.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moltbot.core.clock import Clock
from moltbot.core.deadlines import Deadlines
from moltbot.core.errors import Cancelled, MoltbotError, RequestTimeout, StorageFull
from moltbot.core.messages import Request
from moltbot.core.units import format_duration
from moltbot.sandbox.channel import Call, Channel
from moltbot.sandbox.incarnation import Incarnation
from moltbot.sandbox.policies import CANCEL_GRACE


@dataclass
class Counters:
    """What a slot has served since the pool started."""

    requests: int = 0
    errors: int = 0
    restarts: int = 0


log = logging.getLogger("moltbot.worker")


class Requests:
    """on_overdue: a call ignored its cancellation for CANCEL_GRACE seconds. storage_full: why nothing is taken, in words."""

    def __init__(
        self,
        worker_id: str,
        counters: Counters,
        request_timeout: int,
        clock: Clock,
        on_overdue: Callable[[Call], None],
    ) -> None:
        self.storage_full: str | None = None
        self._worker_id = worker_id
        self._counters = counters
        self._request_timeout = request_timeout
        self._on_overdue = on_overdue
        self._deadlines: Deadlines[Call] = Deadlines(clock, self._due)

    def dispatch(
        self,
        life: Incarnation,
        channel: Channel,
        request: Request,
        request_id: str,
        epoch: int,
        on_end: Callable[[Call], None],
    ) -> Call:
        """Write a request to the worker, its user first if need be. Raises InvalidRequest or StorageFull."""
        if self.storage_full is not None:
            raise self._storage_error(self.storage_full)
        life.load(request.user_id, epoch)
        limit = self._request_timeout
        timeout = limit if request.timeout is None else min(request.timeout, limit)
        call = channel.call(
            request.type,
            request.user_id,
            request.payload,
            epoch=epoch,
            deadline_ms=timeout,
            meta={**request.meta, "request_id": request_id},
            on_end=partial(self._ended, on_end),
        )
        call.request_id, call.timeout, call.incarnation = request_id, timeout, life.number
        self._deadlines.set(call, timeout / 1000)
        self._counters.requests += 1
        life.served += 1
        if log.isEnabledFor(logging.DEBUG):
            self._debug(call, f"request of type {request.type} dispatched")
        return call

    def _debug(self, call: Call, what: str) -> None:
        where = {"worker": self._worker_id, "incarnation": call.incarnation, "requestId": call.request_id}
        log.debug("%s #%d: %s", self._worker_id, call.incarnation, what, extra=where)

    def _ended(self, on_end: Callable[[Call], None], call: Call) -> None:
        self._deadlines.drop(call)
        if call.failure is not None and not isinstance(call.failure, Cancelled):
            self._counters.errors += 1
        if log.isEnabledFor(logging.DEBUG):
            self._debug(
                call, f"request ended ({call.failure.code if call.failure is not None else 'answered'})"
            )
        on_end(call)

    def _due(self, call: Call) -> None:
        """A call's time is over: first it is cancelled, and if it ignores that, only the end of the process ends it."""
        if call.expired:
            self._on_overdue(call)
            return
        after = format_duration(call.timeout)
        self._interrupt(
            call,
            RequestTimeout(
                f"the request ran longer than {after} on {self._worker_id} and was cancelled",
                worker=self._worker_id,
                verdict="maybe_ran",
            ),
        )

    def _interrupt(self, call: Call, error: MoltbotError) -> None:
        call.expired = True
        call.abandon(error)
        self._deadlines.set(call, CANCEL_GRACE)

    def interrupt(self, channel: Channel | None, user_id: str, error: Callable[[], MoltbotError]) -> None:
        """End what runs of one user; each call gets an error of its own."""
        for call in channel.calls if channel is not None else ():
            if call.user_id == user_id and not call.expired:
                self._interrupt(call, error())

    def fill_storage(self, channel: Channel | None, detail: str) -> None:
        """Interrupt what runs, and take nothing more until `storage_full` is None again."""
        self.storage_full = detail
        for call in channel.calls if channel is not None else ():
            if not call.expired:
                self._interrupt(call, self._storage_error(detail, ran=True))

    def _storage_error(self, detail: str, *, ran: bool = False) -> StorageFull:
        error = StorageFull(
            f"the directories of {self._worker_id}, where this user lives, are full ({detail}): remove files, or raise the limit",
            worker=self._worker_id,
            verdict="maybe_ran" if ran else "not_started",
            retryable=not ran,
        )
        if ran:
            error.retry_after = None
        return error

    def close(self) -> None:
        """Watch nothing more."""
        self._deadlines.close()
