"""What runs now: requests enter their user's lane, and leave it when their worker has room.

Order and bounds are `lanes.py`'s, the request's own state is `flight.py`'s; here they meet the workers. Which worker a user
lives on is `homes.py`'s business; what callers see, `gateway_router.py`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from moltbot.core.clock import Clock
from moltbot.core.deadlines import Deadlines
from moltbot.core.errors import MoltbotError, NotRunning, QueueFull, RequestTimeout, WorkerQuarantined
from moltbot.core.messages import Request
from moltbot.core.units import format_duration
from moltbot.router.directory import Pin
from moltbot.router.flight import Flight
from moltbot.router.lanes import Lanes, Ticket
from moltbot.sandbox.channel import Call
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.supervisor import Supervisor

_AVERAGED_OVER = 16

log = logging.getLogger("moltbot.router")


class Dispatcher:
    """The lanes of one running router, and the workers that empty them."""

    def __init__(self, config: PoolConfig, workers: Mapping[str, Supervisor], clock: Clock) -> None:
        self.lanes = Lanes(
            user_concurrency=config.user_concurrency,
            max_per_user=config.max_queue_per_user,
            max_per_worker=config.max_queue_per_worker,
        )
        self.last_used: dict[str, float] = {}
        """When each user's last request ended, on the monotonic clock; for those who used their worker lately."""
        self._workers = workers
        self._clock = clock
        self._queue_timeout = config.queue_timeout
        self._numbers = itertools.count(1)
        self._id_prefix = secrets.token_hex(4)
        self._seconds: dict[str, float] = {}
        self._deadlines: Deadlines[Flight] = Deadlines(clock, self._expire)
        self._closed = False
        self._quiet: dict[str, asyncio.Event] = {}

    def enter(self, request: Request, pin: Pin) -> Flight:
        """Give a request its place in the lane, and start it if it can start now.

        Raises UserQueueFull or QueueFull at the bounds, and WorkerQuarantined.
        """
        worker_id = pin.worker_id
        worker = self._workers[worker_id]
        if worker.state is State.QUARANTINED:
            raise self.quarantined(worker_id)
        number = next(self._numbers)
        flight = Flight(number, request, request.id or f"{self._id_prefix}-{number}", worker_id, pin.epoch)
        try:
            self.lanes.submit(flight, room=worker.has_room)
        except QueueFull as error:
            error.retry_after = max(
                1.0, self._seconds.get(worker_id, 1.0)
            )  # about when one request less is waiting
            raise
        self.pump(worker_id)
        if flight.call is None:
            self._deadlines.set(flight, self._queue_timeout / 1000)
        return flight

    def pump(self, worker_id: str) -> None:
        """Start what may start on this worker now."""
        worker = self._workers.get(worker_id)
        while worker is not None and worker.has_room:
            flight = self.lanes.next(worker_id)
            if flight is None:
                return
            assert isinstance(flight, Flight)
            try:
                call = worker.dispatch(
                    flight.request, flight.request_id, flight.epoch, partial(self._ended, flight)
                )
            except Exception as error:  # whatever it is, the lane must go on
                self.lanes.finish(flight)
                self._tell_quiet(flight.user_id)
                flight.refuse(error if isinstance(error, MoltbotError) else _broken(flight, error))
            else:
                flight.dispatched(call)
            self._deadlines.drop(flight)

    def reconcile(self) -> None:
        """Do what the workers' states ask for, when their events may have been missed."""
        for worker_id, worker in self._workers.items():
            if worker.state is State.QUARANTINED:
                self.refuse_waiting(worker_id, partial(self.quarantined, worker_id))
            else:
                self.pump(worker_id)

    def _ended(self, flight: Flight, call: Call) -> None:
        """The worker is done with a flight's call, or is gone."""
        self.last_used[flight.user_id] = self._clock.monotonic()
        if not self._closed and flight.may_run_again():
            self.lanes.requeue(flight)
            self._deadlines.set(flight, self._queue_timeout / 1000)
        else:
            self.lanes.finish(flight)
        if self._quiet:
            self._tell_quiet(flight.user_id)
        self.pump(flight.worker_id)

    # --- one user's lane, for moving, copying and forgetting ---------------------------------------------

    def hold(self, user_id: str) -> None:
        """Start nothing of this user; what comes waits within the usual bounds. `release` must follow."""
        self.lanes.hold(user_id)

    def release(self, user_id: str) -> None:
        """Go on with a lane that was held."""
        worker_id = self.lanes.release(user_id)
        if worker_id is not None:
            self.pump(worker_id)

    async def quiet(self, user_id: str) -> None:
        """Return when none of this user's requests runs; the caller holds the lane, and sets the deadline."""
        while self.lanes.of_user(user_id)[0]:
            await self._quiet.setdefault(user_id, asyncio.Event()).wait()

    def _tell_quiet(self, user_id: str) -> None:
        if user_id in self._quiet and not self.lanes.of_user(user_id)[0]:
            self._quiet.pop(user_id).set()

    def refuse_user(self, user_id: str, why: Callable[[], MoltbotError]) -> None:
        """Nothing of this user that waits will start; each request gets an error of its own."""
        self._refuse(self.lanes.waiting_of(user_id), why)

    # --- ends ------------------------------------------------------------------------------------------

    def _expire(self, flight: Flight) -> None:
        if self.lanes.withdraw(flight):
            waited = format_duration(self._queue_timeout)
            flight.refuse(
                RequestTimeout(
                    f"the request waited {waited} for {flight.worker_id} and was not started: send it again later",
                    worker=flight.worker_id,
                    verdict="not_started",
                    retryable=True,
                )
            )

    def give_up(self, flight: Flight) -> None:
        """The caller got an error, or wants the answer no longer: end what waits or runs."""
        self.lanes.withdraw(flight)
        self._deadlines.drop(flight)
        flight.abandon()

    def took(self, worker_id: str, seconds: float) -> None:
        """A request was answered after `seconds`."""
        average = self._seconds.get(worker_id, seconds)
        self._seconds[worker_id] = average + (seconds - average) / _AVERAGED_OVER

    def refuse_waiting(self, worker_id: str | None, why: Callable[[], MoltbotError]) -> None:
        """Nothing that waits for this worker (None: for any) will start; each gets an error of its own."""
        self._refuse(self.lanes.all_waiting(worker_id), why)

    def _refuse(self, tickets: Iterable[Ticket], why: Callable[[], MoltbotError]) -> None:
        for ticket in tickets:
            assert isinstance(ticket, Flight)
            self.lanes.withdraw(ticket)
            self._deadlines.drop(ticket)
            ticket.refuse(why())

    def close(self) -> None:
        """Refuse what waits, and put nothing back into its lane any more: the router stops."""
        self._closed = True
        self.refuse_waiting(None, stopping)
        self._deadlines.close()

    def quarantined(self, worker_id: str) -> WorkerQuarantined:
        """The refusal of a quarantined worker's users, with the time of its next start."""
        slot = self._workers[worker_id].slot
        wait = max(1.0, (slot.deadline or 0.0) - self._clock.monotonic())
        return WorkerQuarantined(
            f"{worker_id}, where this user lives, keeps dying ({slot.reason}: {slot.detail}) and is tried again in {wait:.0f} s",
            worker=worker_id,
            reason=str(slot.reason),
            retry_after=wait,
        )


def _broken(flight: Flight, error: Exception) -> MoltbotError:
    fields = {"worker": flight.worker_id, "requestId": flight.request_id}
    log.error("a request could not be dispatched", exc_info=error, extra=fields)
    return MoltbotError("the gateway failed to dispatch the request; its log says how")


def stopping() -> NotRunning:
    """The refusal of a request that comes, or still waits, when the router stops."""
    return NotRunning("the gateway is stopping: send the request again later")
