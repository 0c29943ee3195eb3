"""Many deadlines on one timer: each fires once, in its time, unless it was dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moltbot.core.deadlines import Deadlines
from tests.fakes import FakeClock

STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "advance"]), st.integers(0, 5), st.integers(1, 9)), max_size=60
)


@given(STEPS)
def test_each_is_due_in_its_time_and_never_twice(steps: list[tuple[str, int, int]]) -> None:
    clock = FakeClock()
    fired: list[tuple[int, float]] = []
    deadlines: Deadlines[int] = Deadlines(clock, lambda key: fired.append((key, clock.monotonic())))
    expected: dict[int, float] = {}
    for what, key, seconds in steps:
        match what:
            case "set":
                deadlines.set(key, seconds)
                expected[key] = clock.monotonic() + seconds
            case "drop":
                deadlines.drop(key)
                expected.pop(key, None)
            case "advance":
                end = clock.monotonic() + seconds
                due = sorted((when, key) for key, when in expected.items() if when <= end)
                clock.advance(seconds)
                assert sorted((when, key) for key, when in fired) == due
                fired.clear()
                for _, late in due:
                    del expected[late]
        assert len(deadlines) == len(expected)
    deadlines.close()
    clock.advance(100)
    assert not fired


def test_what_is_dropped_by_an_earlier_one_does_not_fire() -> None:
    clock = FakeClock()
    fired: list[str] = []

    def due(key: str) -> None:
        fired.append(key)
        deadlines.drop("second")

    deadlines: Deadlines[str] = Deadlines(clock, due)
    deadlines.set("first", 1)
    deadlines.set("second", 1)
    clock.advance(2)
    assert fired == ["first"]


def test_one_that_is_due_may_set_itself_anew() -> None:
    clock = FakeClock()
    fired: list[float] = []

    def due(key: str) -> None:
        fired.append(clock.monotonic())
        deadlines.set(key, 1)

    deadlines: Deadlines[str] = Deadlines(clock, due)
    start = clock.monotonic()
    deadlines.set("again", 1)
    clock.advance(1)
    clock.advance(1)
    assert fired == [start + 1, start + 2]
