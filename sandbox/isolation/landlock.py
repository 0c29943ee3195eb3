"""The middle wall: the kernel refuses files, TCP, signals and system calls that the worker gave up before its handler was loaded.

Nothing is hidden: what is refused can still be named, and sockets of other kinds are closed by seccomp, for Landlock does
not see them. The rules are applied by `worker/confine.py`; what a kernel's ABI is missing is told in `landlock_detail`.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.plan import Ground, Level, Protection
from moltbot.sandbox.isolation.seccomp import SUPPORTED, assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.isolation.view import View
from moltbot.sandbox.isolation.witness import Evidence
from moltbot.sandbox.launch import PACKAGE, LaunchSpec
from moltbot.worker.confine import landlock_abi

ABI_REFER, ABI_TRUNCATE, ABI_TCP, ABI_IOCTL, ABI_SCOPE = 2, 3, 4, 5, 6
ROOT_WARNING = (
    "isolation level landlock as root: handler code cannot open root's files, but can change their permissions and times. "
    "Run the gateway as an ordinary user, or see `moltbot doctor` for a stronger level"
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
NAMES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts")


@dataclass(frozen=True, slots=True)
class LandlockWall:
    """abi: the kernel's version of Landlock, 0 if it has none."""

    level: ClassVar[Level] = Level.LANDLOCK

    program: ClassVar[None] = None

    ground: Ground
    view: View
    network: bool
    abi: int
    machine: str

    @classmethod
    def of(cls, config: PoolConfig, ground: Ground, view: View) -> LandlockWall:
        """The wall for this configuration on this machine."""
        return cls(ground, view, config.network == "full", landlock_abi(), platform.machine())

    def obstacle(self) -> str | None:
        """Why this cannot work here, without trying."""
        if sys.platform != "linux":
            return "Landlock needs Linux"
        if self.machine not in SUPPORTED:
            return f"the seccomp filter knows {' and '.join(SUPPORTED)}, not {self.machine}"
        if not self.abi:
            return "this kernel has no Landlock: it needs Linux 5.13 or later, with landlock among its `lsm=`"
        return None

    def owner(self, worker_id: str) -> int:
        """Ours: a worker keeps our uid, for another one could not pass the folders on the way."""
        return os.geteuid()

    def filesystems(self) -> tuple[str, ...]:
        """None."""
        return ()

    def evidence(self, worker_id: str) -> Evidence:
        """Its filter, and no capabilities."""
        return Evidence(self.owner(worker_id), seccomp=True, no_capabilities=True)

    def wrap(self, spec: LaunchSpec) -> LaunchSpec:
        """Confine it from inside."""
        places = spec.places
        program = assemble(rules(namespaced=False, inet=self.network, unix=False), self.machine)
        granted = (grant.source for grant in self.view.read_only)
        readable = (*self.view.readable, *self.view.code, *granted, *(Path(name) for name in NAMES))
        shared = (grant.source for grant in self.view.read_write)
        writable = (places.sessions, places.state, places.cache, places.temp, *shared)
        landlock = {
            "rules": [
                *([str(path), "read"] for path in readable),
                *([str(path), "list"] for path in (PACKAGE.parent, PACKAGE)),
                *([str(path), "write"] for path in writable),
                *([path, "device"] for path in DEVICES),
            ],
            "tcp": self.network,
            "refused_ports": list(self.ground.gateway_ports),
        }
        return replace(spec, confinement={"uid": None, "landlock": landlock, "seccomp": program.hex()})

    def protections(self) -> tuple[Protection, ...]:
        """What this wall does."""
        network = "no TCP, UDP or other sockets" if not self.network else "full, as granted"
        return (
            Protection(
                "files",
                True,
                "no other file is opened, listed or made; what this uid owns can still be examined by name, and its "
                "permissions and times changed",
            ),
            Protection("processes", False, "others are not hidden"),
            Protection("network", not self.network, network),
            Protection("ipc", True, "no System V or POSIX queues, no /dev/shm, no unix sockets"),
            Protection("identity", False, "the gateway's own uid"),
            Protection("capabilities", True, "none, and none can be gained"),
            Protection("seccomp", True, "mounts, namespaces, tracing, keys, io_uring and others are refused"),
            landlock_detail(self.abi),
            scoped_detail(self.abi, namespaced=False),
            Protection("process limit", True, "by sampling, about once a second"),
        )


def landlock_detail(abi: int) -> Protection:
    """What Landlock does with this ABI, and what it lacks."""
    if not abi:
        return Protection("landlock", False, "this kernel has none (Linux 5.13 or later)")
    missing = [
        what
        for since, what in (
            (ABI_REFER, "moves between directories"),
            (ABI_TRUNCATE, "truncation"),
            (ABI_TCP, "TCP ports"),
            (ABI_IOCTL, "device ioctls"),
            (ABI_SCOPE, "signals and abstract sockets"),
        )
        if abi < since
    ]
    return Protection("landlock", True, f"ABI {abi}" + (f", without {', '.join(missing)}" if missing else ""))


def scoped_detail(abi: int, *, namespaced: bool) -> Protection:
    """Whether signals and abstract unix sockets end at the wall."""
    if namespaced:
        return Protection("signals and abstract sockets", True, "in namespaces of their own")
    if abi >= ABI_SCOPE:
        return Protection("signals and abstract sockets", True, "Landlock scopes")
    return Protection(
        "signals and abstract sockets", False, f"Landlock ABI {abi} lacks scopes (Linux 6.12 or later)"
    )
