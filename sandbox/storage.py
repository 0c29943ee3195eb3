"""What to do about a worker's disk use, from one measurement to the next. Pure, but for what it remembers.

Near a limit there is an alarm. Beyond it the worker takes no requests and those in flight are interrupted; if that does not
end the growth, or to gain room, the worker is restarted with neither temporary nor cached files: once, and again whenever
it still grows. Measuring is in `disk.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moltbot.sandbox.disk import DiskFinding, DiskLimits, DiskUse, judge_disk

HIDDEN_LOOKS = 3
"""A folder that is listed in so many looks one after the other, and never found, is being hidden."""


@dataclass(frozen=True, slots=True)
class StorageVerdict:
    """alarm: news for the operator. full: why no request is taken. restart: why the worker must be restarted."""

    alarm: DiskFinding | None = None
    full: str | None = None
    restart: str | None = None


class StorageRule:
    """The rule for one slot, across its incarnations."""

    def __init__(self, limits: DiskLimits) -> None:
        self._limits = limits
        self._last: DiskFinding | None = None
        self._most: DiskUse | None = None
        self._restarted = False
        self._hidden: frozenset[int] = frozenset()
        self._looks = 0

    def judge(self, use: DiskUse, *, ready: bool) -> StorageVerdict:
        """Judge a measurement; `ready`: the worker is up, so that a restart would do something."""
        self._hidden = use.missed & self._hidden if self._looks else use.missed
        self._looks = self._looks + 1 if self._hidden else 0
        if self._looks >= HIDDEN_LOOKS:
            use = replace(use, uncounted="folders that change their names while they are counted")
        finding, last = judge_disk(use, self._limits), self._last
        self._last = finding
        crossed = finding is not None and (last is None or finding.hard > last.hard)
        alarm = finding if crossed else None
        if finding is None or not finding.hard:
            self._most, self._restarted = None, False
            return StorageVerdict(alarm)
        grown = self._most is not None and (use.size > self._most.size or use.inodes > self._most.inodes)
        again = last is not None and last.hard and (grown or not self._restarted)
        self._most = use
        if not (again and ready):
            return StorageVerdict(alarm, finding.detail)
        self._restarted = True
        return StorageVerdict(alarm, finding.detail, finding.detail)
