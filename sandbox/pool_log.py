"""What the pool itself has to say: `logs/worker-pool.log`, from a level that may change at any time.

The logger `moltbot` belongs to the whole process, in which several pools may run, and a program around them that has
handlers of its own: each pool's level is its handler's, and the logger's is the least of all, until the last pool gives
back what it found. How a line looks is in `log_lines.py`; what workers print is in `logs.py`.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.log_lines import LogFormat, line_formatter
from moltbot.sandbox.logs import NoFollowHandler

_logger = logging.getLogger("moltbot")
_lock = threading.Lock()
_open: list[PoolLog] = []
_found = logging.NOTSET  # the logger's level before the first of them


def pool_log_handler(
    directory: Path, *, log_format: LogFormat = "text", log_user_ids: bool = False
) -> NoFollowHandler:
    """The handler for the pool's own log, `logs/worker-pool.log`."""
    directory.mkdir(mode=0o700, exist_ok=True)
    handler = NoFollowHandler(directory / "worker-pool.log")
    handler.setFormatter(line_formatter(log_format, log_user_ids=log_user_ids))
    return handler


class PoolLog:
    """One pool's log; takes records from `open` to `close`."""

    def __init__(self, base: Path, config: PoolConfig) -> None:
        self.level: str = config.log_level
        self._handler = pool_log_handler(
            base / "logs", log_format=config.log_format, log_user_ids=config.log_user_ids
        )
        self._handler.setLevel(_number(self.level))

    def open(self) -> None:
        global _found
        with _lock:
            if not _open:
                _found = _logger.level
            _open.append(self)
            _logger.addHandler(self._handler)
            _apply()

    def close(self) -> None:
        """Take no more records; harmless if it takes none."""
        with _lock:
            if self in _open:
                _open.remove(self)
                _logger.removeHandler(self._handler)
                _apply()
        self._handler.close()

    def set_level(self, level: str) -> None:
        """Take records from `level` (debug, info, warning, error) from now on."""
        with _lock:
            self._handler.setLevel(_number(level))
            self.level = level
            _apply()


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _apply() -> None:
    """Let the logger pass what any pool takes, and no less than the program around them asked for."""
    levels = [_number(log.level) for log in _open]
    if levels and _found != logging.NOTSET:
        levels.append(_found)
    _logger.setLevel(min(levels, default=_found))
