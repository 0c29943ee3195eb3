"""What a handler gets: `Context`. All of it is synchronous and thread-safe.

It only shows and forwards: the user's things are in `users.py`, the frames it sends are made in `calls.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moltbot.worker.record import Record
from moltbot.worker.users import User

CALLER_GAVE_UP = "the caller gave up"
Send = Callable[[str, dict[str, Any]], None]


class CancelledByCaller(Exception):
    """Raised by `checkpoint()`: the caller gave up, its time ran out, or the worker's directories are full."""


class Context:
    """One request, seen from its handler.

    user_id, request_id, worker_id: whose, which, where. epoch: of the user's pin. deadline: on `time.monotonic()`, in
    seconds; when the caller stops waiting. meta: what the caller sent along.
    """

    def __init__(
        self,
        user: User,
        *,
        request_id: str,
        worker_id: str,
        deadline: float,
        meta: Mapping[str, Any],
        send: Send,
    ) -> None:
        self._user = user
        self._send = send
        self._cancelled: str | None = None
        self._usage: dict[str, Any] = {}
        self.user_id = user.user_id
        self.epoch = user.epoch
        self.request_id = request_id
        self.worker_id = worker_id
        self.deadline = deadline
        self.meta = meta

    @property
    def session_dir(self) -> Path:
        """This user's directory for conversation files; it moves with the user."""
        return self._user.session_dir

    @property
    def state_dir(self) -> Path:
        """This user's directory for files that stay; it moves with the user."""
        return self._user.state_dir

    @property
    def cache_dir(self) -> Path:
        """This user's directory for files that may be thrown away."""
        return self._user.cache_dir

    @property
    def temp_dir(self) -> Path:
        """This user's directory for files that end with this process."""
        return self._user.temp_dir

    @property
    def state(self) -> dict[Any, Any]:
        """This user's persistent dict: msgpack types, at most 1 MiB, saved before the reply when the request succeeds."""
        return self._user.state

    @property
    def session(self) -> Record:
        """This user's append-only record: `append(entry)`, `read()`, `last(n)`."""
        return self._user.session

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the request's id; they land in the worker's log."""
        return logging.LoggerAdapter(logging.getLogger("handler"), {"request": self.request_id})

    @property
    def cancelled(self) -> bool:
        """True once the request shall end. A coroutine is interrupted by itself; a thread must look."""
        return self._cancelled is not None

    def checkpoint(self) -> None:
        """Raise `CancelledByCaller`, with the reason as its text, if the request shall end."""
        if self._cancelled is not None:
            raise CancelledByCaller(self._cancelled)

    def emit(self, name: str, data: Any = None) -> None:
        """Send an event to the caller. In a thread it waits for a slow reader; in a coroutine it raises BufferError at 1 MiB."""
        if not isinstance(name, str):
            raise TypeError(f"an event's name must be a string, not {type(name).__name__}")
        self._send("event", {"name": name, "data": data})

    def report_usage(self, **amounts: float) -> None:
        """Report amounts such as `input_tokens=12`; the last value of each name is in the reply."""
        for name, amount in amounts.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float):
                raise TypeError(f"usage {name!r} must be a number, not {type(amount).__name__}")
        self._send("usage", {"amounts": amounts})
        self._usage.update(amounts)

    @property
    def usage(self) -> dict[str, Any]:
        """What was reported so far."""
        return dict(self._usage)
