"""Runs a program of the operator inside a worker's wall, in the terminal: `moltbot sandbox shell`.

It stands beside the worker, in namespaces of its own but with the same directories, uid and limits. No gateway needs to run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.descriptors import Descriptors
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.choice import recorded_wall
from moltbot.sandbox.launch import launch_spec

_TERMINAL = ("TERM", "COLORTERM")


def run_inside(
    config: PoolConfig, base: Path, worker_id: str, command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run `command` and return its exit status; environment: ours, of which it gets what a worker and a terminal get.

    Raises BaseDirectoryError if the worker was never started, or not behind a wall that can be made again here.
    """
    directories = WorkerDirectories(base, worker_id)
    wall, config = recorded_wall(config, directories, base)
    spec = launch_spec(directories, directories.read_incarnation(), config, environment, parent=0)
    kept = {name: environment[name] for name in _TERMINAL if name in environment}
    kept["PS1"] = f"{worker_id} (sandbox) $ "
    spec = replace(spec, command=tuple(command), interactive=True, inherited={**spec.inherited, **kept})
    walled = wall.wrap(spec)
    with Descriptors() as descriptors:
        argv = descriptors.resolve(walled.argv)
        return subprocess.call(argv, env=walled.environment, cwd="/", pass_fds=descriptors.passed)
