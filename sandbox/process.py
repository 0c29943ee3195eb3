"""One worker process tree: spawn, wait, signal. Thin I/O without decisions.

The process we start is the tree's root: the guard of `worker/boot.py`, or the wall's `bwrap`. To wait for it is to wait for
all processes of the worker: the guard ends after the last of them, and behind `bwrap` we wait for the first process of the
pid namespace too, which does. How descriptors reach the child is in `descriptors.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from typing import NamedTuple

import psutil

from moltbot.sandbox.cgroup import WorkerCgroup, entering
from moltbot.sandbox.descriptors import Descriptors
from moltbot.sandbox.launch import LaunchSpec

_SO_PASSRIGHTS = 83
_STATUS_SECONDS = 10.0
_MAX_STATUS = 4096
_SIGNALLED = 128
"""`bwrap` ends with this and the number of the signal that ended its worker."""


class Exit(NamedTuple):
    """How a process tree ended: exit status or signal; `oom`: the kernel's out-of-memory killer was at work meanwhile."""

    code: int | None
    signal: int | None
    oom: bool


class Namespace(NamedTuple):
    """The first process of a pid namespace: all others end with it, and it ends after them."""

    pid: int
    descriptor: int


class WorkerProcess:
    """A running process tree; `worker_pid` is known once the worker said so and it was found to be true."""

    def __init__(
        self, process: asyncio.subprocess.Process, oom_kills: int, cgroup: WorkerCgroup | None
    ) -> None:
        self._process = process
        self._oom_kills = oom_kills
        self._cgroup = cgroup
        self._namespace: Namespace | None = None
        self.root_pid = process.pid
        self.worker_pid: int | None = None
        self._worker: int | None = None  # a descriptor of it: its number may be another's one day

    @classmethod
    async def spawn(
        cls,
        spec: LaunchSpec,
        sock: socket.socket,
        stdout: int,
        stderr: int,
        cgroup: WorkerCgroup | None = None,
    ) -> WorkerProcess:
        """Start a worker that talks on `sock`; raises OSError. The caller closes its copies of the descriptors.

        cgroup: where the worker and all that it starts live, from the first instruction on; removed at the end.

        The kernel ties the child's life to the thread that starts it, so this must run in the thread of the event loop.
        """
        oom_kills = _oom_kills()
        with Descriptors(sock) as descriptors:
            argv = descriptors.resolve(spec.argv)
            if cgroup is not None:
                argv = list(entering(cgroup.path, argv))
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=spec.environment,
                cwd="/",
                start_new_session=True,
                pass_fds=descriptors.passed,
            )
            started = cls(process, oom_kills, cgroup)
            descriptors.close_passed()
            if descriptors.status is not None:
                try:
                    started._namespace = await _namespace(descriptors.status, process.pid)
                except BaseException:
                    started.kill()
                    await started.wait()
                    raise
        return started

    def identify(self) -> None:
        """Find the worker's process: the oldest child of who started it. What the worker says of itself does not count."""
        parent = self._namespace.pid if self._namespace is not None else self.root_pid
        children = _children(parent)  # oldest first: what is adopted later comes behind
        if children and self.worker_pid is None:
            self.worker_pid = children[0]
            with contextlib.suppress(OSError, AttributeError):
                self._worker = os.pidfd_open(children[0])

    async def wait(self) -> Exit:
        """Return when the whole tree is gone."""
        status = await self._process.wait()
        if self._namespace is not None:
            await _readable(self._namespace.descriptor)
            if _SIGNALLED < status < _SIGNALLED + signal.NSIG:
                status = _SIGNALLED - status
        oom = self._oom()
        self._close()
        if status < 0:
            return Exit(None, -status, -status == signal.SIGKILL and oom)
        return Exit(status, None, oom=False)

    def _oom(self) -> bool:
        if self._cgroup is not None and self._cgroup.limits_memory:
            return self._cgroup.oom_kills() > 0
        return _oom_kills() > self._oom_kills

    def _close(self) -> None:
        for descriptor in (self._worker, self._namespace and self._namespace.descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._worker = self._namespace = None
        if self._cgroup is not None:
            self._cgroup.remove()

    @property
    def running(self) -> bool:
        return self._process.returncode is None or self._namespace is not None

    def dump_stacks(self) -> None:
        """Ask the worker for its Python stacks on stderr; it does so even while the interpreter's lock is held."""
        self._signal_worker(signal.SIGQUIT)

    def kill(self) -> None:
        """Kill the worker, and with it the rest: its guard, or the end of its namespace, sees to that."""
        if self._namespace is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._namespace.descriptor, signal.SIGKILL)
            self._signal(self.root_pid, signal.SIGKILL)
            return
        self._signal_worker(signal.SIGKILL)
        self._signal(self.root_pid, signal.SIGTERM)  # to the guard, which still has to kill the rest

    def _signal_worker(self, number: signal.Signals) -> None:
        if self._worker is None:
            self._signal(self.worker_pid, number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._worker, number)

    def kill_tree(self) -> None:
        """Kill every process of the tree, the root last: for a root that does not do it."""
        if self._cgroup is not None:
            self._cgroup.kill()
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.root_pid).children(recursive=True):
                self._signal(child.pid, signal.SIGKILL)
        self._signal(self.root_pid, signal.SIGKILL)

    def _signal(self, pid: int | None, number: signal.Signals) -> None:
        if pid is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def worker_sockets() -> tuple[socket.socket, socket.socket]:
    """A pair of connected sockets, ours first. Ours takes no descriptors: to drop one can take as long as its owner wishes."""
    ours, theirs = socket.socketpair()
    with contextlib.suppress(
        OSError
    ):  # before Linux 6.16: there the filter refuses sockets whose end would wait
        ours.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    return ours, theirs


async def _namespace(status: int, bwrap: int) -> Namespace | None:
    """Read what `bwrap` tells of its child; None if it ended before it had one."""
    text = b""
    async with asyncio.timeout(_STATUS_SECONDS):
        while not text.rstrip().endswith(b"}"):
            await _readable(status)
            data = os.read(status, _MAX_STATUS)
            if not data:
                return None
            text += data
    pid = int(json.loads(text)["child-pid"])
    with contextlib.suppress(ProcessLookupError, psutil.Error), contextlib.ExitStack() as on_failure:
        descriptor = os.pidfd_open(pid)
        on_failure.callback(os.close, descriptor)
        if psutil.Process(pid).ppid() == bwrap:  # else the number was given to somebody else meanwhile
            on_failure.pop_all()
            return Namespace(pid, descriptor)
    return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _children(pid: int) -> list[int]:
    """Direct children. Where the kernel does not list them, by a look at all processes."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        pass
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _oom_kills() -> int:
    """How often the kernel has killed for memory since it started; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
