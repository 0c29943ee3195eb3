"""First placement: the guide's example, the bound at every size, and what is said about it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moltbot.core.errors import Unavailable
from moltbot.router.placement import Placement, capacity, place
from moltbot.router.ring import Ring

RINGS = {count: Ring([f"worker-{number}" for number in range(count)]) for count in (3, 8, 64)}


def test_three_users_on_three_workers_get_one_each() -> None:
    """The guide promises this very example."""
    loads: Counter[str] = Counter()
    placements = []
    for user in ("user-a", "user-b", "user-c"):
        placements.append(place(RINGS[3].walk(user), loads))
        loads[placements[-1].worker_id] += 1
    assert placements == [
        Placement("worker-0", "worker-0", "the ring's first choice"),
        Placement("worker-1", "worker-1", "the ring's first choice"),
        Placement(
            "worker-2",
            "worker-1",
            "the ring chose worker-1, which had its share of 1; 2 further on the ring, past other full workers",
        ),
    ]


def test_the_next_on_the_ring_takes_who_does_not_fit() -> None:
    assert place(["a", "b", "c"], {"a": 1}) == Placement(
        "b", "a", "the ring chose a, which had its share of 1; next on the ring"
    )


@settings(deadline=None, max_examples=30)
@given(
    count=st.sampled_from(sorted(RINGS)),
    users=st.lists(st.text(min_size=1, max_size=8, alphabet="abcdef0123456789-"), unique=True, max_size=300),
    bound=st.sampled_from([1.0, 1.05, 1.25]),
)
def test_no_worker_ever_has_more_than_its_bound(count: int, users: list[str], bound: float) -> None:
    loads: Counter[str] = Counter()
    for n, user in enumerate(users, 1):
        chosen = place(RINGS[count].walk(user), loads, bound=bound)
        loads[chosen.worker_id] += 1
        assert chosen.first_choice == RINGS[count].first(user)
        mean = n / count
        assert max(loads.values()) <= max(mean * bound, mean + 1)


@pytest.mark.parametrize("count", [3, 8, 64])
def test_many_users_stay_within_the_bound(count: int) -> None:
    loads: Counter[str] = Counter()
    off = 0
    for number in range(64 * 50):
        chosen = place(RINGS[count].walk(f"user-{number}"), loads)
        loads[chosen.worker_id] += 1
        off += chosen.worker_id != chosen.first_choice
    assert len(loads) == count
    assert max(loads.values()) <= 1.05 * 64 * 50 / count + 1
    assert off < 64 * 50 / 2  # the ring still chooses for most


@given(st.lists(st.integers(0, 50), min_size=1, max_size=10), st.floats(0.5, 2, allow_nan=False, width=32))
def test_there_is_room_for_one_more_however_uneven_the_loads_are(counts: list[int], bound: float) -> None:
    names = [f"worker-{number}" for number in range(len(counts))]
    loads = dict(zip(names, counts, strict=True))
    assert place(names, loads, bound=bound).worker_id in names


def test_workers_that_are_not_offered_neither_count_nor_get_anyone() -> None:
    # "c" drains: its hundred users must not make the share of the others look large, nor full.
    loads = {"a": 1, "b": 0, "c": 100}
    assert place(["a", "b"], loads).worker_id == "b"
    assert place(["c", "a", "b"], loads).worker_id == "a"


def test_nobody_to_offer_is_said() -> None:
    with pytest.raises(Unavailable, match="no worker can take a new user"):
        place([], {"worker-0": 1})


def test_the_capacity_rounds_up_the_even_share_and_down_the_bound() -> None:
    assert [capacity(n, 3) for n in (1, 3, 4, 57, 60, 100)] == [1, 1, 2, 19, 21, 35]
