"""What holds for every worker of a pool: its wall, its cgroups, and all protections in words."""

from __future__ import annotations

import os
from dataclasses import dataclass

from moltbot.sandbox.cgroup import Delegation, find_delegation, remove_leftovers, take_over
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.directories import WARNING
from moltbot.sandbox.isolation.landlock import ROOT_WARNING
from moltbot.sandbox.isolation.limits import limit_protections
from moltbot.sandbox.isolation.plan import Level, Protection, Wall


@dataclass(frozen=True, slots=True)
class Isolation:
    """What holds for every worker of a pool. delegation: where cgroups can be made, None if nowhere."""

    wall: Wall
    delegation: Delegation | None
    protections: tuple[Protection, ...]

    @property
    def warning(self) -> str | None:
        """What an operator must know; None behind a real wall."""
        if self.wall.level is Level.DIRECTORIES:
            return WARNING
        if self.wall.level is Level.LANDLOCK and os.geteuid() == 0:
            return ROOT_WARNING
        return None


def isolation_of(wall: Wall, config: PoolConfig) -> Isolation:
    """Take the cgroup that is ours, if there is one, and say what holds."""
    found = find_delegation()
    if isinstance(found, Delegation):
        found = take_over(found)
        remove_leftovers(found)
    delegation = found if isinstance(found, Delegation) else None
    return Isolation(wall, delegation, (*wall.protections(), *limit_protections(config, found)))
