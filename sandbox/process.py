"""One worker process tree: spawn, wait, signal. Thin I/O without decisions.

The process we start is the guard of `worker/boot.py`; the worker is its child, and whatever the worker starts ends before
the guard does. So waiting for the guard is waiting for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import NamedTuple

import psutil

from moltbot.sandbox.launch import LaunchSpec


class Exit(NamedTuple):
    """How a process tree ended: exit status or signal; `oom`: the kernel's out-of-memory killer was at work meanwhile."""

    code: int | None
    signal: int | None
    oom: bool


class WorkerProcess:
    """A running guard with its worker."""

    def __init__(self, process: asyncio.subprocess.Process, oom_kills: int) -> None:
        self._process = process
        self._oom_kills = oom_kills
        self.guard_pid = process.pid
        self.worker_pid: int | None = None

    @classmethod
    async def spawn(cls, spec: LaunchSpec, sock: socket.socket, stdout: int, stderr: int) -> WorkerProcess:
        """Start a worker whose standard input is `sock`; raises OSError. The caller closes its copies of the descriptors.

        The kernel ties the child's life to the thread that starts it, so this must run in the thread of the event loop.
        """
        oom_kills = _oom_kills()
        process = await asyncio.create_subprocess_exec(
            *spec.argv,
            stdin=sock.fileno(),
            stdout=stdout,
            stderr=stderr,
            env=dict(spec.environment),
            cwd=spec.working_directory,
            start_new_session=True,
        )
        return cls(process, oom_kills)

    def identify(self, claimed: int) -> None:
        """Remember which process is the worker; `claimed` comes from itself and counts only if the guard is its parent."""
        with contextlib.suppress(psutil.Error, ValueError, OverflowError, OSError):
            if psutil.Process(claimed).ppid() == self.guard_pid:
                self.worker_pid = claimed
                return
        with contextlib.suppress(psutil.Error, OSError):
            self.worker_pid = next((child.pid for child in psutil.Process(self.guard_pid).children()), None)

    async def wait(self) -> Exit:
        """Return when the guard, and so the whole tree, is gone."""
        status = await self._process.wait()
        if status < 0:
            return Exit(None, -status, -status == signal.SIGKILL and _oom_kills() > self._oom_kills)
        return Exit(status, None, oom=False)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def dump_stacks(self) -> None:
        """Ask the worker for its Python stacks on stderr; it does so even while the interpreter's lock is held."""
        self._signal(self.worker_pid, signal.SIGQUIT)

    def kill(self) -> None:
        """Kill the worker; the guard kills the rest."""
        self._signal(self.worker_pid, signal.SIGKILL)
        self._signal(self.guard_pid, signal.SIGTERM)

    def kill_tree(self) -> None:
        """Kill every process of the tree, the guard last: for a guard that does not do it."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.guard_pid).children(recursive=True):
                self._signal(child.pid, signal.SIGKILL)
        self._signal(self.guard_pid, signal.SIGKILL)

    def _signal(self, pid: int | None, number: signal.Signals) -> None:
        if pid is not None and self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _oom_kills() -> int:
    """How often the kernel has killed for memory since it started; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
