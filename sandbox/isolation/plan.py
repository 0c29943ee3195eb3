"""The words of isolation: levels, protections, and the interface that every wall has. Plain data, no I/O.

A wall turns the launch spec of a bare worker into the spec of a walled one; it starts nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from moltbot.sandbox.config import LEVELS
from moltbot.sandbox.isolation.witness import Evidence
from moltbot.sandbox.launch import LaunchSpec


class Level(StrEnum):
    """How strong a wall is; compare with `at_least`."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "landlock"
    DIRECTORIES = "directories"

    def at_least(self, other: Level) -> bool:
        """True if this level is `other` or stronger."""
        return LEVELS.index(self) <= LEVELS.index(other)


@dataclass(frozen=True, slots=True)
class Protection:
    """One thing that a wall does, or does not do here. detail: how it is done, or what is missing, in words."""

    name: str
    in_force: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What a wall stands on: facts about the pool and this machine that all of its workers share.

    base: the claimed base directory. gateway_ports: TCP ports that no worker may reach. uids: first uid of this pool's workers.
    """

    base: Path
    gateway_ports: tuple[int, ...]
    first_uid: int


class Wall(Protocol):
    """One level, for one pool. A wall is made from the configuration and asks the machine nothing before `obstacle`."""

    level: ClassVar[Level]

    @property
    def ground(self) -> Ground:
        """What it stands on."""

    @property
    def program(self) -> Path | None:
        """What starts its workers, besides Python."""

    def obstacle(self) -> str | None:
        """Why this level cannot work here, as far as that is plain without trying; None if nothing speaks against it."""

    def owner(self, worker_id: str) -> int:
        """The uid that owns what the worker writes, as this machine numbers it."""

    def wrap(self, spec: LaunchSpec) -> LaunchSpec:
        """The same worker behind this wall."""

    def filesystems(self) -> tuple[str, ...]:
        """Where, in a worker's root, filesystems of its own are kept in memory."""

    def evidence(self, worker_id: str) -> Evidence:
        """What must be found for a running worker from outside."""

    def protections(self) -> tuple[Protection, ...]:
        """What the wall does, strongest first; the same names at every level."""
