"""How a worker process is started: its argv, its whole environment, its limits. Pure.

This is the worker without a wall; `isolation/` wraps a spec into one of the same kind. What the child makes of it is in
`worker/boot.py`; the process itself in `process.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

import moltbot
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories

PACKAGE = Path(moltbot.__file__).parent
_LOCALE = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")


@dataclass(frozen=True, slots=True)
class Attached:
    """A word of an argv that stands for the number of a descriptor with this content; words are joined by NUL bytes."""

    content: bytes | tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class StatusPipe:
    """A word that stands for the number of a pipe's end, into which `bwrap` writes the pid of what it started."""


@dataclass(frozen=True, slots=True)
class WorkerSocket:
    """A word that stands for the number of the worker's end of its socket."""


STATUS_PIPE = StatusPipe()
Word = str | Attached | StatusPipe | WorkerSocket


@dataclass(frozen=True, slots=True)
class Places:
    """Paths as the worker sees them. code: the folder from which it imports `moltbot`."""

    sessions: Path
    state: Path
    cache: Path
    temp: Path
    home: Path
    code: Path


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Exactly what a worker process gets; nothing else of ours reaches it.

    prefix: the program that runs the worker, such as `bwrap`, with its arguments. guarded: the worker gets a guard process that
    outlives it (`worker/boot.py`); else a pid namespace ends whatever the worker leaves. interactive: there is no socket, and the terminal stays
    connected. confinement: for `worker/confine.py`.
    """

    directories: WorkerDirectories
    incarnation: int
    places: Places
    limits: Mapping[str, int]
    parent: int
    command: tuple[str, ...] | None
    site: bool
    inherited: Mapping[str, str]
    prefix: tuple[Word, ...] = ()
    guarded: bool = True
    interactive: bool = False
    confinement: Mapping[str, Any] | None = None

    @property
    def argv(self) -> tuple[Word, ...]:
        """The command line. argv[0] of Python stays the interpreter's path: it finds its virtual environment by it."""
        boot = {
            "parent": self.parent if self.guarded and not self.interactive else None,
            "limits": dict(self.limits),
            "command": self.command,
            "paths": [str(self.places.code), str(Path(msgpack.__file__).parents[1])],
            "site": self.site,
            "directory": str(self.places.temp),
            "confinement": self.confinement,
            "count_tasks": self.guarded and "RLIMIT_NPROC" in self.limits,
        }
        return (
            *self.prefix,
            sys.executable,
            *("-I", "-S", "-u"),
            str(self.places.code / "moltbot" / "worker" / "boot.py"),
            "moltbot-worker",
            self.directories.worker_id,
            Attached(json.dumps(boot).encode()),
            *(
                ("interactive",)
                if self.interactive
                else ("guarded" if self.guarded else "walled", WorkerSocket())
            ),
        )

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of the worker."""
        return {
            "LANG": "C.UTF-8",
            **self.inherited,
            "MOLTBOT_WORKER_ID": self.directories.worker_id,
            "MOLTBOT_INCARNATION": str(self.incarnation),
            "HOME": str(self.places.home),
            "TMPDIR": str(self.places.temp),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        }


def launch_spec(
    directories: WorkerDirectories,
    incarnation: int,
    config: PoolConfig,
    inherited: Mapping[str, str],
    parent: int,
) -> LaunchSpec:
    """Compute the spec of one incarnation; `inherited` is where the operator's named variables come from."""
    root = directories.root
    return LaunchSpec(
        directories=directories,
        incarnation=incarnation,
        places=Places(
            sessions=root / "sessions",
            state=root / "state",
            cache=root / "cache",
            temp=directories.temp(incarnation),
            home=directories.home(incarnation),
            code=PACKAGE.parent,
        ),
        limits={
            "RLIMIT_CORE": 1,  # too small for a file; and, unlike 0, the kernel starts no helper for it either
            "RLIMIT_NOFILE": config.max_open_files,
            "RLIMIT_FSIZE": config.max_disk,
            # Counted for the whole user where no wall counts for one worker: a bound for all workers together.
            **({} if os.geteuid() == 0 else {"RLIMIT_NPROC": config.worker_count * config.max_processes}),
            # A coarse stop between two memory samples; shared libraries and thread stacks need the room above.
            "RLIMIT_DATA": 4 * config.max_memory + (1 << 30),
        },
        parent=parent,
        command=config.worker_command,
        site=config.handler is not None,
        inherited={name: inherited[name] for name in (*_LOCALE, *config.environment) if name in inherited},
    )


def hello_config(places: Places, config: PoolConfig) -> dict[str, object]:
    """The `config` of the `hello` frame: what the worker's loop needs to know."""
    return {
        "handler": config.handler if config.handler is None else absolute_handler(config.handler),
        "directories": {
            "sessions": str(places.sessions),
            "state": str(places.state),
            "cache": str(places.cache),
            "temp": str(places.temp),
        },
        "durable_state": config.durable_state,
        "max_concurrent": config.max_concurrent,
        "heartbeat_interval_ms": config.heartbeat_interval,
    }


def absolute_handler(source: str) -> str:
    """A handler file's absolute path (the worker runs elsewhere); `module:name` as it is."""
    return str(Path(source).expanduser().absolute()) if is_handler_file(source) else source


def is_handler_file(source: str) -> bool:
    """True for `path/to/file.py`, False for `module:name`."""
    return source.endswith(".py") or ":" not in source
