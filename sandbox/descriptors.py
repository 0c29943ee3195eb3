"""Descriptors that a child process is given: content in memory, and a pipe for what it has to tell.

Words of a `LaunchSpec` say where their numbers stand in its command line; here they become real. What is passed this way
shows in no argv and in no environment, and lies in no file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterable
from typing import Self

from moltbot.sandbox.launch import Attached, StatusPipe, Word, WorkerSocket


class Descriptors:
    """Open during one spawn. sock: the worker's end of its socket, which stays the caller's; `passed` are for the child, `status` is our end of its status pipe, if it has one."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock
        self.status: int | None = None
        self._passed: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_passed()
        if self.status is not None:
            os.close(self.status)

    @property
    def passed(self) -> tuple[int, ...]:
        return tuple(self._passed)

    def resolve(self, words: Iterable[Word]) -> list[str]:
        """The words as text, each descriptor opened and named by its number; raises OSError."""
        return [word if isinstance(word, str) else str(self._open(word)) for word in words]

    def _open(self, word: Attached | StatusPipe | WorkerSocket) -> int:
        if isinstance(word, WorkerSocket):
            assert self._sock is not None
            self._passed.append(os.dup(self._sock.fileno()))
            return self._passed[-1]
        if isinstance(word, StatusPipe):
            self.status, theirs = os.pipe()
            os.set_blocking(self.status, False)
            self._passed.append(theirs)
            return theirs
        content = word.content
        if not isinstance(content, bytes):
            content = b"".join(text.encode() + b"\0" for text in self.resolve(content))
        return self._hold(content)

    def _hold(self, content: bytes) -> int:
        """A descriptor that reads `content` from its start."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("moltbot")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        self._passed.append(descriptor)
        with open(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def close_passed(self) -> None:
        """The child has its own copies."""
        while self._passed:
            with contextlib.suppress(OSError):
                os.close(self._passed.pop())
