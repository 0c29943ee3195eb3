"""What counts as trouble in a running worker, where exactly it begins, and what is never a sign."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.health import MISSED_BEATS, Limits, Sample, judge
from moltbot.sandbox.lifecycle import ExitReason
from moltbot.sandbox.policies import limits_of
from tests.fakes import STEADY

LIMITS = Limits(heartbeat_interval=5.0, max_loop_lag=15.0, max_memory=1000, soft_memory=800, max_tasks=40)
HEALTHY = Sample(since_beat=1.0, lag=0.0, in_flight=0, memory=100, tasks=3)


def reason(sample: Sample, limits: Limits = LIMITS) -> ExitReason | None:
    finding = judge(sample, limits)
    return None if finding is None else finding.reason


def test_a_healthy_worker_has_no_finding() -> None:
    assert judge(HEALTHY, LIMITS) is None


@pytest.mark.parametrize(
    ("at_the_limit", "beyond", "expected"),
    [
        (replace(HEALTHY, since_beat=15.0), replace(HEALTHY, since_beat=15.001), ExitReason.UNRESPONSIVE),
        (
            replace(HEALTHY, lag=15.0, in_flight=1),
            replace(HEALTHY, lag=15.001, in_flight=1),
            ExitReason.WEDGED,
        ),
        (replace(HEALTHY, tasks=40), replace(HEALTHY, tasks=41), ExitReason.OVER_PROCESSES),
        (replace(HEALTHY, memory=800), replace(HEALTHY, memory=801), ExitReason.RECYCLED),
    ],
)
def test_a_limit_itself_is_allowed_and_what_is_beyond_is_not(
    at_the_limit: Sample, beyond: Sample, expected: ExitReason
) -> None:
    assert reason(at_the_limit) is None
    assert reason(beyond) is expected


def test_the_hard_memory_limit_kills_and_the_soft_one_recycles() -> None:
    assert reason(replace(HEALTHY, memory=1000)) is ExitReason.RECYCLED
    assert reason(replace(HEALTHY, memory=1001)) is ExitReason.OVER_MEMORY


def test_three_beats_must_be_missing() -> None:
    assert MISSED_BEATS == 3


def test_a_blocked_loop_without_work_is_nobodys_loss() -> None:
    assert reason(replace(HEALTHY, lag=3600.0, in_flight=0)) is None


def test_findings_are_judged_from_the_worst_to_the_mildest() -> None:
    everything = Sample(since_beat=99.0, lag=99.0, in_flight=1, memory=10_000, tasks=99)
    assert reason(everything) is ExitReason.UNRESPONSIVE
    assert reason(replace(everything, since_beat=0.0)) is ExitReason.WEDGED
    calm = replace(everything, since_beat=0.0, lag=0.0)
    assert reason(calm) is ExitReason.OVER_PROCESSES
    assert reason(replace(calm, tasks=1)) is ExitReason.OVER_MEMORY
    assert reason(replace(calm, tasks=1, memory=900)) is ExitReason.RECYCLED


@STEADY
@given(
    in_flight=st.integers(0, 10**6),
    since_beat=st.floats(0, 15),
    lag=st.floats(0, 15),
    memory=st.integers(0, 800),
    tasks=st.integers(0, 40),
)
def test_busy_is_never_a_sign(in_flight: int, since_beat: float, lag: float, memory: int, tasks: int) -> None:
    assert judge(Sample(since_beat, lag, in_flight, memory, tasks), LIMITS) is None


@pytest.mark.parametrize(
    ("sample", "fact"),
    [
        (replace(HEALTHY, since_beat=16.26), "16.3 s"),
        (replace(HEALTHY, lag=20.0, in_flight=1), "20.0 s"),
        (replace(HEALTHY, memory=1234), "1234 bytes"),
        (replace(HEALTHY, tasks=55), "55 processes and threads, the limit is 40"),
        (replace(HEALTHY, memory=901), "soft limit 800"),
    ],
)
def test_a_finding_says_what_was_measured(sample: Sample, fact: str) -> None:
    finding = judge(sample, LIMITS)
    assert finding is not None
    assert fact in finding.detail


def test_limits_come_from_the_configuration_in_seconds_and_bytes() -> None:
    settings = {"heartbeatInterval": 250, "maxLoopLag": "2s", "maxMemory": "100MB", "maxProcesses": 50}
    two_of_ours = 2  # the guard, or what bwrap needs
    assert limits_of(PoolConfig.read(settings)) == Limits(0.25, 2.0, 100 << 20, 80 << 20, 50 + two_of_ours)
