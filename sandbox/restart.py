"""When a dead worker comes back, and when it is given up. Pure.

Deaths count until the worker was READY for a whole window, so that growing delays cannot outrun the window. What counts
as a death is decided in `lifecycle.py`: deliberate ends never do.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_DELAY = 30.0
JITTER = 0.25
PROBATION = 60.0
MAX_PROBATION = 3600.0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """delay and window in seconds; `prompt`: the first restart is at once (the operator set no delay)."""

    delay: float
    window: float
    max_attempts: int
    prompt: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """What a slot has used up; belongs to the slot, so no restart can forget it."""

    deaths: int = 0
    quarantines: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """After a death: the new budget, the seconds to wait, and whether that is a quarantine."""

    budget: Budget
    wait: float
    quarantined: bool


def after_death(policy: RestartPolicy, budget: Budget, ready_for: float, jitter: float) -> Verdict:
    """Judge a death after `ready_for` seconds of being READY (0 if it never was); `jitter` is in [0, 1)."""
    if ready_for >= policy.window:
        budget = Budget()
    deaths = budget.deaths + 1
    if deaths > policy.max_attempts:
        wait = min(PROBATION * 2**budget.quarantines, MAX_PROBATION)
        return Verdict(Budget(deaths, min(budget.quarantines + 1, 32)), wait, quarantined=True)
    doublings = deaths - 2 if policy.prompt else deaths - 1
    delay = 0.0 if doublings < 0 else policy.delay * 2 ** min(doublings, 32) * (1 + JITTER * jitter)
    # Jitter stays below the ceiling, and so does every delay but one that the operator set above it.
    wait = min(delay, max(MAX_DELAY, policy.delay))
    return Verdict(Budget(deaths, budget.quarantines), wait, quarantined=False)
