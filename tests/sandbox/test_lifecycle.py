"""The table and `step`: every pair of state and event, long random lives, and the promises that hold in all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.sandbox.lifecycle import (
    DELIBERATE,
    MAX_KILLS,
    TABLE,
    Action,
    BecameReady,
    ChannelLost,
    Deadline,
    Drain,
    Drained,
    Event,
    Exited,
    ExitReason,
    Rules,
    Slot,
    Start,
    State,
    Stop,
    Trouble,
    mermaid,
    step,
)
from moltbot.sandbox.restart import Budget, RestartPolicy
from tests.fakes import STEADY

RULES = Rules(
    boot_timeout=30.0,
    drain_timeout=20.0,
    recycle_timeout=50.0,
    stop_grace=5.0,
    restart=RestartPolicy(1.0, 60.0, 2, prompt=True),
)
LIVE = frozenset({State.STARTING, State.READY, State.DRAINING, State.STOPPING, State.KILLING})
MAY_LAST = frozenset({State.NEW, State.READY, State.STOPPED})
KILLS = (Action.KILL, Action.KILL_TREE)

TROUBLES = (
    ExitReason.UNRESPONSIVE,
    ExitReason.WEDGED,
    ExitReason.OVER_MEMORY,
    ExitReason.BOOT_FAILED,
)
EVENTS: dict[type[Any], st.SearchStrategy[Event]] = {
    Start: st.just(Start()),
    BecameReady: st.just(BecameReady()),
    Exited: st.one_of(
        st.builds(Exited, code=st.sampled_from([0, 3, 127]), signal=st.none()),
        st.builds(Exited, code=st.none(), signal=st.sampled_from([9, 11]), oom=st.booleans()),
    ),
    ChannelLost: st.just(ChannelLost("its socket ended")),
    Trouble: st.builds(Trouble, st.sampled_from(TROUBLES), st.just("trouble")),
    Drain: st.builds(Drain, st.sampled_from([ExitReason.RECYCLED, ExitReason.OVERDUE]), st.just("drain")),
    Drained: st.just(Drained()),
    Stop: st.just(Stop()),
    Deadline: st.just(Deadline()),
}
ANY_EVENT = st.one_of(*EVENTS.values())
# Lives that get somewhere: a slot's own deadline and its process's end come more often than strangers' wishes.
LIVES = st.lists(
    st.tuples(
        st.one_of(ANY_EVENT, EVENTS[Start], EVENTS[BecameReady], EVENTS[Exited], EVENTS[Deadline]),
        st.sampled_from([0.0, 0.5, 70.0]),
    ),
    max_size=60,
)
SLOTS = st.builds(
    Slot,
    state=st.sampled_from(list(State)),
    incarnation=st.integers(0, 5),
    wanted=st.booleans(),
    reason=st.one_of(st.none(), st.sampled_from(list(ExitReason))),
    detail=st.one_of(st.none(), st.just("why")),
    deadline=st.one_of(st.none(), st.just(5.0)),
    ready_since=st.one_of(st.none(), st.just(1.0)),
    kills=st.integers(0, MAX_KILLS),
    budget=st.builds(Budget, st.integers(0, 4), st.integers(0, 3)),
)

Steps = list[tuple[Slot, Event, Slot, tuple[Action, ...]]]


def live(*events: Event, slot: Slot | None = None, apart: float = 0.0) -> tuple[Slot, list[Action]]:
    """The slot after `events`, `apart` seconds from each other, and all actions on the way."""
    slot = slot or Slot()
    done: list[Action] = []
    for number, event in enumerate(events):
        slot, actions = step(slot, event, number * apart, RULES)
        done += actions
    return slot, done


def walk(life: list[tuple[Event, float]]) -> Steps:
    slot, now, steps = Slot(), 0.0, []
    for event, seconds in life:
        now += seconds
        after, actions = step(slot, event, now, RULES)
        steps.append((slot, event, after, actions))
        slot = after
    return steps


# --- every pair -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: str(kind.__name__))
def test_every_pair_leads_to_an_allowed_state_or_changes_nothing(kind: type[Any]) -> None:
    @STEADY
    @given(slot=SLOTS, event=EVENTS[kind])
    def holds(slot: Slot, event: Event) -> None:
        after, actions = step(slot, event, 7.0, RULES)
        allowed = TABLE[slot.state].get(kind)
        if allowed is None:
            assert (after, actions) == (slot, ()), "an event that comes late changes nothing"
        else:
            assert after.state in allowed

    holds()


def test_every_state_has_a_row_and_every_row_has_a_way_out() -> None:
    assert set(TABLE) == set(State)
    for state, row in TABLE.items():
        assert any(target is not state for targets in row.values() for target in targets), state


def test_every_state_can_be_reached() -> None:
    reached, frontier = {State.NEW}, [State.NEW]
    while frontier:
        for targets in TABLE[frontier.pop()].values():
            frontier += [target for target in targets if target not in reached]
            reached.update(targets)
    assert reached == set(State)


# --- promises that hold in every life ------------------------------------------------------------------------


@STEADY
@given(LIVES)
def test_every_state_that_must_not_last_has_a_deadline(life: list[tuple[Event, float]]) -> None:
    for _, _, slot, _ in walk(life):
        assert (slot.deadline is None) == (slot.state in MAY_LAST), slot.state


@STEADY
@given(LIVES)
def test_what_is_not_wanted_stops_at_its_exit(life: list[tuple[Event, float]]) -> None:
    for before, event, after, actions in walk(life):
        if isinstance(event, Exited) and before.state in LIVE and not before.wanted:
            assert after.state is State.STOPPED
            assert Action.SPAWN not in actions


@STEADY
@given(LIVES)
def test_a_deliberate_end_never_charges_the_budget(life: list[tuple[Event, float]]) -> None:
    for before, event, after, _ in walk(life):
        if isinstance(event, Exited) and before.state in LIVE:
            charged = after.budget != before.budget
            assert charged == (after.wanted and after.reason not in DELIBERATE)


@STEADY
@given(LIVES)
def test_every_way_out_of_a_live_incarnation_settles_its_requests(life: list[tuple[Event, float]]) -> None:
    for before, _, after, actions in walk(life):
        ended = before.state in LIVE and (after.state not in LIVE or after.incarnation != before.incarnation)
        if ended:
            assert Action.SETTLE in actions
        if Action.SETTLE in actions and Action.SPAWN in actions:
            assert actions.index(Action.SETTLE) < actions.index(Action.SPAWN), (
                "first the old one, then the new"
            )


@STEADY
@given(LIVES)
def test_each_spawn_is_the_next_incarnation_and_nothing_else_counts_it(
    life: list[tuple[Event, float]],
) -> None:
    for before, _, after, actions in walk(life):
        spawns = actions.count(Action.SPAWN)
        assert after.incarnation == before.incarnation + spawns
        assert spawns <= 1
        if spawns:
            assert after.state is State.STARTING
            assert before.state not in LIVE or Action.SETTLE in actions, "never two processes in one slot"


@STEADY
@given(LIVES)
def test_no_incarnation_is_killed_more_often_than_allowed(life: list[tuple[Event, float]]) -> None:
    kills: dict[int, int] = {}
    for before, _, _, actions in walk(life):
        count = sum(action in KILLS for action in actions)
        kills[before.incarnation] = kills.get(before.incarnation, 0) + count
        assert kills[before.incarnation] <= MAX_KILLS


@STEADY
@given(LIVES)
def test_a_slot_that_ended_says_why(life: list[tuple[Event, float]]) -> None:
    for before, _, after, actions in walk(life):
        if before.state in LIVE and Action.SETTLE in actions:
            assert after.reason is not None
            assert after.detail


@STEADY
@given(life=LIVES, patience=st.floats(0.001, 100))
def test_deadlines_alone_bring_a_stopped_slot_to_rest(
    life: list[tuple[Event, float]], patience: float
) -> None:
    steps = walk(life)
    slot = steps[-1][2] if steps else Slot()
    slot, _ = step(slot, Stop(), 1e6, RULES)
    count = 0
    while slot.state is not State.STOPPED:
        assert slot.deadline is not None
        slot, _ = step(slot, Deadline(), slot.deadline + patience, RULES)
        count += 1
        assert count <= MAX_KILLS + 3


# --- one life at a time ------------------------------------------------------------------------------------


READY = live(Start(), BecameReady())[0]


def test_a_start_spawns_and_ready_has_no_deadline() -> None:
    slot, actions = live(Start(), BecameReady())
    assert (slot.state, slot.incarnation, slot.deadline) == (State.READY, 1, None)
    assert actions == [Action.SPAWN]


def test_a_stop_in_order_drains_shuts_down_and_settles() -> None:
    slot, actions = live(Stop(), Drained(), Exited(0, None), slot=READY)
    assert (slot.state, slot.reason) == (State.STOPPED, ExitReason.STOPPED)
    assert actions == [Action.SEND_DRAIN, Action.SEND_SHUTDOWN, Action.SETTLE]


def test_a_start_during_a_stop_wins_and_a_start_after_it_forgives() -> None:
    slot, _ = live(Stop(), Start(), Drained(), Exited(0, None), slot=READY)
    assert (slot.state, slot.incarnation, slot.budget) == (State.STARTING, 2, Budget())
    worn = replace(READY, budget=Budget(2, 1))
    assert live(Stop(), Drained(), Exited(0, None), Start(), slot=worn)[0].budget == Budget()


@pytest.mark.parametrize("reason", [ExitReason.UNRESPONSIVE, ExitReason.WEDGED])
def test_a_stuck_worker_shows_its_stacks_before_it_is_killed(reason: ExitReason) -> None:
    _, actions = live(Trouble(reason, "stuck"), Deadline(), slot=READY)
    assert actions == [Action.DUMP_STACKS, Action.KILL]


@pytest.mark.parametrize(("wanted", "state"), [(True, State.KILLING), (False, State.STOPPED)])
def test_a_process_that_cannot_be_killed_is_left_alone_after_a_while(wanted: bool, state: State) -> None:
    slot = replace(READY, wanted=wanted)
    slot, actions = live(Trouble(ExitReason.UNRESPONSIVE, "stuck"), *[Deadline()] * MAX_KILLS, slot=slot)
    assert slot.state is State.KILLING
    assert actions == [Action.DUMP_STACKS, Action.KILL, *[Action.KILL_TREE] * (MAX_KILLS - 1)]
    slot, actions = live(Deadline(), slot=slot)
    assert slot.state is state
    assert Action.SETTLE in actions
    assert Action.SPAWN not in actions
    assert slot.detail == "its process cannot be killed"
    slot, actions = live(Exited(None, 9), slot=slot)
    assert (slot.state is State.STOPPED) is not wanted, "once it is gone, a wanted slot goes on"


def test_what_is_recycled_may_finish_what_a_stop_would_cut_short() -> None:
    recycled, _ = live(Drain(ExitReason.RECYCLED, "served"), slot=READY)
    assert recycled.deadline == RULES.recycle_timeout
    overdue, _ = live(Drain(ExitReason.OVERDUE, "stuck"), slot=recycled)
    assert (overdue.deadline, overdue.reason) == (RULES.drain_timeout, ExitReason.OVERDUE)
    stopped, _ = live(Stop(), slot=recycled)
    assert stopped.deadline == RULES.drain_timeout


def test_the_end_of_the_socket_waits_for_the_end_of_the_process() -> None:
    slot, actions = live(ChannelLost(), slot=READY)
    assert (slot.state, actions) == (State.KILLING, [])
    exited, _ = live(Exited(None, 11), slot=slot)
    assert (exited.reason, exited.detail) == (ExitReason.CRASHED, "killed by SIGSEGV")
    _, actions = live(Deadline(), slot=slot)
    assert actions == [Action.KILL], "a process that lives on without its socket is killed"


def test_deaths_lead_through_backoff_into_quarantine_and_out_on_probation() -> None:
    slot = READY
    for _ in range(2):
        slot, _ = live(Exited(None, 9), slot=slot)
        assert slot.state is State.BACKOFF
        slot, _ = live(Deadline(), BecameReady(), slot=slot)
    slot, _ = live(Exited(None, 9), slot=slot)
    assert (slot.state, slot.deadline) == (State.QUARANTINED, 60.0)
    slot, actions = live(Deadline(), slot=slot)
    assert (slot.state, actions) == (State.STARTING, [Action.SPAWN])


def test_a_whole_window_of_health_forgives_earlier_deaths() -> None:
    worn = replace(READY, budget=Budget(deaths=2), ready_since=0.0)
    assert step(worn, Exited(None, 9), 59.9, RULES)[0].state is State.QUARANTINED
    assert step(worn, Exited(None, 9), 60.0, RULES)[0].budget == Budget(deaths=1)


# --- why it ended --------------------------------------------------------------------------------------------

BORN = live(Start())[0]
SEGV, KILLED = Exited(None, 11), Exited(None, 9)


ENDS: list[tuple[Slot, list[Event], ExitReason, str]] = [
    (READY, [Exited(3, None)], ExitReason.CRASHED, "exit status 3"),
    (READY, [SEGV], ExitReason.CRASHED, "killed by SIGSEGV"),
    (
        READY,
        [ChannelLost("its socket ended"), SEGV],
        ExitReason.CRASHED,
        "its socket ended, killed by SIGSEGV",
    ),
    (READY, [Exited(None, 9, oom=True)], ExitReason.OUT_OF_MEMORY, "out of memory"),
    (READY, [ChannelLost("eof"), Exited(None, 9, oom=True)], ExitReason.OUT_OF_MEMORY, "out of memory"),
    (READY, [Exited(1, None, oom=True)], ExitReason.CRASHED, "exit status 1"),
    (READY, [Trouble(ExitReason.OVER_MEMORY, "600 MB"), KILLED], ExitReason.OVER_MEMORY, "600 MB"),
    (READY, [Trouble(ExitReason.OVER_PROCESSES, "300"), KILLED], ExitReason.OVER_PROCESSES, "300"),
    (READY, [Trouble(ExitReason.OVER_DISK, "2 GB"), KILLED], ExitReason.OVER_DISK, "2 GB"),
    (READY, [Trouble(ExitReason.UNRESPONSIVE, "silent"), KILLED], ExitReason.UNRESPONSIVE, "silent"),
    (READY, [Trouble(ExitReason.WEDGED, "blocked"), KILLED], ExitReason.WEDGED, "blocked"),
    (READY, [Drain(ExitReason.OVERDUE, "ignored"), Deadline(), KILLED], ExitReason.OVERDUE, "ignored"),
    (
        READY,
        [Drain(ExitReason.RECYCLED, "served"), Drained(), Exited(0, None)],
        ExitReason.RECYCLED,
        "served",
    ),
    (READY, [Drain(ExitReason.RECYCLED, "served"), SEGV], ExitReason.CRASHED, "killed by SIGSEGV"),
    (
        READY,
        [Drain(ExitReason.RECYCLED, "served"), ChannelLost("its socket ended"), SEGV],
        ExitReason.CRASHED,
        "its socket ended, killed by SIGSEGV",
    ),
    (READY, [Stop(), Drained(), Exited(0, None)], ExitReason.STOPPED, "asked to stop"),
    (BORN, [Stop(), KILLED], ExitReason.STOPPED, "stopped while starting"),
    (BORN, [Exited(127, None)], ExitReason.BOOT_FAILED, "exit status 127"),
    (
        BORN,
        [Exited(None, None, detail="cannot start it: no")],
        ExitReason.BOOT_FAILED,
        "cannot start it: no",
    ),
    (BORN, [ChannelLost("its socket ended"), KILLED], ExitReason.BOOT_FAILED, "its socket ended"),
    (
        BORN,
        [Trouble(ExitReason.BOOT_FAILED, "no handler"), Exited(70, None)],
        ExitReason.BOOT_FAILED,
        "no handler",
    ),
    (BORN, [Deadline(), KILLED], ExitReason.BOOT_TIMEOUT, "not ready within 30 s"),
]


@pytest.mark.parametrize(("slot", "events", "reason", "detail"), ENDS)
def test_every_end_has_its_one_reason(
    slot: Slot, events: list[Event], reason: ExitReason, detail: str
) -> None:
    after, actions = live(*events, slot=slot)
    assert after.reason is reason
    assert detail in (after.detail or "")
    assert Action.SETTLE in actions


def test_every_reason_is_tested_above() -> None:
    assert {reason for _, _, reason, _ in ENDS} == set(ExitReason)


# --- the diagram -----------------------------------------------------------------------------------------------


def test_the_diagram_is_made_of_the_whole_table() -> None:
    lines = mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> new"]
    drawn = {line.split(":")[0].strip() for line in lines[2:]}
    assert drawn == {
        f"{state} --> {target}"
        for state, row in TABLE.items()
        for targets in row.values()
        for target in targets
        if target is not state
    }
    assert all(any(state in line for line in lines[2:]) for state in State)
