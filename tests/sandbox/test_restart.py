"""When a dead worker comes back: prompt, then slower, then rested; and nothing outruns the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.policies import rules_of
from moltbot.sandbox.restart import MAX_DELAY, MAX_PROBATION, Budget, RestartPolicy, Verdict, after_death
from tests.fakes import STEADY

PROMPT = RestartPolicy(delay=1.0, window=60.0, max_attempts=100, prompt=True)


def deaths(
    policy: RestartPolicy, count: int, *, ready_for: float = 0.0, jitter: float = 0.0
) -> list[Verdict]:
    """The verdicts of `count` deaths in a row, each after `ready_for` seconds of being READY."""
    verdicts: list[Verdict] = []
    budget = Budget()
    for _ in range(count):
        verdicts.append(after_death(policy, budget, ready_for, jitter))
        budget = verdicts[-1].budget
    return verdicts


def waits(policy: RestartPolicy, count: int, *, jitter: float = 0.0) -> list[float]:
    return [verdict.wait for verdict in deaths(policy, count, jitter=jitter)]


def test_the_first_death_restarts_at_once_and_later_delays_double_up_to_thirty_seconds() -> None:
    assert waits(PROMPT, 9) == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_delay_set_by_the_operator_holds_from_the_first_death() -> None:
    policy = RestartPolicy(delay=0.2, window=60.0, max_attempts=100, prompt=False)
    assert waits(policy, 4) == pytest.approx([0.2, 0.4, 0.8, 1.6])


def test_a_delay_set_above_the_usual_ceiling_is_kept() -> None:
    policy = RestartPolicy(delay=45.0, window=60.0, max_attempts=100, prompt=False)
    assert waits(policy, 3, jitter=0.5) == [45, 45, 45]


def test_only_a_delay_that_was_set_is_not_prompt() -> None:
    assert rules_of(PoolConfig.read({})).restart.prompt
    assert not rules_of(PoolConfig.read({"restartDelay": 1000})).restart.prompt


@STEADY
@given(count=st.integers(2, 60), jitter=st.floats(0, 1, exclude_max=True))
def test_jitter_only_adds_and_never_passes_the_ceiling(count: int, jitter: float) -> None:
    for plain, jittered in zip(waits(PROMPT, count), waits(PROMPT, count, jitter=jitter), strict=True):
        assert plain <= jittered <= min(plain * 1.25, MAX_DELAY)


def test_jitter_makes_a_difference() -> None:
    assert waits(PROMPT, 3, jitter=0.9)[2] > waits(PROMPT, 3)[2]


def test_a_delay_of_zero_stays_zero() -> None:
    assert set(waits(RestartPolicy(0.0, 60.0, 100, prompt=False), 50, jitter=0.9)) == {0.0}


# --- the window -----------------------------------------------------------------------------------------


def test_deaths_count_until_the_worker_was_ready_for_a_whole_window() -> None:
    policy = RestartPolicy(delay=1.0, window=60.0, max_attempts=3, prompt=True)
    before = deaths(policy, 3)[-1].budget
    assert after_death(policy, before, 59.999, 0.0).quarantined, "a death just before the window still counts"
    forgiven = after_death(policy, before, 60.0, 0.0)
    assert forgiven == Verdict(Budget(deaths=1), 0.0, quarantined=False), "as if it were the first"


def test_backoff_cannot_outrun_the_window() -> None:
    """Delays far longer than the window, and a worker that lives almost a window each time: still given up."""
    policy = RestartPolicy(delay=20.0, window=1.0, max_attempts=5, prompt=False)
    assert [verdict.quarantined for verdict in deaths(policy, 6, ready_for=0.99)] == [False] * 5 + [True]


@pytest.mark.parametrize("attempts", [0, 1, 5])
def test_one_death_more_than_the_attempts_is_a_quarantine(attempts: int) -> None:
    policy = RestartPolicy(delay=1.0, window=60.0, max_attempts=attempts, prompt=True)
    assert [verdict.quarantined for verdict in deaths(policy, attempts + 1)] == [False] * attempts + [True]


# --- quarantine -----------------------------------------------------------------------------------------


def test_probation_starts_at_a_minute_and_doubles_up_to_an_hour() -> None:
    policy = RestartPolicy(delay=1.0, window=60.0, max_attempts=0, prompt=True)
    assert waits(policy, 9, jitter=0.9) == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_probation_starts_anew_after_a_whole_window_of_health() -> None:
    policy = RestartPolicy(delay=1.0, window=60.0, max_attempts=0, prompt=True)
    assert after_death(policy, deaths(policy, 4)[-1].budget, 60.0, 0.0).wait == 60


@STEADY
@given(
    delay=st.floats(0, 3600),
    attempts=st.integers(0, 10),
    lives=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1, exclude_max=True)), max_size=200),
)
def test_whatever_happens_the_wait_is_bounded(
    delay: float, attempts: int, lives: list[tuple[float, float]]
) -> None:
    policy = RestartPolicy(delay, 60.0, attempts, prompt=False)
    budget = Budget()
    for ready_for, jitter in lives:
        verdict = after_death(policy, budget, ready_for, jitter)
        budget = verdict.budget
        assert 0 <= verdict.wait <= (MAX_PROBATION if verdict.quarantined else max(MAX_DELAY, delay))
        assert verdict.quarantined == (budget.deaths > attempts)


def test_a_slot_that_dies_for_ever_does_not_overflow() -> None:
    assert deaths(RestartPolicy(1.0, 60.0, 3, prompt=True), 5000)[-1].wait == MAX_PROBATION
