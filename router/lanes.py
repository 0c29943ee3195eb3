"""Queues of requests: one lane per user, served in turn. Pure: no clock, no I/O, no tasks.

What is in a lane starts in arrival order, at most `user_concurrency` at a time. A worker's lanes take turns, so a user
with many requests delays others by one at most. A lane that is held starts nothing, and keeps its order and its bounds.
Whether the worker has room is the caller's knowledge.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Protocol

from moltbot.core.errors import QueueFull, UserQueueFull


class Ticket(Protocol):
    """A request in a lane; `number` grows with arrival."""

    number: int
    user_id: str
    worker_id: str


class _Lane:
    __slots__ = ("holds", "in_turn", "limit", "running", "user_id", "waiting")

    def __init__(self, user_id: str, limit: int) -> None:
        self.user_id = user_id
        self.limit = limit  # how many may run at once; 0 while it is held
        self.holds = 0
        self.running = 0
        self.waiting: list[Ticket] = []  # short and short-lived: making a deque costs more than it saves
        self.in_turn = False


class _Queue:
    """One worker's lanes that have something to start, in the order of their turns."""

    __slots__ = ("turns", "waiting")

    def __init__(self) -> None:
        self.turns: deque[_Lane] = deque()
        self.waiting = 0


_number = attrgetter("number")


class Lanes:
    """All lanes of a router."""

    def __init__(self, *, user_concurrency: int, max_per_user: int, max_per_worker: int) -> None:
        self._concurrency = user_concurrency
        self._max_per_user = max_per_user
        self._max_per_worker = max_per_worker
        self._lanes: dict[str, _Lane] = {}
        self._queues: dict[str, _Queue] = {}
        self.waiting = 0
        """Tickets that wait, in all lanes."""

    def submit(self, ticket: Ticket, *, room: bool) -> None:
        """Add a ticket at the end of its user's lane; `room`: its worker could start something now.

        Raises UserQueueFull or QueueFull if it would have to wait and the queue is at its bound.
        """
        lane = self._lane(ticket.user_id)
        queue = self._queue(ticket.worker_id)
        starts_now = room and not queue.turns and not lane.waiting and lane.running < lane.limit
        if not starts_now:
            self._check_bounds(ticket, lane, queue)
        lane.waiting.append(ticket)
        self._count(queue, 1)
        self._take_turn(lane, queue)

    def _check_bounds(self, ticket: Ticket, lane: _Lane, queue: _Queue) -> None:
        if len(lane.waiting) >= self._max_per_user:
            self._forget_if_idle(lane)
            raise UserQueueFull(
                f"this user already has {len(lane.waiting)} requests waiting, the most allowed: wait for answers first",
                worker=ticket.worker_id,
            )
        if queue.waiting >= self._max_per_worker:
            self._forget_if_idle(lane)
            raise QueueFull(
                f"{ticket.worker_id} already has {queue.waiting} requests waiting, the most allowed: try again later",
                worker=ticket.worker_id,
            )

    def next(self, worker_id: str) -> Ticket | None:
        """Take the ticket that starts now on this worker, or None; `finish` must follow."""
        queue = self._queues.get(worker_id)
        if queue is None or not queue.turns:
            return None
        lane = queue.turns.popleft()
        lane.in_turn = False
        ticket = lane.waiting.pop(0)
        lane.running += 1
        self._count(queue, -1)
        self._take_turn(lane, queue)
        return ticket

    def finish(self, ticket: Ticket) -> None:
        """A started ticket has ended."""
        lane = self._lanes[ticket.user_id]
        lane.running -= 1
        if lane.waiting:
            self._take_turn(lane, self._queue(ticket.worker_id))
        else:
            self._forget_if_idle(lane)

    def requeue(self, ticket: Ticket) -> None:
        """A started ticket did not run: put it back where it was, before everything that came after it."""
        lane = self._lanes[ticket.user_id]
        queue = self._queue(ticket.worker_id)
        lane.running -= 1
        bisect.insort(lane.waiting, ticket, key=_number)
        self._count(queue, 1)
        self._take_turn(lane, queue)

    def withdraw(self, ticket: Ticket) -> bool:
        """Remove a waiting ticket; False if it is not waiting."""
        lane = self._lanes.get(ticket.user_id)
        if lane is None or ticket not in lane.waiting:
            return False
        lane.waiting.remove(ticket)
        queue = self._queue(ticket.worker_id)
        self._count(queue, -1)
        if not lane.waiting and lane.in_turn:
            queue.turns.remove(lane)
            lane.in_turn = False
        self._forget_if_idle(lane)
        return True

    def hold(self, user_id: str) -> None:
        """Start nothing of this user until `release`, which must follow as often as `hold` was called."""
        lane = self._lane(user_id)
        lane.holds += 1
        lane.limit = 0
        if lane.in_turn:
            self._queue(lane.waiting[0].worker_id).turns.remove(lane)
            lane.in_turn = False

    def release(self, user_id: str) -> str | None:
        """Let a held lane go on; returns the worker that has something to start by it, if there is one."""
        lane = self._lanes[user_id]
        lane.holds -= 1
        if lane.holds:
            return None
        lane.limit = self._concurrency
        if not lane.waiting:
            self._forget_if_idle(lane)
            return None
        worker_id = lane.waiting[0].worker_id
        self._take_turn(lane, self._queue(worker_id))
        return worker_id

    def waiting_on(self, worker_id: str) -> int:
        """How many tickets wait for this worker."""
        queue = self._queues.get(worker_id)
        return queue.waiting if queue is not None else 0

    def of_user(self, user_id: str) -> tuple[int, int]:
        """How many tickets of this user are running, and how many wait."""
        lane = self._lanes.get(user_id)
        return (lane.running, len(lane.waiting)) if lane is not None else (0, 0)

    def waiting_of(self, user_id: str) -> list[Ticket]:
        """This user's waiting tickets, in order."""
        lane = self._lanes.get(user_id)
        return list(lane.waiting) if lane is not None else []

    def all_waiting(self, worker_id: str | None = None) -> Iterator[Ticket]:
        """Every waiting ticket, of one worker or of all, in no particular order."""
        for lane in list(self._lanes.values()):
            for ticket in list(lane.waiting):
                if worker_id is None or ticket.worker_id == worker_id:
                    yield ticket

    def _lane(self, user_id: str) -> _Lane:
        lane = self._lanes.get(user_id)
        if lane is None:
            lane = self._lanes[user_id] = _Lane(user_id, self._concurrency)
        return lane

    def _queue(self, worker_id: str) -> _Queue:
        queue = self._queues.get(worker_id)
        if queue is None:
            queue = self._queues[worker_id] = _Queue()
        return queue

    def _count(self, queue: _Queue, change: int) -> None:
        queue.waiting += change
        self.waiting += change

    def _take_turn(self, lane: _Lane, queue: _Queue) -> None:
        if lane.waiting and not lane.in_turn and lane.running < lane.limit:
            lane.in_turn = True
            queue.turns.append(lane)

    def _forget_if_idle(self, lane: _Lane) -> None:
        if not lane.waiting and not lane.running and not lane.holds:
            self._lanes.pop(lane.user_id, None)
