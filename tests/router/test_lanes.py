"""Lanes: order within one, turns between them, bounds, and counters that never drift, checked against a naive model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moltbot.core.errors import QueueFull, UserQueueFull
from moltbot.router.lanes import Lanes, Ticket
from tests.fakes import STEADY


@dataclass(eq=False)
class Waiting:
    """The plainest ticket."""

    number: int
    user_id: str
    worker_id: str = "worker-0"

    def __repr__(self) -> str:
        return f"{self.user_id}{self.number}"


def make(*, user_concurrency: int = 1, max_per_user: int = 1000, max_per_worker: int = 10_000) -> Lanes:
    return Lanes(user_concurrency=user_concurrency, max_per_user=max_per_user, max_per_worker=max_per_worker)


def submit(lanes: Lanes, users: str, *, room: bool = False) -> list[Waiting]:
    """One ticket for each letter, numbered by arrival."""
    tickets = [Waiting(number, user) for number, user in enumerate(users)]
    for ticket in tickets:
        lanes.submit(ticket, room=room)
    return tickets


def started(lanes: Lanes, worker_id: str = "worker-0") -> list[Ticket]:
    """All that may start now."""
    found = []
    while (ticket := lanes.next(worker_id)) is not None:
        found.append(ticket)
    return found


# --- order and turns ---------------------------------------------------------------------------------------


def test_a_lane_runs_in_arrival_order_and_one_at_a_time() -> None:
    lanes = make()
    tickets = submit(lanes, "aaa")
    for ticket in tickets:
        assert started(lanes) == [ticket]
        assert lanes.of_user("a")[0] == 1
        lanes.finish(ticket)
    assert started(lanes) == []


@pytest.mark.parametrize("concurrency", [2, 3])
def test_user_concurrency_lets_that_many_of_a_user_run(concurrency: int) -> None:
    lanes = make(user_concurrency=concurrency)
    tickets = submit(lanes, "aaaaa")
    assert started(lanes) == tickets[:concurrency]
    lanes.finish(tickets[1])
    assert started(lanes) == [tickets[concurrency]], "the next in order, whichever ended"


@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_user_with_a_hundred_waiting_delays_anothers_first_by_at_most_one(concurrency: int) -> None:
    lanes = make(user_concurrency=concurrency)
    *many, single = submit(lanes, "a" * 100 + "b")
    first, second = lanes.next("worker-0"), lanes.next("worker-0")
    assert many[0] is first
    assert single is second


def test_lanes_take_turns() -> None:
    lanes = make()
    a1, a2, b1, b2, c1 = submit(lanes, "aabbc")
    order: list[Ticket] = []
    while (ticket := lanes.next("worker-0")) is not None:  # a worker with room for one
        order.append(ticket)
        lanes.finish(ticket)
    assert order == [a1, b1, c1, a2, b2]


def test_workers_do_not_wait_for_each_other() -> None:
    lanes = make()
    here, there = Waiting(1, "a", "worker-0"), Waiting(2, "b", "worker-1")
    lanes.submit(here, room=False)
    lanes.submit(there, room=False)
    assert lanes.next("worker-1") is there
    assert lanes.next("worker-1") is None
    assert lanes.next("worker-7") is None
    assert (lanes.waiting_on("worker-0"), lanes.waiting_on("worker-1"), lanes.waiting) == (1, 0, 1)


# --- bounds --------------------------------------------------------------------------------------------------


def test_a_full_lane_refuses_its_user_only() -> None:
    lanes = make(max_per_user=2)
    submit(lanes, "aa")
    with pytest.raises(UserQueueFull, match="this user already has 2 requests waiting") as caught:
        lanes.submit(Waiting(3, "a"), room=False)
    assert (caught.value.code, caught.value.retryable) == ("user_queue_full", True)
    assert caught.value.verdict == "not_started"
    lanes.submit(Waiting(4, "b"), room=False)
    assert lanes.waiting == 3


def test_a_full_worker_refuses_everybody_but_other_workers_do_not() -> None:
    lanes = make(max_per_worker=2)
    submit(lanes, "ab")
    with pytest.raises(QueueFull, match="worker-0 already has 2 requests waiting") as caught:
        lanes.submit(Waiting(3, "c"), room=False)
    assert not isinstance(caught.value, UserQueueFull)
    assert (caught.value.code, caught.value.worker) == ("worker_queue_full", "worker-0")
    lanes.submit(Waiting(4, "c", "worker-1"), room=False)


def test_what_can_start_at_once_never_counts_as_waiting() -> None:
    lanes = make(max_per_user=0, max_per_worker=0)
    ticket = Waiting(1, "a")
    lanes.submit(ticket, room=True)
    assert lanes.next("worker-0") is ticket
    with pytest.raises(UserQueueFull):
        lanes.submit(Waiting(2, "a"), room=True)  # the user's own first one is running
    with pytest.raises(UserQueueFull):
        lanes.submit(Waiting(3, "b"), room=False)
    assert lanes.of_user("b") == (0, 0)


def test_room_is_no_way_past_those_who_wait() -> None:
    lanes = make(max_per_worker=1)
    submit(lanes, "a")
    with pytest.raises(QueueFull):
        lanes.submit(Waiting(2, "b"), room=True)


def test_a_refused_user_leaves_nothing_behind() -> None:
    lanes = make(max_per_user=0)
    for number in range(100):
        with pytest.raises(UserQueueFull):
            lanes.submit(Waiting(number, f"user-{number}"), room=False)
    assert (lanes.waiting, list(lanes.all_waiting()), len(lanes._lanes)) == (0, [], 0)


# --- back and out ----------------------------------------------------------------------------------------------


def test_a_requeued_ticket_goes_before_all_that_came_after_it() -> None:
    lanes = make(user_concurrency=2)
    first, second, third, fourth = submit(lanes, "aaaa")
    assert started(lanes) == [first, second]
    lanes.requeue(second)  # whichever of two dies first
    lanes.requeue(first)
    assert started(lanes) == [first, second]
    lanes.finish(first)
    lanes.finish(second)
    assert started(lanes) == [third, fourth]


def test_a_requeued_ticket_is_never_refused() -> None:
    lanes = make(max_per_user=1, max_per_worker=1)
    first, second = Waiting(1, "a"), Waiting(2, "a")
    lanes.submit(first, room=True)
    assert lanes.next("worker-0") is first
    lanes.submit(second, room=True)
    lanes.requeue(first)
    assert lanes.waiting == 2
    assert started(lanes) == [first]


@pytest.mark.parametrize("index", range(3))
def test_a_ticket_can_be_withdrawn_from_anywhere_in_its_lane(index: int) -> None:
    lanes = make()
    tickets = submit(lanes, "aaa")
    gone = tickets.pop(index)
    assert lanes.withdraw(gone)
    assert not lanes.withdraw(gone), "only once"
    for ticket in tickets:
        assert started(lanes) == [ticket]
        assert not lanes.withdraw(ticket), "what runs waits no longer"
        lanes.finish(ticket)
        assert not lanes.withdraw(ticket)
    assert (lanes.waiting, len(lanes._lanes)) == (0, 0)


def test_a_lane_whose_last_ticket_was_withdrawn_loses_its_turn_and_no_other_does() -> None:
    lanes = make()
    a, b, c = submit(lanes, "abc")
    assert lanes.withdraw(b)
    assert started(lanes) == [a, c]


def test_all_waiting_can_be_emptied_while_it_is_read() -> None:
    lanes = make()
    submit(lanes, "aabbc")
    elsewhere = Waiting(9, "d", "worker-1")
    lanes.submit(elsewhere, room=False)
    for ticket in lanes.all_waiting("worker-0"):
        assert lanes.withdraw(ticket)
    assert list(lanes.all_waiting()) == [elsewhere]


# --- held ------------------------------------------------------------------------------------------------


def test_a_held_lane_starts_nothing_and_keeps_its_order() -> None:
    lanes = make()
    first, other, second = submit(lanes, "aba")
    lanes.hold("a")
    assert started(lanes) == [other]
    third = Waiting(9, "a")
    lanes.submit(third, room=True)
    assert lanes.next("worker-0") is None
    assert lanes.waiting_of("a") == [first, second, third]
    assert lanes.release("a") == "worker-0"
    assert started(lanes) == [first]
    lanes.finish(first)
    assert started(lanes) == [second]


def test_a_held_lane_has_its_bounds() -> None:
    lanes = make(max_per_user=1)
    lanes.hold("a")
    lanes.submit(Waiting(1, "a"), room=True)
    with pytest.raises(UserQueueFull):
        lanes.submit(Waiting(2, "a"), room=True)


def test_a_lane_held_twice_is_released_twice_and_then_forgotten() -> None:
    lanes = make()
    lanes.hold("a")
    lanes.hold("a")
    [ticket] = submit(lanes, "a")
    assert lanes.release("a") is None
    assert started(lanes) == []
    lanes.withdraw(ticket)
    assert lanes.release("a") is None
    assert len(lanes._lanes) == 0


def test_what_ran_may_end_or_come_back_while_its_lane_is_held() -> None:
    lanes = make(user_concurrency=2)
    first, second, third = submit(lanes, "aaa")
    assert started(lanes) == [first, second]
    lanes.hold("a")
    lanes.finish(second)
    lanes.requeue(first)
    assert started(lanes) == []
    assert lanes.of_user("a") == (0, 2)
    lanes.release("a")
    assert started(lanes) == [first, third]


# --- the naive model --------------------------------------------------------------------------------------------

USERS = {"a": "worker-0", "b": "worker-0", "c": "worker-0", "d": "worker-1"}
PER_USER, PER_WORKER, CONCURRENCY = 4, 7, 2


class AgainstTheModel(RuleBasedStateMachine):
    """Two plain lists, `waiting` and `running`, say what must be true of the lanes at every moment."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = make(user_concurrency=CONCURRENCY, max_per_user=PER_USER, max_per_worker=PER_WORKER)
        self.waiting: list[Waiting] = []
        self.running: list[Waiting] = []
        self.since_start: dict[str, int] = {}
        self.holds = dict.fromkeys(USERS, 0)
        self.count = 0

    def _of(self, user: str, tickets: list[Waiting]) -> list[Waiting]:
        return [ticket for ticket in tickets if ticket.user_id == user]

    def _ready(self, worker: str) -> list[str]:
        """The users of a worker who have something that may start."""
        return [
            user
            for user, home in USERS.items()
            if home == worker
            and not self.holds[user]
            and self._of(user, self.waiting)
            and len(self._of(user, self.running)) < CONCURRENCY
        ]

    @rule(user=st.sampled_from(sorted(USERS)), room=st.booleans())
    def submit(self, user: str, room: bool) -> None:
        worker = USERS[user]
        queued = [ticket for ticket in self.waiting if ticket.worker_id == worker]
        free = len(self._of(user, self.running)) < CONCURRENCY and not self.holds[user]
        at_once = room and free and not self._of(user, self.waiting) and not self._ready(worker)
        self.count += 1
        ticket = Waiting(self.count, user, worker)
        if not at_once and len(self._of(user, self.waiting)) >= PER_USER:
            with pytest.raises(UserQueueFull):
                self.lanes.submit(ticket, room=room)
        elif not at_once and len(queued) >= PER_WORKER:
            with pytest.raises(QueueFull):
                self.lanes.submit(ticket, room=room)
        else:
            self.lanes.submit(ticket, room=room)
            self.waiting.append(ticket)

    @rule(worker=st.sampled_from(["worker-0", "worker-1"]))
    def next(self, worker: str) -> None:
        ready = self._ready(worker)
        ticket = self.lanes.next(worker)
        if not ready:
            assert ticket is None
            return
        assert isinstance(ticket, Waiting)
        user = ticket.user_id
        assert user in ready
        assert ticket is min(self._of(user, self.waiting), key=lambda waiting: waiting.number)
        # Nobody who could start is passed over more often than there are others.
        self.since_start = {name: self.since_start.get(name, 0) + 1 for name in ready} | {user: 0}
        assert max(self.since_start.values()) < len(USERS)
        self.waiting.remove(ticket)
        self.running.append(ticket)

    @rule(user=st.sampled_from(sorted(USERS)))
    def hold(self, user: str) -> None:
        self.holds[user] += 1
        self.lanes.hold(user)

    @precondition(lambda self: any(self.holds.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from([user for user, count in self.holds.items() if count]))
        self.holds[user] -= 1
        may_start = not self.holds[user] and self._of(user, self.waiting)
        assert self.lanes.release(user) == (USERS[user] if may_start else None)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.lanes.finish(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.running))
        self.running.remove(ticket)
        self.waiting.append(ticket)
        self.lanes.requeue(ticket)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(ticket)
        assert self.lanes.withdraw(ticket)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def withdraw_what_runs(self, data: st.DataObject) -> None:
        assert not self.lanes.withdraw(data.draw(st.sampled_from(self.running)))

    @invariant()
    def counters_agree(self) -> None:
        lanes = self.lanes
        assert lanes.waiting == len(self.waiting)
        assert set(lanes.all_waiting()) == set(self.waiting)
        for user in USERS:
            assert lanes.of_user(user) == (
                len(self._of(user, self.running)),
                len(self._of(user, self.waiting)),
            )
        for worker in set(USERS.values()):
            assert lanes.waiting_on(worker) == sum(ticket.worker_id == worker for ticket in self.waiting)

    @invariant()
    def idle_users_are_forgotten(self) -> None:
        busy = {ticket.user_id for ticket in self.waiting + self.running}
        busy |= {user for user, count in self.holds.items() if count}
        assert set(self.lanes._lanes) == busy

    def teardown(self) -> None:
        """Whatever happened, all that waits gets its turn: no lane was lost."""
        for user, count in self.holds.items():
            for _ in range(count):
                self.lanes.release(user)
        self.holds = dict.fromkeys(USERS, 0)
        while self.waiting or self.running:
            for worker in set(USERS.values()):
                while self._ready(worker):
                    self.next(worker)
            assert self.running
            while self.running:
                self.lanes.finish(self.running.pop())
        assert (self.lanes.waiting, len(self.lanes._lanes)) == (0, 0)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = STEADY
