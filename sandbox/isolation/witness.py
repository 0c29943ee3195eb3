"""What really holds for a running worker, read from outside of it: it cannot say more of itself than is true.

Landlock shows nowhere outside; a worker that cannot apply it ends before it is ready (`worker/confine.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Evidence:
    """What must be found. uid: as this machine numbers it. namespaces: kinds that the worker shares with nobody."""

    uid: int | None = None
    namespaces: frozenset[str] = frozenset()
    seccomp: bool = False
    no_capabilities: bool = False


def shortcomings(pid: int, expected: Evidence, proc: Path = Path("/proc")) -> list[str]:
    """What of `expected` does not hold for the process, in words; empty if all of it does."""
    if expected == Evidence():
        return []
    try:
        lines = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        shared = [kind for kind in sorted(expected.namespaces) if not _apart(proc, pid, kind)]
    except OSError as error:
        return [f"it cannot be examined ({error.strerror})"]
    found = [f"it shares the gateway's {kind} namespace" for kind in shared]
    if expected.uid is not None and set(status["Uid"].split()) != {str(expected.uid)}:
        found.append(f"its uid is not {expected.uid}")
    if expected.seccomp and status.get("Seccomp") != "2":
        found.append("no seccomp filter is in force")
    if expected.no_capabilities:
        if any(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")):
            found.append("it has capabilities")
        if status.get("NoNewPrivs") != "1":
            found.append("it may gain privileges")
    return found


def _apart(proc: Path, pid: int, kind: str) -> bool:
    return os.readlink(proc / str(pid) / "ns" / kind) != os.readlink(proc / "self" / "ns" / kind)
