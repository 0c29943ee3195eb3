"""How often: the buckets against a plain model, and the headers by the letter of the draft.

The draft is draft-ietf-httpapi-ratelimit-headers, whose fields are lists of RFC 9651 strings with integer parameters.
Whom a limit concerns is in `test_rate_limits.py`.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.core.units import Rate
from moltbot.gateway.rates import MAX_BUCKETS, Buckets, Standing
from tests.fakes import STEADY, FakeClock
from tests.gateway.edge_support import LIMIT_ITEM, POLICY_ITEM


class Model:
    """A bucket as one would draw it: a level that fills with time, in exact numbers."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.level = Fraction(rate.amount)
        self.at = 0

    def take(self, now: int) -> bool:
        """now: in milliseconds."""
        filled = Fraction(now - self.at, 1000) * self.rate.amount / Fraction(self.rate.seconds)
        self.level, self.at = min(Fraction(self.rate.amount), self.level + filled), now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    @property
    def each(self) -> Fraction:
        return Fraction(self.rate.seconds) / self.rate.amount


RATES = st.builds(Rate, st.integers(1, 1000), st.sampled_from([0.5, 1.0, 7.0, 60.0, 3600.0, 86_400.0]))
STEPS = st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 5)), max_size=60)


@STEADY
@given(RATES, STEPS, st.sampled_from([0.0, 1e7, 1e9]))
def test_it_is_granted_what_the_model_grants(rate: Rate, steps: list[tuple[int, int]], since: float) -> None:
    """Also when the machine has been up for months, and a clock's numbers are large."""
    clock = FakeClock(monotonic=since)
    buckets, model, now = Buckets("user", rate, clock), Model(rate), 0
    for pause, times in steps:
        now += pause
        clock.advance(since + now / 1000 - clock.monotonic())
        for _ in range(times):
            standing = buckets.take("ada")
            granted = model.take(now)
            # At the border itself a clock's rounding decides: half a microsecond, as told by `monotonic`.
            border = abs(model.level + granted - 1) * model.each < Fraction(2, 1_000_000)
            if border and granted != (standing.wait == 0):
                return
            assert (standing.wait == 0) == granted
            if granted:
                assert abs(standing.left - model.level) <= 1
                assert standing.left <= model.level + Fraction(2, 1_000_000) / model.each
                full_in = (rate.amount - model.level) * model.each
                assert standing.full_in == pytest.approx(float(full_in), abs=1e-3)
            else:
                wait = (1 - model.level) * model.each
                assert float(wait) - 1e-5 <= standing.wait <= float(wait) + 1.1e-3


@pytest.mark.parametrize("since", [0.0, 1e6 / 3, 1e7 / 3, 1e9 / 3])
@pytest.mark.parametrize("rate", [Rate(7, 60.0), Rate(600, 60.0), Rate(1000, 3600.0), Rate(3, 1.0)])
def test_a_burst_is_exactly_the_amount_and_a_wait_is_kept(since: float, rate: Rate) -> None:
    clock = FakeClock(monotonic=since)
    buckets = Buckets("user", rate, clock)
    lefts = [buckets.take("ada").left for _ in range(rate.amount)]
    assert lefts == list(range(rate.amount - 1, -1, -1))
    refused = buckets.take("ada")
    assert refused.wait > 0
    clock.advance(refused.wait - 0.003)
    assert buckets.take("ada").wait > 0
    clock.advance(0.003001)
    assert buckets.take("ada").wait == 0
    assert buckets.take("ada").wait > 0
    assert buckets.take("ben").left == rate.amount - 1


def test_a_refusal_costs_nothing() -> None:
    clock = FakeClock()
    buckets = Buckets("user", Rate(1, 10.0), clock)
    buckets.take("ada")
    waits = [buckets.take("ada").wait for _ in range(100)]
    assert set(waits) == {10.0}


def test_memory_is_bounded_and_full_buckets_need_none() -> None:
    clock = FakeClock()
    buckets = Buckets("user", Rate(2, 60.0), clock, max_buckets=100)
    for number in range(1000):
        buckets.take(f"user-{number}")
        assert len(buckets) <= 100
    buckets.take("user-999")
    assert buckets.take("user-999").wait > 0  # whoever came last is remembered
    clock.advance(61.0)
    buckets.take("ada")
    assert len(buckets) == 1
    assert MAX_BUCKETS <= 100_000


@STEADY
@given(RATES, st.integers(1, 1100))
def test_the_headers_are_what_the_draft_says(rate: Rate, times: int) -> None:
    buckets = Buckets("credential", rate, FakeClock())
    standing = [buckets.take("ada") for _ in range(times)][-1]
    policy, limit = POLICY_ITEM.fullmatch(standing.policy), LIMIT_ITEM.fullmatch(standing.limit)
    assert policy is not None
    assert limit is not None
    assert (policy[1], int(policy[2])) == ("credential", rate.amount)
    assert rate.seconds <= int(policy[3]) < rate.seconds + 1
    assert 0 <= int(limit[2]) < rate.amount
    assert 0 < int(limit[3]) <= int(policy[3])


def test_a_standing_is_told_by_what_is_waited_for() -> None:
    buckets = Buckets("user", Rate(2, 60.0), FakeClock())
    told = [(one.policy, one.limit) for one in (buckets.take("a"), buckets.take("a"), buckets.take("a"))]
    assert told == [
        ('"user";q=2;w=60', '"user";r=1;t=30'),
        ('"user";q=2;w=60', '"user";r=0;t=60'),
        ('"user";q=2;w=60', '"user";r=0;t=30'),
    ]
    assert isinstance(buckets.take("a"), Standing)
