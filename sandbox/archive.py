"""Copies directory trees of a worker into a tar archive, whatever the worker made of them.

The worker may be hostile and may write meanwhile. So nothing here uses a path below a root, follows a link, enters another
filesystem or waits for a pipe; one folder is open at a time, whatever the depth; bytes, entries and time are bounded by numbers
that the worker does not choose. What cannot be copied is listed. Which trees, of whom and when, is decided in
`router/exporting.py`. Blocks, so call it in a thread.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from moltbot.core.errors import MoltbotError, StorageFull
from moltbot.core.units import format_size

MOST_LISTED = 100
_LONGEST_SHOWN = 300
_LATEST = 8**11 - 1  # seconds, as a plain header holds them
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER = _FLAGS | os.O_DIRECTORY
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_WHY = {errno.EACCES: "the gateway may not read it", errno.EPERM: "the gateway may not read it"}
_CHANGED = "it changed while it was copied"


@dataclass(slots=True)
class Skipped:
    """What was not copied as it was: the first MOST_LISTED, and how many there are."""

    count: int = 0
    shown: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, why: str) -> None:
        self.count += 1
        if len(self.shown) < MOST_LISTED:
            self.shown.append({"path": path[:_LONGEST_SHOWN], "why": why})


@dataclass(slots=True)
class _Level:
    """A folder on the way down: what must be found again on the way up, and what waits in it."""

    name: str
    identity: tuple[int, int]
    waiting: list[str]


def write_archive(
    file: IO[bytes],
    trees: Mapping[str, Path],
    manifest: tuple[str, Mapping[str, Any]],
    *,
    max_size: int,
    max_inodes: int,
    check: Callable[[], None],
) -> int:
    """Write `trees`, by their names in the archive, and last a JSON file `manifest`: a name and a content; returns the size.

    The content gets `skipped` (a list of `path` and `why`) and `skippedCount`. max_size: bytes of files, as long as they say they are, and
    of names. check: called often; what it raises ends the work. Raises StorageFull beyond the bounds, and OSError.
    """
    name, content = manifest
    copier = _Copier(file, max_size, max_inodes, check)
    try:
        for label, path in trees.items():
            copier.add(label, path)
        skipped = {"skipped": copier.skipped.shown, "skippedCount": copier.skipped.count}
        text = json.dumps({**content, **skipped}, indent=2).encode() + b"\n"
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(text), 0o600
        copier.archive.addfile(info, io.BytesIO(text))
        copier.archive.close()
    except _TargetFailed as error:
        raise error.cause from None
    size = file.tell()
    file.seek(0)
    return size


class _Copier:
    """Depth first, on a stack of its own; one archive."""

    def __init__(self, file: IO[bytes], max_size: int, max_inodes: int, check: Callable[[], None]) -> None:
        self.skipped = Skipped()
        self.archive = tarfile.TarFile(
            fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        self._max_size = max_size
        self._max_inodes = max_inodes
        self._check = check
        self._size = 0
        self._inodes = 0
        self._device = 0
        self._here = -1
        self._levels: list[_Level] = []

    def add(self, label: str, root: Path) -> None:
        """Copy one tree; a missing one is empty, and a root that is no folder is skipped."""
        try:
            self._here = os.open(root, _FOLDER)
        except FileNotFoundError:
            return
        except OSError as error:
            self._skip(label, error)
            return
        try:
            status = os.fstat(self._here)
            self._device = status.st_dev
            self._put(self._info(label, status, tarfile.DIRTYPE), None)
            self._levels = [_Level(label, (status.st_dev, status.st_ino), self._list())]
            while self._levels:
                if self._levels[-1].waiting:
                    self._entry(self._levels[-1].waiting.pop())
                else:
                    self._ascend()
        finally:
            if self._here >= 0:
                os.close(self._here)
            self._here, self._levels = -1, []

    # --- up and down ------------------------------------------------------------------------------

    def _list(self) -> list[str]:
        """The names in the open folder; each counts, even one that vanishes."""
        names = []
        with os.scandir(self._here) as entries:
            for entry in entries:
                self._inodes += 1
                if self._inodes > self._max_inodes:
                    raise self._too_much(f"more than {self._max_inodes} files and folders (max_inodes)")
                names.append(entry.name)
        names.sort(reverse=True)
        return names

    def _descend(self, name: str, path: str, expected: os.stat_result) -> None:
        below = os.open(name, _FOLDER, dir_fd=self._here)
        status = os.fstat(below)
        if status.st_dev != self._device or status.st_ino != expected.st_ino:
            os.close(below)
            other = status.st_dev != self._device
            self.skipped.add(path, "it is on another filesystem" if other else _CHANGED)
            return
        os.close(self._here)
        self._here = below
        self._levels.append(_Level(name, (status.st_dev, status.st_ino), []))
        self._put(self._info(path, status, tarfile.DIRTYPE), None)
        self._levels[-1].waiting = self._list()

    def _ascend(self) -> None:
        """Back to the folder above, if it still is; what was moved elsewhere meanwhile leads nowhere."""
        self._levels.pop()
        if not self._levels:
            return
        try:
            above = os.open("..", _FOLDER, dir_fd=self._here)
        except OSError as error:
            if error.errno in _OURS:
                raise
            self._give_up()
            return
        os.close(self._here)
        self._here = above
        status = os.fstat(above)
        if (status.st_dev, status.st_ino) != self._levels[-1].identity:
            self._give_up()

    def _give_up(self) -> None:
        """There is no way back: what was not copied yet is listed."""
        for depth, level in enumerate(self._levels, 1):
            for name in level.waiting:
                self.skipped.add(self._name(name, depth), _CHANGED)
        self._levels.clear()

    def _name(self, name: str, depth: int | None = None) -> str:
        return "/".join([*(level.name for level in self._levels[:depth]), name])

    # --- entries ----------------------------------------------------------------------------------

    def _entry(self, name: str) -> None:
        self._check()
        path = self._name(name)
        try:
            status = os.stat(name, dir_fd=self._here, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._descend(name, path, status)
            elif stat.S_ISREG(status.st_mode):
                self._file(name, path)
            elif stat.S_ISLNK(status.st_mode):
                info = self._info(path, status, tarfile.SYMTYPE)
                info.linkname = os.readlink(name, dir_fd=self._here)
                self._put(info, None)
            else:
                self.skipped.add(path, "it is no file, folder or link")
        except OSError as error:
            self._skip(path, error)

    def _file(self, name: str, path: str) -> None:
        with open(os.open(name, _FLAGS, dir_fd=self._here), "rb", buffering=0) as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_dev != self._device:
                self.skipped.add(path, _CHANGED)
                return
            info = self._info(path, status, tarfile.REGTYPE)
            info.size = status.st_size
            exact = _Exact(source, info.size, self._check)
            self._put(info, exact)
            if exact.short:
                self.skipped.add(path, "it became shorter while it was copied; its end is zeros")

    def _put(self, info: tarfile.TarInfo, source: _Exact | None) -> None:
        self._size += info.size + len(info.name) + len(info.linkname)
        if self._size > self._max_size:
            raise self._too_much(f"more than {format_size(self._max_size)} (max_disk)")
        try:
            self.archive.addfile(info, source)
        except OSError as error:
            raise _TargetFailed(error) from error
        self.archive.members.clear()  # type: ignore[attr-defined]  # it would grow with the archive

    def _info(self, path: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
        """A header that tells nothing of the machine, and gives no rights."""
        info = tarfile.TarInfo(path)
        info.type = kind
        info.mode = stat.S_IMODE(status.st_mode) & 0o777
        info.mtime = min(max(0, int(status.st_mtime)), _LATEST)
        return info

    def _skip(self, path: str, error: OSError) -> None:
        if error.errno in _OURS:
            raise error
        self.skipped.add(path, _WHY.get(error.errno or 0, _CHANGED))

    def _too_much(self, what: str) -> MoltbotError:
        return StorageFull(
            f"this user's files are too many for an archive, {what}: remove some first", retryable=False
        )


class _TargetFailed(Exception):
    """The archive itself could not be written."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Exact:
    """Reads as many bytes as were announced: a file that grows is cut, one that shrinks ends with zeros."""

    def __init__(self, source: IO[bytes], size: int, check: Callable[[], None]) -> None:
        self._source = source
        self._left = size
        self._check = check
        self.short = False

    def read(self, size: int = -1) -> bytes:
        self._check()
        wanted = min(size, self._left)
        self._left -= wanted
        found = b"" if self.short else self._read(wanted)
        self.short = self.short or len(found) < wanted
        return found.ljust(wanted, b"\0")

    def _read(self, wanted: int) -> bytes:
        pieces = []
        while wanted:
            try:
                piece = self._source.read(wanted)
            except OSError:  # a bad block, a filesystem that went away
                break
            if not piece:
                break
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)
