"""What workers print becomes `logs/worker.log`: one thread reads all their pipes and writes rotated, bounded files.

A thread, because reading a gigabyte must not cost the event loop anything. A worker that prints more than its budget keeps
running; the surplus is dropped and counted in the log.
What the pool itself has to say is in `pool_log.py`.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import selectors
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from moltbot.core.clock import Clock

MAX_LOG_BYTES = 5 << 20
LOG_BACKUPS = 2
MAX_LINE_BYTES = 8 << 10
BUDGET_BYTES_PER_SECOND = 1 << 20
LINE_COST = 50  # bytes of budget for each line, which gets a time and a prefix
_LAST_SECONDS = 0.5
_LAST_READS = 32
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)  # what could play tricks on a terminal that shows the log


class NoFollowHandler(logging.handlers.RotatingFileHandler):
    """A rotating log file that is never written through a link somebody planted."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            maxBytes=MAX_LOG_BYTES,
            backupCount=LOG_BACKUPS,
            encoding="utf-8",
            errors="replace",
            delay=True,
        )

    def _open(self) -> TextIOWrapper:
        # O_NONBLOCK: a pipe planted here must not hold up the thread that serves all workers.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        return open(
            self.baseFilename,
            "a",
            encoding="utf-8",
            errors="replace",
            opener=lambda path, _: os.open(path, flags, 0o600),
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not take the gateway down; the line is lost."""


@dataclass
class _Source:
    """One pipe of one incarnation."""

    output: NoFollowHandler
    prefix: str
    rest: bytes = b""
    budget: float = BUDGET_BYTES_PER_SECOND
    refilled: float = 0.0
    dropped: int = 0


class LogPump:
    """Reads pipes in one thread; `attach` gives the write ends for a new incarnation."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._lock = threading.Lock()
        self._new: list[tuple[int, _Source]] = []
        self._outputs: dict[Path, NoFollowHandler] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="worker-logs", daemon=True)

    def start(self) -> None:
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left in the pipes, close all, end the thread. May block for about half a second."""
        if self._stopping:
            return
        self._stopping = True
        if self._thread.ident is None:
            self._close()
        else:
            with contextlib.suppress(BrokenPipeError):  # it has seen the end by itself
                os.write(self._wake_write, b"x")
            self._thread.join()
        os.close(self._wake_write)

    def attach(self, path: Path, incarnation: int) -> tuple[int, int]:
        """Return the write ends of new stdout and stderr pipes; the caller closes them after the spawn."""
        ends = []
        with self._lock:
            output = self._outputs.setdefault(path, NoFollowHandler(path))
            for stream in ("out", "err"):
                read_end, write_end = os.pipe()
                os.set_blocking(read_end, False)
                self._new.append((read_end, _Source(output, f"#{incarnation} {stream} ")))
                ends.append(write_end)
        os.write(self._wake_write, b"x")
        return ends[0], ends[1]

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake_read, 4096)
                    self._adopt()
                elif self._reads(key):
                    self._read(key.fd, key.data)
        self._close()

    def _reads(self, key: selectors.SelectorKey) -> bool:
        """False for a pipe that was closed meanwhile, even if its number is another's now."""
        now = self._selector.get_map().get(key.fd)
        return now is not None and now.data is key.data

    def _close(self) -> None:
        """Read what the pipes still hold, up to a bound, for who writes may live on; then close everything."""
        self._adopt()
        end = self._clock.monotonic() + _LAST_SECONDS
        for key in list(self._selector.get_map().values()):
            reads = 0
            while key.data is not None and reads < _LAST_READS and self._read(key.fd, key.data):
                reads += 1
                if self._clock.monotonic() > end:
                    break
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._end(key.fd, key.data)
        self._selector.close()
        os.close(self._wake_read)
        for output in self._outputs.values():
            output.close()

    def _adopt(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        for descriptor, source in new:
            self._retire(source)
            self._selector.register(descriptor, selectors.EVENT_READ, source)

    def _retire(self, successor: _Source) -> None:
        """An incarnation begins when all processes of the last one are gone; whoever still holds its pipes got them by stealth."""
        begins = successor.prefix.partition(" ")[0] + " "
        for key in list(self._selector.get_map().values()):
            source = key.data
            if (
                source is not None
                and source.output is successor.output
                and not source.prefix.startswith(begins)
            ):
                for _ in range(_LAST_READS):
                    if not self._read(key.fd, source):
                        break
                if self._reads(key):
                    self._end(key.fd, source)

    def _read(self, descriptor: int, source: _Source) -> bool:
        """Read once; True if there may be more."""
        try:
            data = os.read(descriptor, 64 << 10)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._take(source, data)
        else:
            self._end(descriptor, source)
        return bool(data)

    def _end(self, descriptor: int, source: _Source) -> None:
        if source.rest:
            self._take(source, b"\n")
        self._say_dropped(source)
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def _take(self, source: _Source, data: bytes) -> None:
        now = self._clock.monotonic()
        refill = (now - source.refilled) * BUDGET_BYTES_PER_SECOND
        source.budget = min(source.budget + refill, BUDGET_BYTES_PER_SECOND)
        source.refilled = now
        cost = len(data) + LINE_COST * data.count(b"\n")
        if source.budget < cost:
            source.dropped += len(data)
            return
        source.budget -= cost
        self._say_dropped(source)
        *lines, rest = (source.rest + data).split(b"\n")
        if len(rest) >= MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        source.rest = rest
        pieces = [
            line[start : start + MAX_LINE_BYTES].decode("utf-8", "backslashreplace")
            for line in lines
            for start in range(0, len(line) or 1, MAX_LINE_BYTES)
        ]
        self._write(source, pieces)

    def _say_dropped(self, source: _Source) -> None:
        if source.dropped:
            dropped, source.dropped = source.dropped, 0
            text = f"... {dropped} bytes were dropped here: more than {BUDGET_BYTES_PER_SECOND} a second"
            self._write(source, [text])

    def _write(self, source: _Source, lines: list[str]) -> None:
        """Write what one read gave at once: a record a line would cost more than all the rest."""
        if not lines:
            return
        stamp = datetime.fromtimestamp(self._clock.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        prefix = f"{stamp} {source.prefix}"
        text = "\n".join([prefix + _CONTROL.sub(_escaped, line.rstrip()) for line in lines])
        source.output.handle(
            logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO"})
        )


def _escaped(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"
