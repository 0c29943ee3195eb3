"""Measures the memory and CPU of whole process trees; slow system calls, so always off the event loop."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """memory: bytes that the tree alone costs (PSS, or USS where there is none). cpu_seconds: used so far by what lives."""

    memory: int
    cpu_seconds: float


def measure(root_pid: int) -> Usage | None:
    """Sum over the process and all its descendants; None if it is gone."""
    try:
        root = psutil.Process(root_pid)
        tree = [root, *root.children(recursive=True)]
    except (psutil.Error, OSError):
        return None
    memory, cpu = 0, 0.0
    for process in tree:
        try:
            with process.oneshot():
                full = process.memory_full_info()
                times = process.cpu_times()
        except (psutil.Error, OSError):
            continue
        memory += getattr(full, "pss", 0) or full.uss
        cpu += times.user + times.system
    return Usage(memory, cpu)
