"""How evenly users are spread, and how many would move if a worker were added. Nothing here depends on the machine.

Measured: users of the fullest worker over the mean, for the ring alone and for bounded first placement (what the gateway
does); the share of users whose ring choice changes when one worker is added, beside the least possible, 1/(n+1). Not
measured: what really moves, which is nobody: a pin stays where it is until a move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from benchmarks.runner import Plan, Row
from moltbot.router.placement import place
from moltbot.router.ring import Ring
from moltbot.sandbox.directories import worker_name

SIZES = (3, 8, 64)
QUICK_USERS, USERS = 2_000, 10_000


def measure(plan: Plan) -> list[Row]:
    count = USERS if plan.turns > 3 else QUICK_USERS
    users = [f"user-{index}" for index in range(count)]
    rows = []
    for workers in SIZES:
        ring = Ring(worker_name(index) for index in range(workers))
        before = {user: ring.first(user) for user in users}
        alone = Counter(before.values())
        rows.append(
            Row(f"ring alone, {workers} workers, {count:,} users, max/mean", "", _skew(alone, workers))
        )
        loads = _bounded(users, ring)
        rows.append(Row(f"bounded placement, {workers} workers, max/mean", "", _skew(loads, workers)))
        ring.add(worker_name(workers))
        moved = _share(users, lambda user, ring=ring, before=before: ring.first(user) != before[user])  # type: ignore[misc]
        least = 1 / (workers + 1)
        rows.append(
            Row(
                f"ring alone, {workers} -> {workers + 1} workers, users moved",
                "",
                moved,
                least,
                moved / least,
            )
        )
    return rows


def _bounded(users: list[str], ring: Ring) -> Counter[str]:
    loads: Counter[str] = Counter()
    for user in users:
        loads[place(ring.walk(user), loads).worker_id] += 1
    return loads


def _skew(loads: Counter[str], workers: int) -> float:
    return max(loads.values()) * workers / sum(loads.values())


def _share(users: list[str], changed: Callable[[str], bool]) -> float:
    return sum(map(changed, users)) / len(users)
