"""One life of a worker: its process, its channel, and all that is known of them until they end.

Everything here is thrown away together when the incarnation ends, so nothing of a dead process can be taken for the next
one's. When lives begin and end is decided in `lifecycle.py` and carried out by `supervisor.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moltbot import __version__
from moltbot.core.clock import Clock
from moltbot.core.framing import Frame
from moltbot.core.jsonable import jsonable
from moltbot.core.units import format_duration, format_size
from moltbot.sandbox.cgroup import WorkerCgroup
from moltbot.sandbox.channel import Channel
from moltbot.sandbox.config import WALL_SETTINGS, PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.isolation import Isolation
from moltbot.sandbox.isolation.witness import shortcomings
from moltbot.sandbox.launch import absolute_handler, hello_config, launch_spec
from moltbot.sandbox.logs import LogPump
from moltbot.sandbox.memory import Usage
from moltbot.sandbox.process import WorkerProcess, worker_sockets

log = logging.getLogger("moltbot.worker")

CGROUP_ROOM = 64 << 20  # for what runs the worker and for files in memory: sampling comes first
CGROUP_TASKS = 8
MAX_HASTY_BEATS = 50  # a stopped worker that goes on sends what it owed at once
MAX_LAG_MS = 1e9


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a slot's last incarnation ended."""

    incarnation: int
    reason: str
    detail: str | None
    at: float


class Incarnation:
    """A process from its spawn to its end; `channel` is None before the spawn and after the end."""

    def __init__(
        self,
        number: int,
        directories: WorkerDirectories,
        config: PoolConfig,
        isolation: Isolation,
        clock: Clock,
    ) -> None:
        self.number = number
        self.started_at = clock.time()
        self.served = 0
        self.process: WorkerProcess | None = None
        self.channel: Channel | None = None
        self.loaded: dict[str, int] = {}
        """Users in the process's memory, with the epoch under which they arrived."""
        self.leaving: Counter[str] = Counter()
        self.arriving: Counter[str] = Counter()
        self._hasty_beats = 0
        self.usage = Usage(0, 0.0, 0)
        self.cpu_percent = 0.0
        self.lag = 0.0
        self.last_beat = clock.monotonic()
        self.last_beat_at: float | None = None
        self._directories = directories
        self._config = config
        self._isolation = isolation
        self._clock = clock

    async def launch(
        self,
        logs: LogPump,
        first_id: int,
        on_notice: Callable[[str, Frame], None],
        on_lost: Callable[[str | None], None],
    ) -> WorkerProcess:
        """Prepare the directories, start the process, greet it; raises OSError or BaseDirectoryError."""
        directories, config = self._directories, self._config
        owner = self._isolation.wall.owner(directories.worker_id)
        directories.create(owner)
        await directories.hand_over(owner)
        directories.open_temp(self.number, owner)
        directories.write_metadata(self._metadata(owner))
        spec = self._isolation.wall.wrap(
            launch_spec(directories, self.number, config, os.environ, os.getpid())
        )
        cgroup = self._make_cgroup()
        with contextlib.ExitStack() as given_away:
            ours, theirs = worker_sockets()
            given_away.enter_context(theirs)
            on_failure = given_away.enter_context(contextlib.ExitStack())
            on_failure.enter_context(ours)
            if cgroup is not None:
                on_failure.callback(cgroup.remove)
            stdout, stderr = logs.attach(directories.log_file, self.number)
            given_away.callback(os.close, stdout)
            given_away.callback(os.close, stderr)
            if owner != os.geteuid():  # a pipe has an owner too, who may open it by name (/dev/stdout)
                os.fchown(stdout, owner, -1)
                os.fchown(stderr, owner, -1)
            process = self.process = await WorkerProcess.spawn(spec, theirs, stdout, stderr, cgroup)
            on_failure.pop_all()
        channel = self.channel = Channel(ours, directories.worker_id, first_id, on_notice, on_lost)
        hello = hello_config(spec.places, config)
        channel.send(lambda session: session.hello(directories.worker_id, self.number, hello))
        return process

    def _wall_settings(self) -> dict[str, Any]:
        """For who looks at the wall later, from elsewhere and with other settings."""
        settings = {name: getattr(self._config, name) for name in WALL_SETTINGS}
        if self._config.handler is not None:
            settings["handler"] = absolute_handler(self._config.handler)
        found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return found

    def _make_cgroup(self) -> WorkerCgroup | None:
        delegation = self._isolation.delegation
        if delegation is None:
            return None
        try:
            return WorkerCgroup.make(
                delegation,
                self._directories.worker_id,
                max_memory=self._config.max_memory + CGROUP_ROOM,
                max_processes=self._config.max_processes + CGROUP_TASKS,
            )
        except OSError as error:  # an additional bound only: samples and rlimits hold without it
            log.warning(
                "%s: no cgroup can be made: %s",
                self._directories.worker_id,
                error,
                extra={"worker": self._directories.worker_id, "incarnation": self.number},
            )
            return None

    def _metadata(self, owner: int) -> dict[str, Any]:
        config = self._config
        return {
            "created": datetime.fromtimestamp(self.started_at, UTC).isoformat(timespec="seconds"),
            "incarnation": self.number,
            "isolation": self._isolation.wall.level,
            "protections": jsonable(self._isolation.protections),
            "owner": owner,
            "settings": self._wall_settings(),
            "program": str(self._isolation.wall.program) if self._isolation.wall.program else None,
            "limits": {
                "maxConcurrent": config.max_concurrent,
                "requestTimeout": format_duration(config.request_timeout),
                "maxMemory": format_size(config.max_memory),
                "maxRequests": config.max_requests,
                "maxOpenFiles": config.max_open_files,
                "maxProcesses": config.max_processes,
                "maxDisk": format_size(config.max_disk),
                "maxInodes": config.max_inodes,
            },
            "versions": {"moltbot": __version__},
        }

    def identify(self) -> list[str]:
        """Find the worker's process; returns what its wall lacks, in words."""
        assert self.process is not None
        self.process.identify()
        pid = self.process.worker_pid
        if pid is None:
            return ["its process is not found from outside"]
        return shortcomings(pid, self._isolation.wall.evidence(self._directories.worker_id))

    @property
    def pid(self) -> int | None:
        """The worker's process as this machine numbers it; None while there is none."""
        return self.process.worker_pid if self.process is not None and self.running else None

    @property
    def root_pid(self) -> int | None:
        """The root of the process tree."""
        return self.process.root_pid if self.process is not None and self.running else None

    @property
    def filesystems(self) -> tuple[str, ...]:
        """Paths of the filesystems that the worker has in memory, seen through its process."""
        pid, places = self.pid, self._isolation.wall.filesystems()
        return tuple(f"/proc/{pid}/root{place}" for place in places) if pid is not None else ()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    def load(self, user_id: str, epoch: int) -> None:
        """Let a user arrive, unless they are there under this epoch."""
        if self.loaded.get(user_id) != epoch and self.channel is not None:
            self.channel.send(lambda session: session.arrive(user_id, epoch))
            self.loaded[user_id] = epoch
            self.arriving[user_id] += 1

    def unload(self, user_id: str) -> None:
        """Ask the process to drop a user from memory."""
        if self.loaded.pop(user_id, None) is not None and self.channel is not None:
            self.leaving[user_id] += 1
            self.channel.send(lambda session: session.leave(user_id))

    def arrived(self, user_id: str, *, failed: bool) -> bool:
        """The worker tells of an arrival; False if it was not asked for one."""
        if not self.arriving[user_id]:
            del self.arriving[user_id]
            return False
        self.arriving[user_id] -= 1
        if not self.arriving[user_id]:
            del self.arriving[user_id]
        if failed:
            self.loaded.pop(user_id, None)  # the next request lets the user arrive again
        return True

    def left(self, user_id: str) -> bool:
        """The worker tells that a user has left; False if it was not asked for that."""
        if not self.leaving[user_id]:
            del self.leaving[user_id]
            return False
        self.leaving[user_id] -= 1
        if not self.leaving[user_id]:
            del self.leaving[user_id]
        return True

    def beat(self, lag_ms: float, interval: float) -> bool:
        """A heartbeat came; the worker's loop is `lag_ms` behind. False if they come far too fast (`interval`: seconds)."""
        now = self._clock.monotonic()
        self._hasty_beats = self._hasty_beats + 1 if now - self.last_beat < interval / 10 else 0
        self.last_beat = now
        self.last_beat_at = self._clock.time()
        self.lag = max(0.0, lag_ms / 1000) if lag_ms < MAX_LAG_MS else 0.0
        return self._hasty_beats < MAX_HASTY_BEATS

    def measured(self, usage: Usage, seconds: float) -> None:
        """A measurement was made, `seconds` after the last one."""
        used = usage.cpu_seconds - self.usage.cpu_seconds
        self.cpu_percent = round(max(0.0, used) / seconds * 100, 1) if seconds > 0 else 0.0
        self.usage = usage

    def end(self, reason: str, detail: str) -> int | None:
        """Settle every open call and close the channel; returns the id for the next channel to begin with, if there was one."""
        channel, self.channel = self.channel, None
        self.loaded.clear()
        self.leaving.clear()
        self.arriving.clear()
        if channel is None:
            return None
        channel.close(reason, detail)
        return channel.next_id
