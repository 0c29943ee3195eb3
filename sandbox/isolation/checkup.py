"""What this machine has to offer for walls, tried or read, with a remedy for each thing that is missing.

`examine` is what `moltbot doctor` shows. It tries every level with a real worker in a directory of its own and disturbs no
running gateway. Causes and remedies are in `remedies.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import resource
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moltbot.core.errors import SettingsError
from moltbot.core.units import approximate_size, format_size
from moltbot.sandbox.cgroup import find_delegation
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import PROBE, remove_trees
from moltbot.sandbox.isolation.choice import (
    candidates,
    check_handler_readable,
    first_uid,
    is_allowed,
    probe,
)
from moltbot.sandbox.isolation.landlock import landlock_detail
from moltbot.sandbox.isolation.limits import cgroup_protection
from moltbot.sandbox.isolation.plan import Ground, Level
from moltbot.sandbox.isolation.remedies import Machine, remedy_for, unreadable_for_others
from moltbot.sandbox.isolation.seccomp import SUPPORTED
from moltbot.sandbox.isolation.view import interpreter_paths, view_of
from moltbot.sandbox.setting_kinds import MAX_WORKERS
from moltbot.worker.confine import landlock_abi

_VERSION_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a wall needs or adds. present: it is there. remedy: what to do on this machine, None if nothing can be."""

    name: str
    present: bool
    detail: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class LevelCheck:
    """One level, tried. why_not: None if it works."""

    level: str
    works: bool
    with_program: str | None
    why_not: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Checkup:
    """The whole. level: what `isolation` gives here, None if nothing that is allowed works. sufficient: it can start."""

    level: str | None
    isolation: str
    min_isolation: str
    sufficient: bool
    levels: tuple[LevelCheck, ...]
    checks: tuple[Check, ...]


async def examine(config: PoolConfig) -> Checkup:
    """Try and read everything; raises SettingsError for impossible grants."""
    machine = Machine.read()
    view = await asyncio.to_thread(view_of, config, config.sandbox_base_dir)
    base = Path(await asyncio.to_thread(_make_directory, config.sandbox_base_dir))
    ground = Ground(base, (), first_uid(config.worker_uids, base))
    try:
        levels, handler = [], Check("handler", True, "readable for the workers")
        for wall in candidates(config, ground, view):
            reason = await probe(wall, config)
            program = str(wall.program) if wall.program is not None else None
            remedy = remedy_for(reason, machine, program) if reason else None
            levels.append(LevelCheck(str(wall.level), reason is None, program, reason, remedy))
            if is_allowed(wall.level, config):
                try:
                    check_handler_readable(wall, view)
                except SettingsError as error:  # with this, a gateway does not start, whatever else works
                    handler = Check("handler", False, error.message)
    finally:
        await remove_trees([str(base)])
    allowed = (check.level for check in levels if check.works and is_allowed(Level(check.level), config))
    level = next(allowed, None)
    checks = await asyncio.to_thread(_checks, config, machine, levels, level)
    return Checkup(
        level=level,
        isolation=config.isolation,
        min_isolation=config.min_isolation,
        sufficient=level is not None and handler.present,
        levels=tuple(levels),
        checks=(*checks, handler),
    )


def _make_directory(base: Path) -> str:
    """A place on the disk of the base directory, as near as we may write."""
    while not os.access(base, os.W_OK) and base != base.parent:
        base = base.parent
    place = base if os.access(base, os.W_OK) else None
    return tempfile.mkdtemp(prefix=f"{PROBE}doctor-", dir=place)


def _checks(config: PoolConfig, machine: Machine, levels: list[LevelCheck], level: str | None) -> list[Check]:
    tried = [check.why_not for check in levels if check.level == Level.BUBBLEWRAP]
    missing = Check("bwrap", False, "there is none", remedy_for("there is no bwrap", machine, None))
    programs = [_program(check) for check in levels if check.with_program]
    walled = None in tried
    abi = landlock_abi()
    found = find_delegation()
    landlock, cgroup = landlock_detail(abi), cgroup_protection(found)
    return [
        *(programs or [missing]),
        _namespaces(machine, None if walled else tried[0], tried=bool(programs)),
        Check(
            "seccomp",
            machine.seccomp and platform.machine() in SUPPORTED,
            f"filter for {platform.machine()}" if machine.seccomp else "this kernel has no seccomp filters",
            None if machine.seccomp else "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        Check("landlock", landlock.in_force, landlock.detail, remedy_for(landlock.detail, machine, None)),
        Check(
            "cgroup",
            cgroup.in_force,
            cgroup.detail,
            remedy_for(cgroup.detail, machine, None),
        ),
        _uids(config, machine),
        _interpreter(),
        _network(config, level, abi),
        _limits(config),
        _disk(config),
    ]


def _program(check: LevelCheck) -> Check:
    """Which bwrap, exactly: it is inside of the trust boundary."""
    path = Path(check.with_program or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        version = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        version = "does not run"
    return Check("bwrap", check.works, f"{path}, {version or 'no version'}, sha256 {digest}", check.remedy)


def _namespaces(machine: Machine, reason: str | None, *, tried: bool) -> Check:
    if not tried:
        return Check("namespaces", False, "not tried: there is no bwrap")
    if reason is None:
        kind = "as root, without a user namespace" if machine.root else "by a user namespace"
        return Check("namespaces", True, kind)
    obstacle = machine.userns_obstacle(reason) or "bwrap cannot make them"
    return Check("namespaces", False, obstacle, remedy_for(f"namespace: {reason}", machine, None))


def _uids(config: PoolConfig, machine: Machine) -> Check:
    if not machine.root:
        return Check("uids", True, "not root: a user namespace takes the place of own uids")
    first, last = config.worker_uids
    if machine.maps_uid(first) and machine.maps_uid(last):
        return Check("uids", True, f"{first}-{last}, {MAX_WORKERS} for each base directory")
    return Check(
        "uids",
        False,
        f"{first}-{last} are not uids of this container",
        f"set worker_uids to a range within {machine.uid_ranges}",
    )


def _interpreter() -> Check:
    hidden = unreadable_for_others(interpreter_paths())
    if not hidden:
        return Check("interpreter", True, "readable for all uids")
    return Check(
        "interpreter",
        os.geteuid() != 0,
        f"{hidden[0]} cannot be read by other uids",
        f"chmod -R o+rX {hidden[0]}" if os.geteuid() == 0 else None,
    )


def _network(config: PoolConfig, level: str | None, abi: int) -> Check:
    if config.network == "full":
        closed = "the gateway's own port stays closed" if abi >= 4 else "the gateway's own port included"
        return Check(
            "network",
            False,
            f"full, as set: all that listens on this machine's loopback is in reach; {closed}",
        )
    how = {"bubblewrap": "a network namespace", "landlock": "seccomp and Landlock refuse sockets"}.get(
        level or ""
    )
    return Check(
        "network", how is not None, f"none, as set: {how}" if how else "not refused, though none is set"
    )


def _limits(config: PoolConfig) -> Check:
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < config.max_open_files:
        return Check(
            "limits",
            False,
            f"max_open_files = {config.max_open_files} is beyond the hard limit of {files}",
            "raise it (ulimit -Hn, LimitNOFILE=) or lower max_open_files",
        )
    return Check(
        "limits",
        True,
        f"memory {format_size(config.max_memory)}, {config.max_processes} processes, {config.max_open_files} open files, "
        f"disk {format_size(config.max_disk)}, {config.max_inodes} files; for each worker",
    )


def _disk(config: PoolConfig) -> Check:
    place = config.sandbox_base_dir
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free, config.worker_count * config.max_disk
    detail = f"{approximate_size(free)} free at {place}, {config.worker_count} workers may use {approximate_size(needed)}"
    remedy = "free some, lower max_disk or worker_count, or choose another sandbox_base_dir"
    return Check("disk space", free >= needed, detail, None if free >= needed else remedy)
