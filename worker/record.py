"""A user's conversation: an append-only record on disk, one JSON value a line.

An entry is there whole or not at all: a line that a crash cut short is ignored by readers and ended by the next
append. Thread-safe. It is never held in memory, so a long conversation costs nothing while it is not read.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from moltbot.worker.files import make_directory, sync_directory

MAX_ENTRY_BYTES = 1 << 20
FILE_NAME = "record.jsonl"
_BLOCK = 64 << 10
_SPOIL = b"!\n"  # ends a line that was cut short such that it is no JSON: `12` of `1234` would be


class Record:
    """The append-only record of one user."""

    def __init__(self, directory: Path, *, durable: bool) -> None:
        self._path = directory / FILE_NAME
        self._durable = durable
        self._lock = threading.Lock()

    def append(self, entry: Any) -> None:
        """Add one JSON value; raises TypeError or ValueError if it is none, or is over 1 MiB."""
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > MAX_ENTRY_BYTES:
            raise ValueError(
                f"an entry of {len(line)} bytes is over the limit of {MAX_ENTRY_BYTES}: put it in a file"
            )
        with self._lock:
            make_directory(self._path.parent, durable=self._durable)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with open(os.open(self._path, flags, 0o600), "r+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":
                        line = _SPOIL + line
                rest = memoryview(line)
                while rest:  # a disk that is nearly full takes a part
                    rest = rest[file.write(rest) :]
                if self._durable:
                    os.fsync(file.fileno())
                    if not size:
                        sync_directory(self._path.parent)

    def read(self) -> list[Any]:
        """All entries, oldest first."""
        return self._parse(self._tail(None)[0])

    def last(self, count: int) -> list[Any]:
        """The newest `count` entries, oldest first; reads only the end of the file."""
        if count <= 0:
            return []
        lines = count
        while True:
            data, complete = self._tail(lines)
            entries = self._parse(data)
            if complete or len(entries) >= count:
                return entries[-count:]
            lines *= 2  # some lines were cut short

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._path.unlink(missing_ok=True)

    def _tail(self, lines: int | None) -> tuple[bytes, bool]:
        """The file, or at least its last `lines` whole lines; and if it is all of the file."""
        with self._lock:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return b"", True
            with open(descriptor, "rb", buffering=0) as file:
                start = size = file.seek(0, os.SEEK_END)
                blocks: list[bytes] = []
                newlines = 0
                # One line more than asked for: the first one may be cut.
                while start > 0 and (lines is None or newlines <= lines + 1):
                    length = min(start, _BLOCK if lines is not None else size)
                    start = file.seek(start - length)
                    blocks.append(file.read(length))
                    newlines += blocks[-1].count(b"\n")
        data = b"".join(reversed(blocks))
        return (data, True) if start == 0 else (data.partition(b"\n")[2], False)

    @staticmethod
    def _parse(data: bytes) -> list[Any]:
        entries = []
        for line in data.split(b"\n")[:-1]:  # what has no end was cut short, and may read as another value
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue  # empty, or spoiled
        return entries
