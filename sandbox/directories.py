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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moltbot.core.errors import BaseDirectoryError, InvalidRequest, quote
from moltbot.sandbox.base_directory import write_json

PARTS = ("sessions", "state", "cache", "temp", "logs")
METADATA = "sandbox.json"
TRASH = "trash"
log = logging.getLogger("moltbot.worker")
_WORKER_ID = re.compile(r"worker-(0|[1-9][0-9]{0,4})\Z", re.ASCII)
_REMOVE_SECONDS = 300
_REMOVE_AT_ONCE = 500  # the kernel bounds the length of a command line
_MAX_METADATA = 64 << 10
_DAMAGED = 10**9  # no slot gets that far: a larger incarnation is not ours


def worker_name(index: int) -> str:
    """The name of the worker with this number."""
    return f"worker-{index}"


def check_worker_id(value: object) -> str:
    """Return `value` if it is a worker's name; raises InvalidRequest."""
    if not isinstance(value, str) or not _WORKER_ID.match(value):
        raise InvalidRequest(f"{quote(value)} is not a worker's name: they are worker-0, worker-1 and so on")
    return value


class WorkerDirectories:
    """The directories of one worker below the base directory."""

    def __init__(self, base: Path, worker_id: str) -> None:
        self.root = base / check_worker_id(worker_id)
        self.worker_id = worker_id
        self._trash = base / TRASH

    def create(self) -> None:
        """Make what is missing, and put aside what stands in its place; raises BaseDirectoryError."""
        for directory in (self._trash, self.root, *(self.root / part for part in PARTS)):
            try:
                self._make_room(directory)
                directory.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise BaseDirectoryError(
                    f"{directory} cannot be made ({error.strerror}): make room for it"
                ) from None

    def _make_room(self, path: Path, *, wanted: Callable[[int], bool] = stat.S_ISDIR) -> None:
        """Put aside what is at `path` if it is not what we made there: a link, a pipe, another kind of file, not ours."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if not wanted(status.st_mode) or status.st_uid != os.geteuid():
            log.warning("%s was replaced by something else, which is put aside", path)
            self._discard(path)

    def _discard(self, path: Path) -> None:
        """Out of the worker's reach in one step, however large it is; `empty_trash` deletes it."""
        path.rename(self._trash / f"{self.worker_id}-{secrets.token_hex(8)}")

    @property
    def log_file(self) -> Path:
        return self.root / "logs" / "worker.log"

    def temp(self, incarnation: int) -> Path:
        return self.root / "temp" / str(incarnation)

    def home(self, incarnation: int) -> Path:
        """The home directory of an incarnation; no user's directory has a name with a leading dot."""
        return self.temp(incarnation) / ".home"

    def open_temp(self, incarnation: int) -> None:
        """Make the temp and home directories of a new incarnation, without anything an earlier one left. Raises BaseDirectoryError."""
        temp = self.root / "temp"
        try:
            self._discard(temp)
            for directory in (temp, self.temp(incarnation), self.home(incarnation)):
                directory.mkdir(mode=0o700)
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
        self._make_room(self.root / METADATA, wanted=stat.S_ISREG)
        write_json(self.root / METADATA, {"workerId": self.worker_id, **content, "created": first})


async def remove_trees(paths: list[str]) -> None:
    """Delete directory trees of any depth, as `rm -rf` does; never follows a link. Bounded in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REMOVE_SECONDS):
            for start in range(0, len(paths), _REMOVE_AT_ONCE):
                await _remove(paths[start : start + _REMOVE_AT_ONCE])


async def _remove(paths: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        "rm", "-rf", "--", *paths, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    process.pid, signal.SIGKILL
                )  # process.kill() would reap it under the event loop's nose
            await process.wait()
