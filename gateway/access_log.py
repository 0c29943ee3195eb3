"""The access log, `logs/access.log`: one line for every request that ended, readable or JSON.

The event loop only puts an entry into a bounded queue; a thread makes the lines and writes many at once, about four times a
second. When the queue is full, entries are dropped and counted in the log: requests come before their record. What is worth an
entry, and what it holds, is decided at the edge; how the pool's own log looks is in `sandbox/log_lines.py`.

No token, no query and no body is ever given to it; users go by the names that `shown_user` makes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from moltbot.core.clock import Clock
from moltbot.sandbox.log_lines import LogFormat, stamp, word
from moltbot.sandbox.logs import NoFollowHandler

MAX_WAITING = 10_000
"""Entries that may wait to be written: a few seconds' worth of the most that one gateway serves."""
_SECONDS = 0.25
_JOIN_SECONDS = 5.0  # for a disk that does not answer
_AT_ONCE = 100  # entries in one write: between writes the event loop has its turn

_REMEMBERED = 4096  # names and words: the same come again and again

_Entry = tuple[Any, ...]  # what `note` was given, behind the time
_json = json.JSONEncoder(separators=(",", ":")).encode


class AccessLog:
    """`start` it, `note` every request that ended, `stop` it; what was noted before `stop` is written then.

    directory: where `access.log` goes, made if it is missing. shown_user: gives the name for a user's id; it runs in the thread.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        log_format: LogFormat = "text",
        shown_user: Callable[[str], str] = str,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._line = self._as_json if log_format == "json" else self._as_text
        self._shown_user = lru_cache(_REMEMBERED)(shown_user)
        self._word = lru_cache(_REMEMBERED)(word)
        self._waiting: deque[_Entry] = deque()
        self._dropped = 0  # counted by the loop only, told by the thread only: neither needs a lock
        self._told = 0
        self._second = -1
        self._stamp = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._handler = NoFollowHandler(self._directory / "access.log")
        self._thread.start()

    async def stop(self) -> None:
        """Write what waits, end the thread, close the file. May be repeated, and before `start`."""
        self._ending.set()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    def note(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        duration_ms: float,
        *,
        remote: str | None = None,
        credential: str | None = None,
        user_id: str | None = None,
        worker: str | None = None,
        incarnation: int | None = None,
        code: str | None = None,
    ) -> None:
        """Take a request that ended now; returns at once and never fails.

        path: without the query. credential: its id, never the token. user_id: as it is, see `shown_user`.
        code: of the error, if it ended with one.
        """
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(
            (
                self._clock.time(),
                request_id,
                method,
                path,
                status,
                duration_ms,
                remote,
                credential,
                user_id,
                worker,
                incarnation,
                code,
            )
        )

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_SECONDS)
            self._write_all()
        self._handler.close()

    def _write_all(self) -> None:
        left = len(self._waiting)  # those that come meanwhile are the next round's
        while left:
            count = min(left, _AT_ONCE)
            left -= count
            self._write([line for _ in range(count) if (line := self._made(self._waiting.popleft()))])
        if (dropped := self._dropped) != self._told:
            text = f"{dropped - self._told} entries were dropped here: more than could be written"
            self._told = dropped
            self._write([self._remark(self._clock.time(), text)])

    def _remark(self, at: float, text: str) -> str:
        line = {"time": stamp(at), "message": f"... {text}"}
        return _json(line) if self._line == self._as_json else " ".join(line.values())

    def _write(self, lines: list[str]) -> None:
        if lines:
            self._handler.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))

    def _made(self, entry: _Entry) -> str:
        try:
            return self._line(entry)
        except Exception:  # one entry that cannot be shown must not end the log
            return self._remark(entry[0], "an entry could not be shown here")

    def _as_text(self, entry: _Entry) -> str:
        at, request_id, method, path, status, ms, remote, credential, user, worker, number, code = entry
        line = (
            f"{self._at(at)} {status} {self._word(method)} {word(path.partition('?')[0])} {ms:.2f}ms"
            f" request={word(request_id)}"
        )
        if remote is not None:
            line += f" remote={self._word(remote)}"
        if credential is not None:
            line += f" credential={self._word(credential)}"
        if user is not None:
            line += f" user={self._word(self._shown_user(user))}"
        if worker is not None:
            line += f" worker={self._word(worker)}"
        if number is not None:
            line += f" incarnation={number}"
        return line if code is None else f"{line} code={self._word(code)}"

    def _as_json(self, entry: _Entry) -> str:
        at, request_id, method, path, status, ms, remote, credential, user, worker, number, code = entry
        fields = {
            "time": self._at(at),
            "requestId": request_id,
            "method": method,
            "path": path.partition("?")[0],
            "status": status,
            "durationMs": round(ms, 2),
            "remote": remote,
            "credential": credential,
            "user": self._shown_user(user) if user is not None else None,
            "worker": worker,
            "incarnation": number,
            "code": code,
        }
        return _json({name: value for name, value in fields.items() if value is not None})

    def _at(self, seconds: float) -> str:
        """As `stamp`, which is made once a second."""
        whole = int(seconds)
        if whole != self._second:
            self._second, self._stamp = whole, stamp(whole)[:-4]
        return f"{self._stamp}{int((seconds - whole) * 1000):03d}Z"
