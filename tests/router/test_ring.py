"""The ring: frozen placements, independence of order and process, and what a change of the pool moves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moltbot.core.errors import Unavailable
from moltbot.router.ring import Ring

# Must never change: a pool that is started anew, and a second machine, have to name the same order. On eight workers.
GOLDEN = {
    "user-a": "0 1 5 3 6 7 2 4",
    "user-b": "7 6 1 5 3 4 0 2",
    "user-c": "5 7 1 3 6 4 0 2",
    "alice@example.com": "0 6 5 4 7 3 2 1",
    "a/b": "5 1 4 2 3 0 7 6",
    "a_b": "2 6 0 4 3 5 7 1",
    "A": "5 2 7 0 3 1 4 6",
    "nul\0nul": "6 4 3 5 7 0 1 2",
    "\U0001f98a": "4 1 0 6 5 7 2 3",
    "\u00e9": "3 2 1 6 7 0 5 4",  # é as one code point
    "e\u0301": "7 4 1 6 0 5 3 2",  # and as two: another user
    "x" * 512: "4 7 1 2 0 5 6 3",
}
GOLDEN_64 = "46 52 62 46 49 30 56 36 53 31 33 4"  # the first choices of the same users on 64 workers
USERS = [f"user-{number}" for number in range(1000)]
CHILD = """
from moltbot.router.ring import Ring
ring = Ring([f"worker-{number}" for number in range(5)])
print([list(ring.walk(f"user-{number}")) for number in range(100)])
"""


def workers(count: int) -> list[str]:
    return [f"worker-{number}" for number in range(count)]


def test_the_order_of_workers_for_a_user_never_changes() -> None:
    ring = Ring(workers(8))
    assert {user: " ".join(w.removeprefix("worker-") for w in ring.walk(user)) for user in GOLDEN} == GOLDEN
    large = Ring(workers(64))
    assert [large.first(user) for user in GOLDEN] == [f"worker-{n}" for n in GOLDEN_64.split()]


def test_the_order_is_the_same_in_every_process() -> None:
    ring = Ring(workers(5))
    expected = str([list(ring.walk(user)) for user in USERS[:100]])
    for seed in ("0", "1"):
        child = subprocess.run(
            [sys.executable, "-c", CHILD],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert child.stdout.strip() == expected


@settings(deadline=None, max_examples=20)
@given(st.permutations(workers(6)), st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_the_order_of_adding_does_not_matter(order: list[str], user: str) -> None:
    ring = Ring(order[:2])
    for worker_id in order[2:]:
        ring.add(worker_id)
    assert list(ring.walk(user)) == list(Ring(workers(6)).walk(user))


def test_a_walk_begins_with_the_first_choice_and_meets_every_worker_once() -> None:
    ring = Ring(workers(16))
    for user in USERS:
        walk = list(ring.walk(user))
        assert walk[0] == ring.first(user)
        assert sorted(walk) == sorted(workers(16))


def test_removing_a_worker_moves_only_its_users_to_the_next_on_their_walk() -> None:
    ring = Ring(workers(8))
    walks = {user: list(ring.walk(user)) for user in USERS}
    ring.remove("worker-3")
    assert "worker-3" not in ring
    assert len(ring) == 7
    for user, walk in walks.items():
        assert list(ring.walk(user)) == [worker_id for worker_id in walk if worker_id != "worker-3"]
    ring.add("worker-3")
    assert {user: list(ring.walk(user)) for user in USERS} == walks


def test_adding_or_removing_twice_changes_nothing() -> None:
    ring = Ring(["worker-0", "worker-1", "worker-0"])
    ring.add("worker-1")
    ring.remove("worker-9")
    assert len(ring) == 2
    fresh = Ring(workers(2))
    assert [list(ring.walk(user)) for user in USERS] == [list(fresh.walk(user)) for user in USERS]


def test_the_bare_ring_is_nearly_even() -> None:
    ring = Ring(workers(8))
    homes = [ring.first(user) for user in USERS]
    assert max(homes.count(worker_id) for worker_id in workers(8)) < 1.2 * len(USERS) / 8


def test_an_empty_ring_says_that_there_is_no_worker() -> None:
    ring = Ring([])
    with pytest.raises(Unavailable, match="at least one"):
        ring.first("user-a")
    with pytest.raises(Unavailable, match="at least one"):
        list(ring.walk("user-a"))
    ring.add("worker-0")
    assert list(ring.walk("user-a")) == ["worker-0"]
