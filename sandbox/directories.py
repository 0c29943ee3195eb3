"""One worker's directories.

    worker-0/  sandbox.json  sessions/  state/  cache/  temp/<incarnation>/  logs/

The worker may be hostile and owns most of what is inside: nothing here follows a link of it, and what it leaves behind is
removed by a program that no depth of nesting can stop. Names of per-user directories are made in `core/user_key.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import signal
import stat
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moltbot.core.errors import BaseDirectoryError, InvalidRequest, quote
from moltbot.sandbox.base_directory import write_json

WRITABLE = ("sessions", "state", "cache")
PARTS = (*WRITABLE, "temp", "logs")
METADATA = "sandbox.json"
TRASH = "trash"
PROBE = ".probe-"
"""What begins so, in the base directory, was made to try a wall."""
log = logging.getLogger("moltbot.worker")
_WORKER_ID = re.compile(r"worker-(0|[1-9][0-9]{0,4})\Z", re.ASCII)
_REMOVE_SECONDS = 300
_REMOVE_AT_ONCE = 500  # the kernel bounds the length of a command line
_MAX_METADATA = 64 << 10
_DAMAGED = 10**9  # no slot gets that far: a larger incarnation is not ours


@dataclass(frozen=True, slots=True)
class Record:
    """What `sandbox.json` tells of a worker's wall. protections, settings: as they were written."""

    level: str
    owner: int
    program: str | None
    protections: list[dict[str, Any]]
    settings: dict[str, Any]


def worker_name(index: int) -> str:
    """The name of the worker with this number."""
    return f"worker-{index}"


def worker_index(worker_id: str) -> int:
    """The number in a worker's name."""
    return int(worker_id.removeprefix("worker-"))


def check_worker_id(value: object) -> str:
    """Return `value` if it is a worker's name; raises InvalidRequest."""
    if not isinstance(value, str) or not _WORKER_ID.match(value):
        raise InvalidRequest(f"{quote(value)} is not a worker's name: they are worker-0, worker-1 and so on")
    return value


def is_worker_id(name: str) -> bool:
    """True for a worker's name."""
    return _WORKER_ID.match(name) is not None


class WorkerDirectories:
    """The directories of one worker below the base directory."""

    def __init__(self, base: Path, worker_id: str) -> None:
        self.root = base / check_worker_id(worker_id)
        self.worker_id = worker_id
        self._trash = base / TRASH

    def create(self, owner: int) -> None:
        """Make what is missing, and put aside what stands in its place; raises BaseDirectoryError.

        owner: the uid that is to own what the worker writes. What another one of our uids owns is left to `hand_over`.
        """
        ours = {owner, os.geteuid(), self._last_owner()}
        for directory in (self._trash, self.root, *(self.root / part for part in PARTS)):
            theirs = directory.name in WRITABLE and directory.parent == self.root
            try:
                self._make_room(directory, owners=ours if theirs else {os.geteuid()})
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(mode=0o700)
                    if theirs:
                        _give(directory, owner)
            except OSError as error:
                raise BaseDirectoryError(
                    f"{directory} cannot be made ({error.strerror}): make room for it"
                ) from None

    def _make_room(
        self, path: Path, *, owners: Container[int], wanted: Callable[[int], bool] = stat.S_ISDIR
    ) -> None:
        """Put aside what is at `path` if it is not what we made there: a link, a pipe, another kind of file, not ours.

        Users' files are never thrown away for their owner alone: raises BaseDirectoryError.
        """
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if status.st_uid in owners and wanted(status.st_mode):
            return
        if wanted(status.st_mode) and (path == self.root or path.name in WRITABLE):
            raise BaseDirectoryError(
                f"{path} belongs to uid {status.st_uid}, which is none of ours: chown -R it to {os.geteuid()}, or move it away"
            )
        log.warning(
            "%s was replaced by something else, which is put aside", path, extra={"worker": self.worker_id}
        )
        self._discard(path)

    def _discard(self, path: Path) -> None:
        """Out of the worker's reach in one step, however large it is; `empty_trash` deletes it."""
        name = f"{self.worker_id}-{secrets.token_hex(8)}"
        if path == self._trash:  # into itself it cannot go, nor through whatever stands there
            path.rename(path.with_name(f".{TRASH}-{name}"))
        else:
            path.rename(self._trash / name)

    @property
    def measured(self) -> tuple[Path, ...]:
        """What counts as the worker's: all that it can write to on disk."""
        return tuple(self.root / part for part in (*WRITABLE, "temp"))

    def put_cache_aside(self) -> None:
        """Throw away all cached files; the directory is made anew by `create`. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._discard(self.root / "cache")

    @property
    def log_file(self) -> Path:
        return self.root / "logs" / "worker.log"

    def temp(self, incarnation: int) -> Path:
        return self.root / "temp" / str(incarnation)

    def home(self, incarnation: int) -> Path:
        """The home directory of an incarnation; no user's directory has a name with a leading dot."""
        return self.temp(incarnation) / ".home"

    async def hand_over(self, owner: int) -> None:
        """Give what another uid of ours owns to `owner`, after a change of level or range; raises BaseDirectoryError.

        No process of this worker may run. Files with a second name stay as they are: that name may be anybody's.
        """
        folders = [self.root / part for part in WRITABLE if (self.root / part).lstat().st_uid != owner]
        if not folders:
            return
        log.warning(
            "%s: its directories go over to uid %d",
            self.worker_id,
            owner,
            extra={"worker": self.worker_id},
        )
        paths = [str(folder) for folder in folders]
        kinds = ("(", "-type", "d", "-o", "-type", "l", "-o", "-type", "f", "-links", "1", ")")
        chown = ("chown", "-h", f"{owner}:{owner}", "--", "{}", "+")
        # First many at once; then, each in its folder, what has too long a path for that.
        for execute in ("-exec", "-execdir"):
            status = await _run(
                "find",
                "-P",
                *paths,
                "-xdev",
                "-mindepth",
                "1",
                *kinds,
                "!",
                "-uid",
                str(owner),
                execute,
                *chown,
            )
        if status != 0:
            raise BaseDirectoryError(
                f"{self.root} cannot be given to uid {owner}: check the owner of what is in it"
            )
        for folder in folders:  # last, so that these show whether all was done
            _give(folder, owner)

    def open_temp(self, incarnation: int, owner: int) -> None:
        """Make the temp and home directories of a new incarnation, without anything an earlier one left. Raises BaseDirectoryError."""
        temp = self.root / "temp"
        try:
            self._discard(temp)
            temp.mkdir(mode=0o700)
            for directory in (self.temp(incarnation), self.home(incarnation)):
                directory.mkdir(mode=0o700)
                _give(directory, owner)
        except OSError as error:
            raise BaseDirectoryError(
                f"{temp} cannot be made anew ({error.strerror}): make room for it"
            ) from None

    async def empty_trash(self) -> None:
        """Delete what was put aside; bounded in time, and what is left is tried again at the next start of a worker."""
        await remove_trees([str(self._trash / name) for name in os.listdir(self._trash)])

    def read_incarnation(self) -> int:
        """The number of the last incarnation; 0 if there was none or the file is damaged."""
        value = self._read_metadata().get("incarnation", 0)
        return max(value if type(value) is int and 0 <= value < _DAMAGED else 0, self._highest_temp())

    def read_record(self) -> Record:
        """What was noted of the last incarnation's wall; raises BaseDirectoryError if there was none."""
        found = self._read_metadata()
        level, owner, program = (found.get(name) for name in ("isolation", "owner", "program"))
        temp = self.temp(self.read_incarnation())
        if not (isinstance(level, str) and type(owner) is int and temp.is_dir()):
            raise BaseDirectoryError(
                f"{self.root} is no worker's directory: start the gateway once, or name its base directory with -s"
            )
        protections, settings = found.get("protections"), found.get("settings")
        return Record(
            level,
            owner,
            program if isinstance(program, str) else None,
            protections if isinstance(protections, list) else [],
            settings if isinstance(settings, dict) else {},
        )

    def _last_owner(self) -> int:
        """The uid to which the last incarnation's directories belonged."""
        owner = self._read_metadata().get("owner")
        return owner if type(owner) is int else os.geteuid()

    def _read_metadata(self) -> dict[str, Any]:
        """What `sandbox.json` holds; empty if it is missing or damaged. Follows no link and waits for no pipe."""
        try:
            descriptor = os.open(self.root / METADATA, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                content = json.loads(file.read(_MAX_METADATA) or b"")
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _highest_temp(self) -> int:
        try:
            names = os.listdir(self.root / "temp")
        except OSError:
            return 0
        return max(
            (int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 10), default=0
        )

    def write_metadata(self, content: Mapping[str, Any]) -> None:
        """Replace `sandbox.json`; `created` is kept from the first time."""
        created = self._read_metadata().get("created")
        first = created if isinstance(created, str) and created else content["created"]
        self._make_room(self.root / METADATA, owners={os.geteuid()}, wanted=stat.S_ISREG)
        write_json(self.root / METADATA, {"workerId": self.worker_id, **content, "created": first})


async def remove_trees(paths: list[str]) -> None:
    """Delete directory trees of any depth, as `rm -rf` does; never follows a link. Bounded in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REMOVE_SECONDS):
            for start in range(0, len(paths), _REMOVE_AT_ONCE):
                some = paths[start : start + _REMOVE_AT_ONCE]
                if os.geteuid() != 0:  # `rm` cannot look into a folder that its owner has closed
                    closed = ("-type", "d", "!", "-perm", "-700")
                    await _run("find", "-P", *some, *closed, "-execdir", "chmod", "u+rwx", "--", "{}", ";")
                await _run("rm", "-rf", "--", *some)


def _give(directory: Path, owner: int) -> None:
    if directory.lstat().st_uid != owner:
        os.chown(directory, owner, owner, follow_symlinks=False)


async def _run(*command: str) -> int:
    """Run a program that works on hostile trees; returns its exit status."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.defpath},
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    process.pid, signal.SIGKILL
                )  # process.kill() would reap it under the event loop's nose
            await process.wait()
