"""What bounds a worker's processes besides its wall, in the same words at every level. Pure.

The bounds themselves are applied elsewhere: rlimits in `worker/boot.py`, samples in `sandbox/health.py` and
`sandbox/storage.py`, cgroups in `sandbox/cgroup.py`.
"""

from __future__ import annotations

from moltbot.core.units import format_size
from moltbot.sandbox.cgroup import Delegation
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.plan import Protection


def limit_protections(config: PoolConfig, found: Delegation | str) -> tuple[Protection, ...]:
    """The limits as protections. found: the delegated cgroup, or why there is none."""
    return (
        Protection(
            "memory limit",
            True,
            f"{format_size(config.max_memory)}, sampled about once a second"
            + (
                ""
                if _counts_memory(found)
                else "; buffers of sockets and pipes count in a memory cgroup only"
            ),
        ),
        Protection(
            "disk limit",
            True,
            f"{format_size(config.max_disk)} and {config.max_inodes} files, sampled; one file by RLIMIT_FSIZE",
        ),
        Protection("open files limit", True, f"RLIMIT_NOFILE {config.max_open_files}"),
        Protection("core dumps", True, "none (RLIMIT_CORE 1)"),
        cgroup_protection(found),
    )


def _counts_memory(found: Delegation | str) -> bool:
    return isinstance(found, Delegation) and "memory" in found.controllers


def cgroup_protection(found: Delegation | str) -> Protection:
    """What cgroup v2 adds here."""
    if isinstance(found, str):
        return Protection("cgroup", False, found)
    files = [f"{name}.max" for name in sorted(found.controllers)]
    adds = ", ".join([*files, "cgroup.kill"])
    if not found.lacking:
        return Protection("cgroup", True, adds)
    return Protection("cgroup", False, f"{adds} only; {found.lacking}")
