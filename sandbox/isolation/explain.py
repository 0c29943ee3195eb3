"""What one worker can see, write, reach and use, in words: `moltbot sandbox explain`.

Level, uid and protections are those that the gateway noted when it started the worker. Paths come from the wall's own plan.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moltbot.core.units import format_size
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.choice import recorded_wall
from moltbot.sandbox.isolation.landlock import DEVICES, NAMES
from moltbot.sandbox.isolation.plan import Level, Protection
from moltbot.sandbox.isolation.root import MADE_FILES, SHM_SIZE, TMP_SIZE
from moltbot.sandbox.isolation.view import View, view_of
from moltbot.sandbox.launch import LaunchSpec, launch_spec


@dataclass(frozen=True, slots=True)
class SeenPath:
    """inside: as the worker names it. outside: on this machine, None for what exists inside only. access: read or write."""

    inside: str
    outside: str | None
    access: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One worker, in words. environment: the names of its variables."""

    worker_id: str
    level: str
    uid: int
    paths: tuple[SeenPath, ...]
    environment: tuple[str, ...]
    protections: tuple[Protection, ...]


def explain(config: PoolConfig, base: Path, worker_id: str, inherited: Mapping[str, str]) -> Explanation:
    """Explain a worker as it was last started; inherited: where variables that the operator passes on come from.

    Raises BaseDirectoryError if it was never started, or not behind a wall that can be made again here.
    """
    directories = WorkerDirectories(base, worker_id)
    wall, config = recorded_wall(config, directories, base)
    spec = launch_spec(directories, directories.read_incarnation(), config, inherited, parent=0)
    walled, uid, view = wall.wrap(spec), wall.owner(worker_id), view_of(config, base)
    return Explanation(
        worker_id=worker_id,
        level=str(wall.level),
        uid=uid,
        paths=(*_own(spec, walled, uid), *_of_the_level(wall.level), *_shared(wall.level, view, walled)),
        environment=tuple(sorted(walled.environment)),
        protections=tuple(
            Protection(str(item.get("name")), item.get("inForce") is True, str(item.get("detail")))
            for item in directories.read_record().protections
        ),
    )


def _own(spec: LaunchSpec, walled: LaunchSpec, uid: int) -> list[SeenPath]:
    parts = ("sessions", "state", "cache", "temp")
    own = [
        SeenPath(str(getattr(walled.places, part)), str(getattr(spec.places, part)), "write")
        for part in parts
    ]
    logs = spec.directories.root / "logs"
    inside = walled.places.state.parent / "logs"
    if inside == logs:
        return own
    return [
        *own,
        SeenPath(str(inside), str(logs), "read" if uid == os.geteuid() else "none, it is the gateway's"),
    ]


def _of_the_level(level: Level) -> list[SeenPath]:
    if level is Level.LANDLOCK:
        return [
            *(SeenPath(path, path, "read and write") for path in DEVICES),
            *(SeenPath(path, path, "read") for path in NAMES),
        ]
    if level is not Level.BUBBLEWRAP:
        return []
    sizes = (("/tmp", TMP_SIZE), ("/dev/shm", SHM_SIZE))
    return [
        *(SeenPath(path, None, f"write, at most {format_size(size)} in memory") for path, size in sizes),
        *(SeenPath(path, None, "read") for path in MADE_FILES),
        SeenPath("/proc", None, "its own processes"),
        SeenPath("/dev", None, "null, zero, full, random, urandom, tty"),
    ]


def _shared(level: Level, view: View, walled: LaunchSpec) -> list[SeenPath]:
    if level is Level.DIRECTORIES:
        return [SeenPath("/", "/", "all that this system user may do")]
    package = walled.places.code / "moltbot"
    code = [SeenPath(str(package / path.name), str(path), "read") for path in view.code]
    return [
        *(SeenPath(str(path.name), str(path.source), "write (granted)") for path in view.read_write),
        *(SeenPath(str(path.name), str(path.source), "read (granted)") for path in view.read_only),
        *(SeenPath(str(path), str(path), "read") for path in view.readable),
        *code,
    ]
