"""The bounded first placement of a user: the ring's choice, unless that worker has its share. Pure.

It decides once, for a new user; the result is made durable by `directory.py` and changes only by a move. Which workers
may take users at all (not draining, not quarantined, below their own limit) is decided by whoever hands in the walk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from moltbot.core.errors import Unavailable

BOUND = 1.05


class Placement(NamedTuple):
    """Where a user should live, whom the ring named first, and why in words for an operator."""

    worker_id: str
    first_choice: str
    why: str


def capacity(users: int, workers: int, bound: float = BOUND) -> int:
    """How many of `users` one of `workers` may hold: `bound` times the even share, and never less than that rounded up."""
    return max(-(-users // workers), math.floor(bound * users / workers))


def place(walk: Iterable[str], loads: Mapping[str, int], *, bound: float = BOUND) -> Placement:
    """Take the first worker of `walk` that is below its capacity for one user more.

    walk: the workers that may take the user, in ring order, each once. loads: users per worker, absent means 0; workers
    that are not in the walk do not count, so there is always room for one more. Raises Unavailable if the walk is empty.
    """
    order = tuple(walk)
    if not order:
        raise Unavailable("no worker can take a new user now: wait for one to be ready, or add workers")
    share = capacity(sum(loads.get(worker_id, 0) for worker_id in order) + 1, len(order), bound)
    # One always fits: the users there are, are fewer than workers times share.
    steps, chosen = next((i, w) for i, w in enumerate(order) if loads.get(w, 0) < share)
    return Placement(chosen, order[0], _why(order[0], steps, share))


def _why(first_choice: str, steps: int, share: int) -> str:
    if steps == 0:
        return "the ring's first choice"
    then = "next on the ring" if steps == 1 else f"{steps} further on the ring, past other full workers"
    return f"the ring chose {first_choice}, which had its share of {share}; {then}"
