"""The users that are loaded in this process: their directories, state and record, from arrive to leave.

A user is loaded by an `arrive` frame and unloaded by a `leave` frame; what happens in between is in `calls.py`.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moltbot.core.user_key import user_key
from moltbot.worker.files import make_directory
from moltbot.worker.record import Record
from moltbot.worker.state import State


@dataclass(frozen=True)
class Directories:
    """The worker's own directories as this process sees them; `temp` is this incarnation's."""

    sessions: Path
    state: Path
    cache: Path
    temp: Path


class User:
    """One loaded user, as hooks see them; a request's `Context` shows the same things."""

    def __init__(self, user_id: str, epoch: int, directories: Directories, *, durable: bool) -> None:
        self.user_id = user_id
        self.epoch = epoch
        self._key = user_key(user_id)
        self._directories = directories
        self._durable = durable
        self._lock = threading.Lock()
        self._running = 0
        self._reload = False
        self._state: State | None = None
        self.arrival: asyncio.Task[str | None] | None = None
        """The on_arrive hooks, if there are any: None, or what went wrong."""

    def _own(self, parent: Path) -> Path:
        return make_directory(parent / self._key)

    @property
    def session_dir(self) -> Path:
        """For the conversation; moves with the user."""
        return self._own(self._directories.sessions)

    @property
    def state_dir(self) -> Path:
        """For files that stay; moves with the user."""
        return self._own(self._directories.state)

    @property
    def cache_dir(self) -> Path:
        """For files that may be thrown away."""
        return self._own(self._directories.cache)

    @property
    def temp_dir(self) -> Path:
        """For files that end with this process."""
        return self._own(self._directories.temp)

    @cached_property
    def session(self) -> Record:
        """The append-only record."""
        return Record(self._directories.sessions / self._key, durable=self._durable)

    @property
    def state(self) -> dict[Any, Any]:
        """The persistent dict."""
        with self._lock:
            if self._state is None:
                self._state = State(self._directories.state / self._key, durable=self._durable)
            return self._state.values

    def save(self) -> None:
        """Save the dict if it was used and has changed."""
        with self._lock:
            if self._state is not None:
                self._state.save()

    def enter(self) -> None:
        """A request of this user begins."""
        self._running += 1

    def exit(self, *, failed: bool) -> None:
        """A request ended. After a failure the dict is read anew, once no other request of this user is using it."""
        self._running -= 1
        self._reload = self._reload or failed
        if self._reload and not self._running:
            self._reload = False
            with self._lock:
                if self._state is not None:
                    self._state.forget()
