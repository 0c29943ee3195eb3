"""Token buckets: how often something may happen, per key, and the headers that say so. Pure but for the clock it is given.

A bucket is one number, the time at which it will be full again (the generic cell rate algorithm), so one that is full
needs no memory at all. At most `MAX_BUCKETS` are remembered; beyond it the one that was used least lately is forgotten.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

from moltbot.core.clock import Clock
from moltbot.core.units import Rate

MAX_BUCKETS = 50_000
_MICROSECONDS = 1_000_000


class Standing(NamedTuple):
    """A bucket after one more was asked of it. wait: seconds until one is there again; 0 if this one was granted.

    policy: its item of the header `RateLimit-Policy`.
    """

    name: str
    rate: Rate
    policy: str
    left: int
    wait: float
    full_in: float

    @property
    def limit(self) -> str:
        """An item of the header `RateLimit`."""
        return f'"{self.name}";r={self.left};t={math.ceil(self.wait or self.full_in)}'


class Buckets:
    """One bucket per key, all of the same rate. name: as it stands in the headers."""

    def __init__(self, name: str, rate: Rate, clock: Clock, *, max_buckets: int = MAX_BUCKETS) -> None:
        self.name = name
        self.rate = rate
        self._clock = clock
        self._max = max_buckets
        self._policy = f'"{name}";q={rate.amount};w={math.ceil(rate.seconds)}'
        # All in whole units, of which `amount` pass in a microsecond: after months, floats would refuse the last of a burst.
        self._each = round(rate.seconds * _MICROSECONDS)
        self._per_second = rate.amount * _MICROSECONDS
        self._whole = self._each * rate.amount
        self._full_at: OrderedDict[str, int] = OrderedDict()  # in the order in which they last gave one

    def take(self, key: str) -> Standing:
        """Take one from the key's bucket, if there is one: `wait` tells."""
        now = int(self._clock.monotonic() * _MICROSECONDS) * self.rate.amount
        taken = max(self._full_at.get(key, now) - now, 0)
        over = taken + self._each - self._whole
        if over > 0:
            # Not a moment too early: the wait is rounded up, to what an answer tells.
            wait = math.ceil(over * 1000 / self._per_second) / 1000
            return Standing(self.name, self.rate, self._policy, 0, wait, taken / self._per_second)
        taken += self._each
        self._full_at[key] = now + taken
        self._full_at.move_to_end(key)
        while self._full_at and (len(self._full_at) > self._max or next(iter(self._full_at.values())) <= now):
            self._full_at.popitem(last=False)
        left = (self._whole - taken) // self._each
        return Standing(self.name, self.rate, self._policy, left, 0.0, taken / self._per_second)

    def __len__(self) -> int:
        return len(self._full_at)
