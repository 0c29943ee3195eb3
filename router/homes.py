"""Which worker a user lives on: the pin if there is one, else a first home, chosen once and stored before anything runs.

Joins the ring, the bounded placement and the directory. First requests of one user that come together are let in one after
the other, in the order they came, so that a pin that has just become known lets nobody overtake. The door of a user who
is being forgotten (`forgetting.py`) is shut here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from moltbot.core.clock import Clock
from moltbot.core.errors import NotRunning, Unavailable, UserForgetting, UserQueueFull
from moltbot.core.events import Broadcast, PoolEvent, UserPinned
from moltbot.router.directory import Directory, Pin
from moltbot.router.placement import Placement, place
from moltbot.router.ring import Ring
from moltbot.sandbox.lifecycle import State
from moltbot.sandbox.pool import WorkerPool


class _Arrival:
    """The first requests of one user, while the pin is on its way and until the last of them is in the lane.

    shut: the user is being forgotten, so every request comes here, and none passes.
    """

    __slots__ = ("count", "shut", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.shut = False
        self.turn = asyncio.Lock()  # fair: who waits first is first


class Homes:
    """The homes of all users of one running router. max_waiting: first requests of one user that may wait."""

    def __init__(
        self,
        ring: Ring,
        directory: Directory,
        pool: WorkerPool,
        *,
        events: Broadcast[PoolEvent],
        clock: Clock,
        max_waiting: int,
    ) -> None:
        self._ring = ring
        self._directory = directory
        self._pool = pool
        self._events = events
        self._clock = clock
        self._max_waiting = max_waiting
        self._arrivals: dict[str, _Arrival] = {}

    def known(self, user_id: str) -> Pin | None:
        """The pin of a user whose first requests are all in their lane; None sends the caller to `arrival`."""
        return self._directory.get(user_id) if user_id not in self._arrivals else None

    @contextlib.asynccontextmanager
    async def arrival(self, user_id: str) -> AsyncIterator[Pin]:
        """Wait for a new user's pin, and hold back the user's later requests until the block ends.

        Raises UserQueueFull, TooManyUsers, UserForgetting, and Unavailable if no worker can take the user or the pin cannot be stored.
        """
        arrival = self._arrivals.setdefault(user_id, _Arrival())
        if arrival.shut:
            raise being_forgotten()
        if arrival.count > self._max_waiting:
            raise UserQueueFull(
                f"this new user already has {arrival.count} first requests waiting: wait for answers first",
                retry_after=1.0,
            )
        arrival.count += 1
        try:
            async with arrival.turn:
                pin = None if arrival.shut else self._directory.get(user_id) or await self._settle(user_id)
                if pin is None or arrival.shut:
                    raise being_forgotten()
                yield pin
        finally:
            arrival.count -= 1
            self._drop_if_idle(user_id, arrival)

    def arriving(self, user_id: str) -> bool:
        """True while first requests of this user are on their way."""
        arrival = self._arrivals.get(user_id)
        return arrival is not None and arrival.count > 0

    def shut(self, user_id: str) -> None:
        """Refuse this user's requests until `reopen`: those that come, and those whose pin is on its way."""
        self._arrivals.setdefault(user_id, _Arrival()).shut = True

    def is_shut(self, user_id: str) -> bool:
        """True between `shut` and `reopen`."""
        arrival = self._arrivals.get(user_id)
        return arrival is not None and arrival.shut

    async def settled(self, user_id: str) -> Pin | None:
        """Wait, after `shut`, until no first request is on its way; returns the pin that there is then."""
        async with self._arrivals[user_id].turn:
            return await self._directory.settled(user_id)

    def reopen(self, user_id: str) -> None:
        """Take this user's requests again."""
        arrival = self._arrivals[user_id]
        arrival.shut = False
        self._drop_if_idle(user_id, arrival)

    def _drop_if_idle(self, user_id: str, arrival: _Arrival) -> None:
        if not arrival.count and not arrival.shut:
            self._arrivals.pop(user_id, None)

    async def _settle(self, user_id: str) -> Pin:
        pin = await self._directory.pin(user_id, lambda: self._place(user_id))
        self._events.publish(UserPinned(self._clock.time(), user_id, pin.worker_id, pin.epoch, pin.why))
        return pin

    def _place(self, user_id: str) -> Placement:
        """Choose a first home; a quarantined worker takes nobody new."""
        workers = self._pool.workers
        if not workers:
            raise NotRunning("the workers are not running: start the gateway first")
        walk = [name for name in self._ring.walk(user_id) if workers[name].state is not State.QUARANTINED]
        return place(walk, self._directory.loads())

    def preview(self, user_id: str) -> str | None:
        """Where the user lives, or would be placed now; None if no worker could take them. Writes nothing."""
        pin = self._directory.get(user_id)
        if pin is not None:
            return pin.worker_id
        if self._directory.full:
            return None
        try:
            return self._place(user_id).worker_id
        except Unavailable:
            return None


def being_forgotten(*, ran: bool = False) -> UserForgetting:
    """The refusal of a user's requests while the user is being forgotten; ran: it was running."""
    if not ran:
        return UserForgetting("this user is being forgotten: send the request again when that is done")
    return UserForgetting(
        "this user is being forgotten, so the request was cancelled while it ran",
        verdict="maybe_ran",
        retryable=False,
    )
