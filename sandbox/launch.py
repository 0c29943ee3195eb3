"""How a worker process is started: its argv, its whole environment, its limits. Pure.

What the child makes of the spec is in `worker/boot.py`; the process itself in `process.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack

import moltbot
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories

_BOOT = Path(moltbot.__file__).parent / "worker" / "boot.py"
_LOCALE = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Exactly what a worker process gets; nothing else of ours reaches it."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: Path


def launch_spec(
    directories: WorkerDirectories,
    incarnation: int,
    config: PoolConfig,
    inherited: Mapping[str, str],
    parent: int,
) -> LaunchSpec:
    """Compute the spec of one incarnation; `inherited` is where the operator's named variables come from."""
    boot = {
        "parent": parent,
        "limits": {
            "RLIMIT_CORE": 0,
            "RLIMIT_NOFILE": config.max_open_files,
            # A coarse stop between two memory samples; shared libraries and thread stacks need the room above.
            "RLIMIT_DATA": 4 * config.max_memory + (1 << 30),
        },
        "command": list(config.worker_command) if config.worker_command else None,
        "paths": [str(Path(moltbot.__file__).parents[1]), str(Path(msgpack.__file__).parents[1])],
        "site": config.handler is not None,
    }
    # argv[0] stays the interpreter's path: Python finds its virtual environment by it.
    argv = (
        sys.executable,
        "-I",
        "-S",
        "-u",
        str(_BOOT),
        "moltbot-worker",
        directories.worker_id,
        json.dumps(boot),
    )
    return LaunchSpec(
        argv, _environment(directories, incarnation, config, inherited), directories.temp(incarnation)
    )


def _environment(
    directories: WorkerDirectories, incarnation: int, config: PoolConfig, inherited: Mapping[str, str]
) -> dict[str, str]:
    named = {name: inherited[name] for name in config.environment if name in inherited}
    locale = {name: inherited[name] for name in _LOCALE if name in inherited}
    return {
        "LANG": "C.UTF-8",
        **locale,
        **named,
        "MOLTBOT_WORKER_ID": directories.worker_id,
        "MOLTBOT_INCARNATION": str(incarnation),
        "HOME": str(directories.home(incarnation)),
        "TMPDIR": str(directories.temp(incarnation)),
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    }


def hello_config(directories: WorkerDirectories, incarnation: int, config: PoolConfig) -> dict[str, object]:
    """The `config` of the `hello` frame: what the worker's loop needs to know."""
    root = directories.root
    return {
        "handler": config.handler if config.handler is None else absolute_handler(config.handler),
        "directories": {
            "sessions": str(root / "sessions"),
            "state": str(root / "state"),
            "cache": str(root / "cache"),
            "temp": str(directories.temp(incarnation)),
        },
        "durable_state": config.durable_state,
        "max_concurrent": config.max_concurrent,
        "heartbeat_interval_ms": config.heartbeat_interval,
    }


def absolute_handler(source: str) -> str:
    """A handler file's absolute path (the worker runs elsewhere); `module:name` as it is."""
    return (
        str(Path(source).expanduser().absolute()) if source.endswith(".py") or ":" not in source else source
    )
