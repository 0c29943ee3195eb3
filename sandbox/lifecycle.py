"""The life of a worker slot: one enum of states, one table of transitions, one pure `step`.

A *slot* keeps its name and directories for ever and is filled by one *incarnation* (a process) after the other. In
every state that can last too long, `deadline` says when `Deadline` is due; that is the slot's only timer. `step` decides,
`supervisor.py` carries the actions out, and neither knows the other's trade. When a dead worker comes back is in
`restart.py`; what counts as trouble in `health.py`. The diagram in `docs/explanation/lifecycle.md` is made from `TABLE`.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moltbot.sandbox.restart import Budget, RestartPolicy, after_death

STACK_DUMP_SECONDS = 0.3
LAST_WORDS_SECONDS = 0.5
KILL_SECONDS = 2.0
MAX_KILLS = 5
UNKILLABLE_SECONDS = 30.0


class State(enum.StrEnum):
    """Where a slot is; the words are the same in logs, status and events."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    KILLING = "killing"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"


class ExitReason(enum.StrEnum):
    """Why an incarnation ended."""

    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    OVER_MEMORY = "over_memory"
    OVER_PROCESSES = "over_processes"
    OVER_DISK = "over_disk"
    UNRESPONSIVE = "unresponsive"
    WEDGED = "wedged"
    OVERDUE = "overdue"
    RECYCLED = "recycled"
    STOPPED = "stopped"
    BOOT_FAILED = "boot_failed"
    BOOT_TIMEOUT = "boot_timeout"


DELIBERATE = frozenset({ExitReason.RECYCLED, ExitReason.OVERDUE, ExitReason.STOPPED})
"""Ends that are not the worker's failure: they cost no restart budget and wait for nothing."""

_STUCK = frozenset({ExitReason.UNRESPONSIVE, ExitReason.WEDGED, ExitReason.OVERDUE})
"""Ends whose stacks are worth a short delay."""


class Action(enum.Enum):
    """What the supervisor has to do, in order."""

    SPAWN = enum.auto()
    SEND_DRAIN = enum.auto()
    SEND_SHUTDOWN = enum.auto()
    DUMP_STACKS = enum.auto()
    KILL = enum.auto()
    KILL_TREE = enum.auto()
    SETTLE = enum.auto()
    """Tell every request in flight that this incarnation will not answer."""


# --- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Someone wants this slot to run."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The incarnation's `ready` frame came."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The incarnation's last process is gone; `oom`: the kernel killed for memory meanwhile. `jitter` in [0, 1)."""

    code: int | None
    signal: int | None
    oom: bool = False
    detail: str | None = None
    jitter: float = 0.0


@dataclass(frozen=True, slots=True)
class ChannelLost:
    """The socket ended (no detail), or its bytes made no sense."""

    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """The incarnation must be killed."""

    reason: ExitReason
    detail: str


@dataclass(frozen=True, slots=True)
class Drain:
    """End the incarnation in order and start the next: recycled, or overdue."""

    reason: ExitReason
    detail: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is in flight any more."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the incarnation in order and start no other."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The slot's deadline is here."""


Event = Start | BecameReady | Exited | ChannelLost | Trouble | Drain | Drained | Stop | Deadline


# --- the slot ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds, and the restart policy. recycle_timeout: by then every request has ended by its own deadline."""

    boot_timeout: float
    drain_timeout: float
    recycle_timeout: float
    stop_grace: float
    restart: RestartPolicy


@dataclass(frozen=True, slots=True)
class Slot:
    """All that is decided about a slot. `reason` and `detail` are why its incarnation is ending, or why the last one did."""

    state: State = State.NEW
    incarnation: int = 0
    wanted: bool = False
    reason: ExitReason | None = None
    detail: str | None = None
    deadline: float | None = None
    ready_since: float | None = None
    kills: int = 0
    budget: Budget = field(default_factory=Budget)


S = State
_AFTER_EXIT = (S.STARTING, S.BACKOFF, S.QUARANTINED, S.STOPPED)

TABLE: Mapping[State, Mapping[type[Any], tuple[State, ...]]] = {
    S.NEW: {Start: (S.STARTING,), Stop: (S.STOPPED,)},
    S.STARTING: {
        BecameReady: (S.READY,),
        Exited: _AFTER_EXIT,
        ChannelLost: (S.KILLING,),
        Trouble: (S.KILLING,),
        Deadline: (S.KILLING,),
        Stop: (S.KILLING,),
    },
    S.READY: {
        Exited: _AFTER_EXIT,
        ChannelLost: (S.KILLING,),
        Trouble: (S.KILLING,),
        Drain: (S.DRAINING,),
        Stop: (S.DRAINING,),
    },
    S.DRAINING: {
        Drained: (S.STOPPING,),
        Exited: _AFTER_EXIT,
        ChannelLost: (S.KILLING,),
        Trouble: (S.KILLING,),
        Deadline: (S.KILLING,),
        Drain: (S.DRAINING,),
        Stop: (S.DRAINING,),
        Start: (S.DRAINING,),
    },
    S.STOPPING: {
        Exited: _AFTER_EXIT,
        Deadline: (S.KILLING,),
        Trouble: (S.KILLING,),
        Stop: (S.STOPPING,),
        Start: (S.STOPPING,),
    },
    S.KILLING: {
        Exited: _AFTER_EXIT,
        Deadline: (S.KILLING, S.STOPPED),
        Stop: (S.KILLING, S.STOPPED),
        Start: (S.KILLING,),
    },
    S.BACKOFF: {Deadline: (S.STARTING,), Stop: (S.STOPPED,)},
    S.QUARANTINED: {Deadline: (S.STARTING,), Stop: (S.STOPPED,)},
    S.STOPPED: {Start: (S.STARTING,)},
}
"""Which event may lead from which state to which. An event that a state does not list changes nothing: it came late."""


def step(slot: Slot, event: Event, now: float, rules: Rules) -> tuple[Slot, tuple[Action, ...]]:
    """Return the slot after `event` at `now` (seconds, monotonic) and what has to be done about it."""
    allowed = TABLE[slot.state].get(type(event))
    if allowed is None:
        return slot, ()
    after, actions = _HANDLERS[type(event)](slot, event, now, rules)
    if after.state not in allowed:
        raise AssertionError(f"{slot.state} --{event}--> {after.state} is not in the table")
    return after, actions


Decision = tuple[Slot, tuple[Action, ...]]


def _start(slot: Slot, event: Start, now: float, rules: Rules) -> Decision:
    if slot.state in (S.NEW, S.STOPPED):
        return _spawn(replace(slot, wanted=True, budget=Budget()), now, rules)
    return replace(slot, wanted=True), ()


def _spawn(slot: Slot, now: float, rules: Rules) -> Decision:
    slot = replace(
        slot,
        state=S.STARTING,
        incarnation=slot.incarnation + 1,
        deadline=now + rules.boot_timeout,
        ready_since=None,
        kills=0,
    )
    return slot, (Action.SPAWN,)


def _became_ready(slot: Slot, event: BecameReady, now: float, rules: Rules) -> Decision:
    return replace(slot, state=S.READY, deadline=None, ready_since=now, reason=None, detail=None), ()


def _drain(slot: Slot, event: Drain, now: float, rules: Rules) -> Decision:
    timeout = rules.recycle_timeout if event.reason is ExitReason.RECYCLED else rules.drain_timeout
    deadline = now + timeout if slot.deadline is None else min(slot.deadline, now + timeout)
    slot = replace(slot, state=S.DRAINING, reason=event.reason, detail=event.detail, deadline=deadline)
    return slot, (Action.SEND_DRAIN,)


def _drained(slot: Slot, event: Drained, now: float, rules: Rules) -> Decision:
    return replace(slot, state=S.STOPPING, deadline=now + rules.stop_grace), (Action.SEND_SHUTDOWN,)


def _stop(slot: Slot, event: Stop, now: float, rules: Rules) -> Decision:
    slot = replace(slot, wanted=False)
    if slot.state is S.KILLING and slot.kills >= MAX_KILLS:
        return replace(slot, state=S.STOPPED, deadline=None), (Action.SETTLE,)
    match slot.state:
        case S.NEW | S.BACKOFF | S.QUARANTINED:
            return replace(slot, state=S.STOPPED, deadline=None), ()
        case S.STARTING:
            return _kill(slot, ExitReason.STOPPED, "stopped while starting", now)
        case S.READY:
            return _drain(slot, Drain(ExitReason.STOPPED, "asked to stop"), now, rules)
        case S.DRAINING:
            deadline = min(slot.deadline or now, now + rules.drain_timeout)
            return replace(slot, deadline=deadline), ()
    return slot, ()


def _trouble(slot: Slot, event: Trouble, now: float, rules: Rules) -> Decision:
    return _kill(slot, event.reason, event.detail, now)


def _channel_lost(slot: Slot, event: ChannelLost, now: float, rules: Rules) -> Decision:
    # While draining as well: nobody has told the worker to end yet.
    reason = ExitReason.BOOT_FAILED if slot.state is S.STARTING else ExitReason.CRASHED
    if event.detail is not None:
        return _kill(slot, reason, event.detail, now)
    # Most often the process has just died, and how it did is known in a moment: callers are told then, and the truth.
    return replace(slot, state=S.KILLING, reason=reason, detail=None, deadline=now + LAST_WORDS_SECONDS), ()


def _kill(slot: Slot, reason: ExitReason, detail: str | None, now: float) -> Decision:
    slot = replace(slot, state=S.KILLING, reason=reason, detail=detail)
    if reason in _STUCK:
        return replace(slot, deadline=now + STACK_DUMP_SECONDS), (Action.DUMP_STACKS,)
    return replace(slot, deadline=now + KILL_SECONDS, kills=1), (Action.KILL,)


def _deadline(slot: Slot, event: Deadline, now: float, rules: Rules) -> Decision:
    match slot.state:
        case S.BACKOFF | S.QUARANTINED:
            return _spawn(slot, now, rules)
        case S.STARTING:
            return _kill(slot, ExitReason.BOOT_TIMEOUT, f"not ready within {rules.boot_timeout:g} s", now)
        case S.KILLING:
            return _kill_again(slot, now)
    return _kill(slot, slot.reason or ExitReason.STOPPED, slot.detail, now)


def _kill_again(slot: Slot, now: float) -> Decision:
    if slot.kills < MAX_KILLS:
        action = Action.KILL_TREE if slot.kills else Action.KILL
        return replace(slot, kills=slot.kills + 1, deadline=now + KILL_SECONDS), (action,)
    # A process that survives SIGKILL hangs in the kernel. Its directories must not get a second tenant, so a slot that is
    # wanted waits for its end, however long that takes.
    slot = replace(slot, detail="its process cannot be killed")
    if not slot.wanted:
        return replace(slot, state=S.STOPPED, deadline=None), (Action.SETTLE,)
    return replace(slot, deadline=now + UNKILLABLE_SECONDS), (Action.SETTLE, Action.KILL_TREE)


def _exited(slot: Slot, event: Exited, now: float, rules: Rules) -> Decision:
    reason, detail = _why(slot, event)
    ready_for = now - slot.ready_since if slot.ready_since is not None else 0.0
    slot = replace(slot, reason=reason, detail=detail, ready_since=None, deadline=None)
    if not slot.wanted:
        return replace(slot, state=S.STOPPED), (Action.SETTLE,)
    if reason in DELIBERATE:
        slot, actions = _spawn(slot, now, rules)
        return slot, (Action.SETTLE, *actions)
    verdict = after_death(rules.restart, slot.budget, ready_for, event.jitter)
    state = S.QUARANTINED if verdict.quarantined else S.BACKOFF
    return replace(slot, state=state, budget=verdict.budget, deadline=now + verdict.wait), (Action.SETTLE,)


def _why(slot: Slot, event: Exited) -> tuple[ExitReason, str]:
    """The one reason of an end, and how the process ended."""
    how = event.detail or _how(event)
    if slot.state in (S.KILLING, S.DRAINING, S.STOPPING) and slot.reason not in (None, ExitReason.CRASHED):
        # An end in order was asked for; one that came as a surprise while draining is a crash all the same.
        if slot.state is not S.DRAINING:
            return slot.reason or ExitReason.CRASHED, slot.detail or how
    elif slot.state is S.STARTING:
        return ExitReason.BOOT_FAILED, how
    if event.oom and event.signal is not None:
        return ExitReason.OUT_OF_MEMORY, "killed by the kernel, which was out of memory"
    lost = slot.detail if slot.state is S.KILLING and slot.detail else None
    return ExitReason.CRASHED, f"{lost}, {how}" if lost else how


def _how(event: Exited) -> str:
    if event.signal is None:
        return f"exit status {event.code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"killed by {names.get(event.signal, f'signal {event.signal}')}"


_HANDLERS: Mapping[type[Any], Callable[[Slot, Any, float, Rules], Decision]] = {
    Start: _start,
    BecameReady: _became_ready,
    Exited: _exited,
    ChannelLost: _channel_lost,
    Trouble: _trouble,
    Drain: _drain,
    Drained: _drained,
    Stop: _stop,
    Deadline: _deadline,
}


def mermaid() -> str:
    """The transition table as a Mermaid state diagram, for the docs."""
    lines = ["stateDiagram-v2", f"    [*] --> {S.NEW}"]
    for state, row in TABLE.items():
        labels: dict[State, list[str]] = {}
        for event, targets in row.items():
            for target in targets:
                if target is not state:
                    labels.setdefault(target, []).append(event.__name__)
        lines += [f"    {state} --> {target}: {', '.join(names)}" for target, names in labels.items()]
    return "\n".join(lines)
