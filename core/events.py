"""What happened, as typed values, and the broadcast that carries them upward.

Layers below never call layers above: the pool and the router publish events, whoever cares iterates over a
subscription. Every subscription is bounded; one that is not read loses the oldest events and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from moltbot.core.jsonable import jsonable

SUBSCRIPTION_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that happened to a worker or a user; `at` is seconds since 1970."""

    name: ClassVar[str] = "event"
    at: float

    def to_json(self) -> dict[str, Any]:
        return {"event": self.name, **jsonable(self)}


@dataclass(frozen=True, slots=True)
class WorkerChanged(PoolEvent):
    """A worker's slot went from one lifecycle state to another; `reason` and `detail` say why, where there is a why."""

    name: ClassVar[str] = "worker-changed"
    worker_id: str
    incarnation: int
    previous: str
    state: str
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class UserPinned(PoolEvent):
    """A user got their worker."""

    name: ClassVar[str] = "user-pinned"
    user_id: str
    worker_id: str
    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class UserUnloaded(PoolEvent):
    """An idle user left the worker's memory; the pin and the files stay."""

    name: ClassVar[str] = "user-unloaded"
    user_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class UserForgotten(PoolEvent):
    """It is certain now that the user is forgotten, whatever happens; files and rows follow. Their credentials are void."""

    name: ClassVar[str] = "user-forgotten"
    user_id: str


@dataclass(frozen=True, slots=True)
class RequestOverdue(PoolEvent):
    """A request ignored its cancellation, so its worker drains; counted against the user, not the worker."""

    name: ClassVar[str] = "request-overdue"
    user_id: str
    worker_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StorageAlarm(PoolEvent):
    """What a worker's directories hold came near a limit, or went beyond it (`full`); once at each crossing."""

    name: ClassVar[str] = "storage-alarm"
    worker_id: str
    full: bool
    detail: str


E = TypeVar("E")


class Subscription(Generic[E]):
    """One reader of a broadcast: `async for event in subscription`; close it, or leave its `with` block, to end."""

    def __init__(self, broadcast: Broadcast[E]) -> None:
        self._broadcast = broadcast
        self._items: deque[E] = deque()
        self._lost = 0
        self._wake = asyncio.Event()
        self._closed = False

    def _put(self, item: E) -> None:
        if len(self._items) >= SUBSCRIPTION_LIMIT:
            self._items.popleft()
            self._lost += 1
        self._items.append(item)
        self._wake.set()

    def take_lost(self) -> int:
        """How many events were dropped since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._broadcast.forget(self)

    def __enter__(self) -> Subscription[E]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()


class Broadcast(Generic[E]):
    """Hands every published event to every open subscription; publishing never waits and never fails."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription[E]] = []

    def publish(self, event: E) -> None:
        for subscription in self._subscriptions:
            subscription._put(event)

    def subscribe(self) -> Subscription[E]:
        """Open a subscription; it sees what is published from now on."""
        subscription = Subscription(self)
        self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: Subscription[E]) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every subscription after what it still holds."""
        for subscription in list(self._subscriptions):
            subscription.close()
