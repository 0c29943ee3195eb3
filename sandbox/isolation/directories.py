"""No wall: a worker has its own directories, its limits and a clean environment, and may reach all that its uid may.

This is what macOS gets, and Linux machines on which nothing stronger works. It is reported loudly, never silently.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from moltbot.sandbox.isolation.plan import Ground, Level, Protection
from moltbot.sandbox.isolation.witness import Evidence
from moltbot.sandbox.launch import LaunchSpec

WARNING = (
    "isolation level directories: workers are NOT walled off. Handler code can read and change whatever this system user "
    "can, other users' files and the operator's token included. `moltbot doctor` says what is missing here"
)


@dataclass(frozen=True, slots=True)
class DirectoriesWall:
    """Layout and limits only."""

    level: ClassVar[Level] = Level.DIRECTORIES

    program: ClassVar[None] = None

    ground: Ground

    def obstacle(self) -> str | None:
        """It works everywhere."""
        return None

    def owner(self, worker_id: str) -> int:
        """Ours."""
        return os.geteuid()

    def filesystems(self) -> tuple[str, ...]:
        """None."""
        return ()

    def evidence(self, worker_id: str) -> Evidence:
        """Nothing."""
        return Evidence()

    def wrap(self, spec: LaunchSpec) -> LaunchSpec:
        """As it is."""
        return spec

    def protections(self) -> tuple[Protection, ...]:
        """What is not there, by name."""
        missing = {
            "files": "all that this system user can reach",
            "processes": "others are seen and can be signalled",
            "network": "all of it",
            "ipc": "shared with all processes of this user",
            "identity": "the gateway's own uid",
            "capabilities": "those of the gateway",
            "seccomp": "every system call",
            "landlock": "not applied",
            "signals and abstract sockets": "not bounded",
        }
        return (
            *(Protection(name, False, detail) for name, detail in missing.items()),
            Protection("process limit", True, "by sampling, about once a second"),
        )
