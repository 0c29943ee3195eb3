"""Judges a running worker from what is known of it. Pure; the signs are kept apart.

Dead is an event of its own (`process.py`), overdue belongs to one request (`supervisor.py`). Busy is never a sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from moltbot.sandbox.lifecycle import ExitReason

MISSED_BEATS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and counts from the configuration."""

    heartbeat_interval: float
    max_loop_lag: float
    max_memory: int
    soft_memory: int
    max_tasks: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known now; since_beat: seconds since the last heartbeat; lag: seconds the worker's loop is behind."""

    since_beat: float
    lag: float
    in_flight: int
    memory: int
    tasks: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong; RECYCLED means drain and restart in order, anything else means kill."""

    reason: ExitReason
    detail: str


def judge(sample: Sample, limits: Limits) -> Finding | None:
    """Return the worst finding, or None for a healthy worker."""
    if sample.since_beat > MISSED_BEATS * limits.heartbeat_interval:
        return Finding(ExitReason.UNRESPONSIVE, f"no heartbeat for {sample.since_beat:.1f} s")
    if sample.lag > limits.max_loop_lag and sample.in_flight:
        return Finding(ExitReason.WEDGED, f"its event loop has been blocked for {sample.lag:.1f} s")
    if sample.tasks > limits.max_tasks:
        return Finding(
            ExitReason.OVER_PROCESSES,
            f"{sample.tasks} processes and threads, the limit is {limits.max_tasks}",
        )
    if sample.memory > limits.max_memory:
        return Finding(
            ExitReason.OVER_MEMORY, f"{sample.memory} bytes in use, the limit is {limits.max_memory}"
        )
    if sample.memory > limits.soft_memory:
        return Finding(ExitReason.RECYCLED, f"{sample.memory} bytes in use, soft limit {limits.soft_memory}")
    return None
