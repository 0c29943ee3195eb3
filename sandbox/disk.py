"""Measures what a worker's directories hold, and judges it.

The worker may be hostile and writes while it is measured. So nothing here uses a path below a root, follows a
link, enters another filesystem or waits for a pipe; time, memory and descriptors are bounded by numbers that the
worker does not choose.

Slow system calls, so always off the event loop. Nothing is removed here (`directories.py`); memory is in `memory.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from moltbot.core.units import approximate_size, format_size
from moltbot.sandbox.memory import living_thread

MAX_DEPTH = 128
MOST_DESCRIPTORS = 20_000
MOST_MISSED = 1_000
_TOO_DEEP = f"folders nested deeper than {MAX_DEPTH}"
_CLOSED = "folders that the gateway cannot read: chmod -R u+rwX"
_BLOCK = 512  # of st_blocks, whatever the filesystem's own block is
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OURS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)  # it is us who lack something: no worker gets a smaller figure by it


@dataclass(frozen=True, slots=True)
class DiskUse:
    """size: bytes on disk, a file with several names once. inodes: entries, each name of a file and the roots too.

    uncounted: why a part was not counted, None if all was; a worker that hides its files is treated as one with too many.
    """

    size: int
    inodes: int
    uncounted: str | None = None
    missed: frozenset[int] = frozenset()
    """Files and folders, by inode, that were listed and were not to be found under that name a moment later."""


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """From the configuration: bytes, and entries."""

    max_size: int
    max_inodes: int


@dataclass(frozen=True, slots=True)
class DiskFinding:
    """hard: the worker is beyond a limit, else it comes near one. detail: a part of a sentence."""

    hard: bool
    detail: str


# --- judging ------------------------------------------------------------------------------------------------


def judge_disk(use: DiskUse, limits: DiskLimits) -> DiskFinding | None:
    """Return the worst finding, if any: an alarm from 80% of a limit, hard above it or if not all can be counted. Pure."""
    if use.uncounted is not None:
        return DiskFinding(True, use.uncounted)
    size = f"{approximate_size(use.size)} on disk, the limit is {format_size(limits.max_size)} (max_disk)"
    inodes = f"{use.inodes} files and folders, the limit is {limits.max_inodes} (max_inodes)"
    measures = ((use.size, limits.max_size, size), (use.inodes, limits.max_inodes, inodes))
    for used, limit, detail in measures:
        if used > limit:
            return DiskFinding(True, detail)
    for used, limit, detail in measures:
        if used * 10 >= limit * 8:
            return DiskFinding(False, detail)
    return None


# --- measuring ----------------------------------------------------------------------------------------------


def measure_disk(roots: Iterable[Path], *, max_inodes: int) -> DiskUse:
    """Count what is in `roots`, which must not overlap; a missing one is empty. Blocks, so call it in a thread.

    Ends early once more than `max_inodes` entries were counted: then `inodes` says so, and `size` is only a part.
    Raises OSError only if this process has no descriptors or no memory left.
    """
    walk = _Walk(max_inodes)
    for root in roots:
        if not walk.full:
            walk.add(root)
    return DiskUse(walk.size, walk.inodes, walk.uncounted, frozenset(walk.missed))


def measure_deleted(root_pid: int, folder: Path) -> DiskUse:
    """What files without a name hold on the disk of `folder`, as long as a process tree has them open or mapped.

    A tree with more than MOST_DESCRIPTORS hides something, and so is not `uncounted` for nothing. Not seen: what is mapped, to a
    gateway that is not root; what is on its way through a socket; processes of our own uid that close themselves to us.
    """
    try:
        root = psutil.Process(root_pid)
        pids = [root.pid, *(child.pid for child in root.children(recursive=True))]
        device = folder.stat().st_dev
    except (psutil.Error, OSError):
        return DiskUse(0, 0)
    found: dict[int, int] = {}
    for count, path in enumerate(_descriptors(pids)):
        if count == MOST_DESCRIPTORS:
            return DiskUse(
                sum(found.values()), len(found), f"more than {MOST_DESCRIPTORS} descriptors are open"
            )
        with contextlib.suppress(OSError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode) and not status.st_nlink and status.st_dev == device:
                found[status.st_ino] = status.st_blocks * _BLOCK
    return DiskUse(sum(found.values()), len(found))


def _descriptors(pids: Iterable[int]) -> Iterator[str]:
    """All open files and mappings, as paths; of a process whose first thread has ended, those of another one."""
    for pid in pids:
        thread = living_thread(pid)
        for kind in ("fd", "map_files") if os.geteuid() == 0 else ("fd",):
            with contextlib.suppress(OSError):
                yield from (f"/proc/{thread}/{kind}/{name}" for name in os.listdir(f"/proc/{thread}/{kind}"))


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open directory, and the names of folders in it that were not entered yet."""

    descriptor: int
    waiting: list[tuple[str, int]]


class _Walk:
    """Depth first, on a stack of its own: what the worker nests must not become a nesting of our calls."""

    def __init__(self, max_inodes: int) -> None:
        self._max_inodes = max_inodes
        self._linked: set[tuple[int, int]] = set()
        self._open: list[_Folder] = []
        self.size = 0
        self.inodes = 0
        self.uncounted: str | None = None
        self.missed: set[int] = set()

    @property
    def full(self) -> bool:
        """True if enough was counted to know that it is too much."""
        return self.inodes > self._max_inodes

    def add(self, root: Path) -> None:
        """Count a root and all below it."""
        try:
            status = root.lstat()
        except OSError:
            return
        self.inodes += 1
        self._add_size(status)
        try:
            if stat.S_ISDIR(status.st_mode):
                self._enter(root, status.st_ino, status.st_dev)
            while self._open and not self.full:
                if self._open[-1].waiting:
                    self._enter(*self._open[-1].waiting.pop(), status.st_dev)
                else:
                    self._leave()
        finally:
            while self._open:
                self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._open.pop().descriptor)

    def _enter(self, name: str | Path, inode: int, device: int) -> None:
        """Open a folder of the innermost open one and count its entries."""
        if len(self._open) == MAX_DEPTH:
            self.uncounted = _TOO_DEEP
            return
        inside = self._open[-1].descriptor if self._open else None
        try:
            folder = _Folder(os.open(name, _FOLDER, dir_fd=inside), [])
            self._open.append(folder)
            # Only folders are asked for their filesystem: layered ones give their files another number.
            if os.fstat(folder.descriptor).st_dev == device:
                self._list(folder)
        except OSError as error:
            self._take(error)
            self._miss(error, inode)

    def _miss(self, error: OSError, inode: int) -> None:
        if error.errno != errno.EACCES and len(self.missed) < MOST_MISSED:
            self.missed.add(inode)

    def _take(self, error: OSError) -> None:
        """A folder that vanished or was exchanged is the worker's affair; what is closed to us hides something."""
        if error.errno in _OURS:
            raise error
        if error.errno == errno.EACCES:
            self.uncounted = _CLOSED

    def _list(self, folder: _Folder) -> None:
        """Count all entries of a folder before one is entered: an open listing would cost a descriptor more."""
        with os.scandir(folder.descriptor) as entries:
            for entry in entries:
                self.inodes += (
                    1  # even if it vanishes now: whoever makes and removes names for ever is bounded too
                )
                if self.full:
                    return
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._take(error)
                    self._miss(error, entry.inode())
                    continue
                self._add_size(status)
                if stat.S_ISDIR(status.st_mode):
                    folder.waiting.append((entry.name, status.st_ino))

    def _add_size(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return
            self._linked.add(key)
        self.size += status.st_blocks * _BLOCK
