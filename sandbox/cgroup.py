"""Limits on a tree of processes, where a cgroup (version 2) is delegated to us: memory, processes, one kill.

    <our cgroup>/  moltbot-gateway/                   this process, once limits are wanted
                   moltbot-<pid>-<run>-3-worker-0/    one worker's processes, of the third start

`find_delegation` only looks, `take_over` moves this process out of the way, `WorkerCgroup` is one worker's. The
limits hold for a worker that cannot write below /sys/fs/cgroup: keeping it from there is the affair of its wall.
Reads and writes here are small, and the kernel answers at once. Measuring without limits is in `sandbox/memory.py`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

CONTROLLERS = frozenset({"memory", "pids"})
GATEWAY = "moltbot-gateway"
SYSTEMD = Path("/run/systemd/system")
"""There while systemd runs the machine."""
_RUN = secrets.token_hex(4)  # in a container, the next gateway often has the same process id
_STARTS = itertools.count(1)
_OURS = re.compile(r"moltbot-(\d+)-([0-9a-f]{8})-.+\Z", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*\Z", re.ASCII)
_REMOVALS = 50
# The shell is inside before the worker's program begins, or it ends. It adds to the environment, hence `unset`.
_ENTER = 'echo "$$" > "$1" && shift && unset PWD OLDPWD SHLVL && exec "$@"'


@dataclass(frozen=True, slots=True)
class Delegation:
    """What this process may use.

    directory: the cgroup below which workers' cgroups are made. controllers: of CONTROLLERS, what can limit them.
    lacking: why some are missing, as a part of a sentence; empty if none is.
    """

    directory: Path
    controllers: frozenset[str]
    lacking: str = ""


# --- finding ------------------------------------------------------------------------------------------------


def find_delegation(proc: Path = Path("/proc/self"), pid: int | None = None) -> Delegation | str:
    """Return what this process may use, or why it may use nothing. Changes nothing."""
    try:
        own = _own_cgroup((proc / "cgroup").read_text("utf-8", "surrogateescape"))
        mounts = list(_mounts((proc / "mountinfo").read_text("utf-8", "surrogateescape")))
    except OSError:
        return "there are no cgroups: they are Linux's own, and /proc must be mounted"
    if own is None or not mounts:
        return "no cgroup v2 is mounted: mount it at /sys/fs/cgroup"
    places = [(mount, place) for mount in mounts if (place := mount.place_of(own)) is not None]
    if not places:
        return f"the cgroup {own} of this process is not to be found in {mounts[-1].point}: mount cgroup v2 there"
    mount, directory = next((found for found in places if not found[0].read_only), places[-1])
    if mount.read_only:
        return f"cgroup v2 is mounted read-only at {mount.point}: give this container a writable one"
    if directory.name == GATEWAY and _writable(directory.parent):
        directory = directory.parent  # where an earlier `take_over` has put us
    if not _writable(directory):
        return f"the cgroup {directory} is not writable: run under systemd with Delegate=yes"
    if not _is_root(directory) and SYSTEMD.exists() and not _is_delegated(directory):
        return (
            f"the cgroup {directory} is systemd's, and root should not meddle with it: run with Delegate=yes"
        )
    return _with_controllers(directory, os.getpid() if pid is None else pid)


def _with_controllers(directory: Path, pid: int) -> Delegation:
    """Say which controllers the children of `directory` can have."""
    enabled = _words(directory / "cgroup.subtree_control") & CONTROLLERS
    available = _words(directory / "cgroup.controllers") & CONTROLLERS
    missing = " or ".join(sorted(CONTROLLERS - available))
    lacking = f"no {missing} in {directory}: cgroup v1 has it, or it is not delegated" if missing else ""
    others = _words(directory / "cgroup.procs") - {str(pid)}
    if others and available - enabled and not _is_root(directory):
        other = min(others, key=int)
        one = f"process {other}" if int(other) else "a process of another namespace"
        lacking = f"{one} shares the cgroup {directory}: start the gateway in one of its own (Delegate=yes)"
        available = enabled
    return Delegation(directory, available, lacking)


class _Mount(NamedTuple):
    root: PurePosixPath
    point: Path
    read_only: bool

    def place_of(self, cgroup: PurePosixPath) -> Path | None:
        """Where a cgroup is to be found in this mount, if it is there."""
        if not cgroup.is_relative_to(self.root) or ".." in cgroup.relative_to(self.root).parts:
            return None
        place = self.point / cgroup.relative_to(self.root)
        return place if os.path.exists(place / "cgroup.procs") else None


def _own_cgroup(text: str) -> PurePosixPath | None:
    """The v2 line of /proc/self/cgroup: `0::/user.slice/x.scope`."""
    return next((PurePosixPath(line[3:]) for line in text.split("\n") if line.startswith("0::/")), None)


def _mounts(text: str) -> Iterator[_Mount]:
    """The cgroup2 lines of /proc/self/mountinfo: `36 35 98:0 /root /point rw,nosuid [tags] - cgroup2 name rw`."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, filesystem = before.split(" "), after.split(" ")
        if filesystem[0] == "cgroup2":
            options = {*fields[5].split(","), *filesystem[2].split(",")}
            yield _Mount(PurePosixPath(_plain(fields[3])), Path(_plain(fields[4])), "ro" in options)


def _plain(field: str) -> str:
    """The kernel writes blanks and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _writable(directory: Path) -> bool:
    """Moving a process needs all of these: the directory alone may have been given to us by mistake."""
    needed = (".", "cgroup.procs", "cgroup.subtree_control")
    return all(os.access(directory / name, os.W_OK) for name in needed)


def _is_delegated(directory: Path) -> bool:
    """systemd marks what it has given away; what it has not, it may change at any time."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def _is_root(directory: Path) -> bool:
    """The root of all cgroups may have both processes and limited children; this file is in all others."""
    return not (directory / "cgroup.events").exists()


def _words(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text("ascii").split())
    except OSError:
        return frozenset()


# --- using --------------------------------------------------------------------------------------------------


def take_over(delegation: Delegation) -> Delegation:
    """Enable the controllers for the children; returns what holds now. Call it once, before the first worker.

    A cgroup with limited children must not hold processes itself, so this process moves into a child first.
    """
    directory = delegation.directory
    wanted = delegation.controllers - _words(directory / "cgroup.subtree_control")
    if not wanted:
        return delegation
    try:
        if not _is_root(directory):
            (directory / GATEWAY).mkdir(exist_ok=True)
            _write(directory / GATEWAY / "cgroup.procs", os.getpid())
        _write(directory / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
    except OSError as error:
        lacking = f"{' and '.join(sorted(wanted))} cannot be enabled in {directory} ({error.strerror})"
        return Delegation(directory, delegation.controllers - wanted, lacking)
    return delegation


def remove_leftovers(delegation: Delegation) -> None:
    """Remove empty cgroups of gateways that are gone, one that had our own process id included."""
    own = str(os.getpid())
    for path in delegation.directory.glob("moltbot-*"):
        match = _OURS.match(path.name)
        if match and match[2] != _RUN and (match[1] == own or not os.path.exists(f"/proc/{match[1]}")):
            with contextlib.suppress(OSError):  # EBUSY: somebody is in it, so it is no leftover
                _remove_tree(path)


def entering(path: Path, argv: Sequence[str] = ()) -> tuple[str, ...]:
    """`argv`, inside of the cgroup from its first instruction on, or not run; without one: what to put before it."""
    return ("/bin/sh", "-c", _ENTER, "sh", str(path / "cgroup.procs"), *argv)


@dataclass(frozen=True, slots=True)
class WorkerCgroup:
    """One cgroup for one start of a worker; `make` and `entering` put the worker into it."""

    path: Path

    @classmethod
    def make(
        cls, delegation: Delegation, name: str, *, max_memory: int | None, max_processes: int | None
    ) -> WorkerCgroup:
        """Make it, with the limits that there are controllers for; raises OSError. Threads count as processes."""
        if not _NAME.match(name):
            raise ValueError(f"not a name for a cgroup: {name!r}")
        cgroup = cls(delegation.directory / f"moltbot-{os.getpid()}-{_RUN}-{next(_STARTS)}-{name}")
        cgroup.path.mkdir()
        try:
            cgroup._limit(delegation.controllers, max_memory, max_processes)
        except OSError:
            cgroup.path.rmdir()
            raise
        return cgroup

    def _limit(self, controllers: frozenset[str], max_memory: int | None, max_processes: int | None) -> None:
        if not (self.path / "cgroup.kill").exists():
            raise OSError(errno.ENOSYS, "the kernel has no cgroup.kill: it needs Linux 5.14")
        if max_processes is not None and "pids" in controllers:
            _write(self.path / "pids.max", max_processes)
        if max_memory is not None and "memory" in controllers:
            _write(self.path / "memory.max", max_memory)
            # Else what is too much goes to the swap, at everybody's cost; kernels without swap have no such file.
            with contextlib.suppress(FileNotFoundError):
                _write(self.path / "memory.swap.max", 0)

    def kill(self) -> None:
        """Kill all that are in it at once, and none escapes. Who has not entered yet lives: kill that one by its id."""
        with contextlib.suppress(FileNotFoundError):
            _write(self.path / "cgroup.kill", 1)

    def remove(self) -> bool:
        """Kill what is left and remove it, without waiting for those; False if it is not gone yet: then ask again."""
        for _ in range(_REMOVALS):
            self.kill()
            with contextlib.suppress(OSError):
                _remove_tree(self.path)
            if not self.path.exists():
                return True
            os.sched_yield()
        return False

    @property
    def limits_memory(self) -> bool:
        """True if the kernel counts the memory of its processes."""
        return (self.path / "memory.events").exists()

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for memory; 0 without the controller."""
        with contextlib.suppress(OSError, ValueError):
            words = (self.path / "memory.events").read_text("ascii").split()
            return int(words[words.index("oom_kill") + 1])
        return 0


def _remove_tree(path: Path) -> None:
    """Remove a cgroup with those that were made below it; raises OSError while there are processes in one."""
    found = [str(path)]
    for directory in found:  # grows meanwhile
        with os.scandir(directory) as entries:
            found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for directory in reversed(found):
        os.rmdir(directory)


def _write(file: Path, value: int | str) -> None:
    """One system call without creating anything: each write to such a file is a command."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
