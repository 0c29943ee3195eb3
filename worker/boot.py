"""The first code of a worker process: confine it, then become the guard and its worker.

    python -I -S boot.py moltbot-worker worker-0 '{"parent": 123, ...}'      socket on descriptor 0

Two processes come of it. The *guard* stays single-threaded and runs no handler code: it dies with the gateway, adopts
whatever the worker leaves behind, and ends only when no process of this worker is left. Its *worker* child finds the
socket on descriptor 3 and runs the handler loop, or executes the operator's `worker_command`. The guard ends the way its
worker ended, so whoever waits for it learns the worker's own exit status or signal.

Standard library only. The spec comes from `sandbox/launch.py`; it holds no secrets, for everybody can read an argv. What only
the worker needs is imported in the worker: the guard would carry it for its whole life, a page for every page.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # without importing typing
    from typing import Any, NoReturn

SOCKET_FD = 3
EXIT_NO_PARENT = 72
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_LINUX = sys.platform == "linux"


def main() -> NoReturn:
    _place_descriptors()
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signals = {signal.SIGCHLD, signal.SIGTERM}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent, guard = os.getppid(), os.getpid()
    child = os.fork()
    if child:
        os.closerange(0, 4)
        _guard(child, signals)
    spec = _read_spec()
    if spec["parent"] != parent:  # gone before the kernel was asked to tell; the guard ends like us
        os._exit(EXIT_NO_PARENT)
    _die_with(guard, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    _limit(spec["limits"])
    if spec["command"]:
        _execute(spec["command"])
    _work(spec)


def _place_descriptors() -> None:
    """The socket goes from standard input to descriptor 3, as every worker finds it; nothing above is inherited."""
    os.dup2(0, SOCKET_FD, inheritable=True)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0, inheritable=True)
    os.closerange(SOCKET_FD + 1, max(null + 1, 64))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _die_with(parent: int, how: signal.Signals) -> None:
    """Ask the kernel for `how` when `parent` dies; end now if it is gone already."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(EXIT_NO_PARENT)


def _read_spec() -> dict[str, Any]:
    import json

    spec: dict[str, Any] = json.loads(sys.argv[3])
    return spec


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


# --- the guard ---------------------------------------------------------------------------------------


def _guard(worker: int, signals: set[signal.Signals]) -> NoReturn:
    """Wait for the worker's end or the gateway's, then leave no descendant behind."""
    status: int | None = None
    while status is None:
        if signal.sigwait(signals) == signal.SIGTERM:
            os.kill(worker, signal.SIGKILL)
            break
        status = _reap(worker)
    while True:
        for pid in _children():
            _kill(pid)
        try:
            pid, ended = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == worker:
            status = ended
    _end_like(status)


def _reap(worker: int) -> int | None:
    """Collect what has ended; returns the worker's status if it was among it."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == worker:
            found = status


def _children() -> list[int]:
    """Our direct children; orphans of the worker have become some. Elsewhere than on Linux there is no adoption."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end_like(status: int | None) -> NoReturn:
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF if status is not None else 0)


# --- the worker --------------------------------------------------------------------------------------


def _execute(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run the worker command {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def _work(spec: dict[str, Any]) -> NoReturn:
    import faulthandler

    faulthandler.enable()
    faulthandler.register(
        signal.SIGQUIT
    )  # the supervisor asks for the stacks of a stuck worker before it kills it
    sys.path[:] = [*sys.path, *spec["paths"]]
    if spec["site"]:
        import site  # -S skipped it; the handler's environment may need its .pth files

        site.main()

    import asyncio
    import socket

    from moltbot.worker.loop import EXIT_ORPHANED, Worker, set_up_logging

    set_up_logging()

    async def serve() -> NoReturn:
        sock = socket.socket(fileno=SOCKET_FD)
        status = await Worker(sock, on_orphaned=lambda: os._exit(EXIT_ORPHANED)).serve()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            status
        )  # here, for closing the loop would wait for the handlers' threads; they end with the process

    os.set_inheritable(SOCKET_FD, False)
    asyncio.run(serve())
    raise AssertionError("unreachable")


if __name__ == "__main__":
    main()
