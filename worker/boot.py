"""The first code of a worker process: place its descriptors, limit and confine it, then run it.

    python -I -S boot.py moltbot-worker worker-0 9 guarded 8      the spec (JSON) is on descriptor 9, the socket on 8

`guarded`: two processes come of it. The *guard* stays single-threaded and runs no handler code: it dies with the gateway,
adopts whatever the worker leaves behind, and ends only when no process of this worker is left; it ends the way its worker
ended, so whoever waits for it learns the worker's own exit status or signal. `walled`: a pid namespace does all that, and
this process becomes the worker itself. `interactive`: there is no worker, only the command, in a terminal.

The worker finds the socket on descriptor 3 and runs the handler loop, or executes the operator's `worker_command`. Standard
library only. The spec comes from `sandbox/launch.py`. What only the worker needs is imported in the worker: the guard
would carry it for its whole life, a page for every page.
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
EXIT_NO_PARENT, EXIT_UNCONFINED = 72, 73
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_LINUX = sys.platform == "linux"


def main() -> NoReturn:
    spec_fd, mode = int(sys.argv[3]), sys.argv[4]
    text = os.pread(spec_fd, os.fstat(spec_fd).st_size, 0)
    if mode == "interactive":
        os.closerange(3, max(spec_fd, 63) + 1)
    else:
        _take_socket(int(sys.argv[5]), spec_fd)
    parent = _become_guarded() if mode == "guarded" else None
    spec = _parse(text)
    if spec["parent"] != parent:  # gone before the kernel was asked to tell; the guard ends like us
        os._exit(EXIT_NO_PARENT)
    sys.path[:] = [*sys.path, *spec["paths"]]
    if spec["count_tasks"]:
        spec["limits"]["RLIMIT_NPROC"] += _tasks_of_this_user()
    _limit(spec["limits"])
    if spec["confinement"] is not None:
        _confine(spec["confinement"])
    os.chdir(spec["directory"])  # only now: before, it may belong to another uid than ours
    os.environ.pop("PWD", None)  # where `bwrap` was
    if mode == "interactive" and os.isatty(0):
        _execute_in_terminal(spec["command"])
    if spec["command"]:
        _execute(spec["command"])
    _work(spec)


def _take_socket(sock: int, spec: int) -> None:
    """The socket goes to descriptor 3, as every worker finds it; nothing else stays open but the standard ones."""
    if sock == SOCKET_FD:
        os.set_inheritable(SOCKET_FD, True)
    else:
        os.dup2(sock, SOCKET_FD, inheritable=True)
    os.closerange(SOCKET_FD + 1, max(sock, spec, 63) + 1)


def _become_guarded() -> int:
    """Split in two: this returns in the worker, and the guard never returns. Returns the pid of the process that started us."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signals = {signal.SIGCHLD, signal.SIGTERM}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent, guard = os.getppid(), os.getpid()
    child = os.fork()
    if child:
        os.closerange(0, SOCKET_FD + 1)
        _guard(child, signals)
    _die_with(guard, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return parent


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _die_with(parent: int, how: signal.Signals) -> None:
    """Ask the kernel for `how` when `parent` dies; end now if it is gone already."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(EXIT_NO_PARENT)


def _parse(text: bytes) -> dict[str, Any]:
    import json

    spec: dict[str, Any] = json.loads(text)
    return spec


def _tasks_of_this_user() -> int:
    """Processes and threads there are already: without a namespace, the limit counts them too."""
    uid, count = os.getuid(), 0
    for name in os.listdir("/proc") if _LINUX else ():
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended meanwhile
            pass
    return count


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _confine(plan: dict[str, Any]) -> None:
    from moltbot.worker.confine import confine

    try:
        confine(plan)
    except OSError as error:
        print(f"the wall cannot be put up from inside: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_UNCONFINED)


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
        for pid in _descendants():  # all at once: a child that is spared meanwhile may have more children
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


def _descendants() -> list[int]:
    """All below us; orphans of the worker have become our children. Elsewhere than on Linux there is no adoption."""
    found = [os.getpid()]
    for pid in found:
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                found += [int(child) for child in file.read().split()]
        except OSError:
            pass
    return found[1:]


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


def _execute_in_terminal(command: list[str]) -> NoReturn:
    """In a terminal of its own, for the operator's belongs to a session outside of the wall; and so nothing is typed into that."""
    import pty

    try:
        status = pty.spawn(command)
    except OSError:  # no terminals in this wall
        _execute(command)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _work(spec: dict[str, Any]) -> NoReturn:
    import faulthandler

    faulthandler.enable()
    faulthandler.register(
        signal.SIGQUIT
    )  # the supervisor asks for the stacks of a stuck worker before it kills it
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
