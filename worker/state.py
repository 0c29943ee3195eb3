"""A user's persistent state: one dict, in one file, replaced whole.

Read on first use, saved when a request of that user succeeds and the dict has changed. A file that cannot be read is
an error, never an empty dict. The conversation record is in `record.py`; who owns the user is the gateway's business.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack

from moltbot.worker.files import make_directory, sync_directory

MAX_STATE_BYTES = 1 << 20
FILE_NAME = "state.msgpack"


class StateError(Exception):
    """The state cannot be read, or cannot be saved as it is."""


class State:
    """The dict of one user in this process, shared by that user's requests."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self._path = directory / FILE_NAME
        self._durable = durable
        self._values: dict[Any, Any] | None = None
        self._saved = b""

    @property
    def values(self) -> dict[Any, Any]:
        """The dict itself; the first use reads the file. Raises StateError if the file is damaged."""
        if self._values is None:
            self._values = self._read()
        return self._values

    def _read(self) -> dict[Any, Any]:
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            self._saved = b""
            return {}
        try:
            values = msgpack.unpackb(data, strict_map_key=False)
        except Exception:
            values = None
        if not isinstance(values, dict):
            raise StateError(
                f"{FILE_NAME} of this user is damaged ({len(data)} bytes): restore it or remove it"
            )
        self._saved = data
        return values

    def save(self) -> None:
        """Write the dict if it has changed; raises StateError if it cannot be carried or is over 1 MiB."""
        if self._values is None:
            return
        try:
            data = msgpack.packb(self._values)
            if data != self._saved:
                msgpack.unpackb(data, strict_map_key=False)
        except Exception as error:
            raise StateError(f"ctx.state holds a value that msgpack cannot carry: {error}") from None
        if data == self._saved or (not self._values and not self._saved):
            return
        if len(data) > MAX_STATE_BYTES:
            raise StateError(
                f"ctx.state has {len(data)} bytes, at most {MAX_STATE_BYTES} are kept: use files in ctx.state_dir"
            )
        self._write(data)
        self._saved = data

    def _write(self, data: bytes) -> None:
        directory = make_directory(self._path.parent, durable=self._durable)
        temporary = directory / f".{FILE_NAME}.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self._durable:
            sync_directory(directory)

    def forget(self) -> None:
        """Drop what is in memory; the next use reads the file again."""
        self._values = None
