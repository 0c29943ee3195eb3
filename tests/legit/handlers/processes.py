"""Honest programs about processes: children, pipes, threads, signals; each checks its own results."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pty
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moltbot import Context, handler

PATIENCE = 25.0


def square(number: int) -> int:
    return number * number


def run(*words: str, **options: Any) -> str:
    """A child's standard output; the child must succeed."""
    result: subprocess.CompletedProcess[str] = subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    assert result.returncode == 0, (words, result.returncode, result.stderr)
    return result.stdout


def python(program: str, *arguments: str) -> str:
    return run(sys.executable, "-c", program, *arguments)


# --- threads and children -------------------------------------------------------------------------------


@handler("asyncio_children")
async def asyncio_children(ctx: Context, payload: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.to_thread(square, 12) == 144
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        out, _ = await child.communicate(b"x" * 300_000)
        assert (child.returncode, len(out)) == (0, 300_000)
        shell = await asyncio.create_subprocess_shell("echo one; echo two >&2; exit 7", stdout=-1, stderr=-1)
        assert await shell.communicate() == (b"one\n", b"two\n")
        assert shell.returncode == 7
        children = [await asyncio.create_subprocess_exec("sh", "-c", f"exit {n}") for n in range(8)]
        assert await asyncio.gather(*(child.wait() for child in children)) == list(range(8))


@handler("pipes_between_children")
def pipes_between_children(ctx: Context, payload: Any) -> None:
    assert run("tr", "a-z", "A-Z", input="hello") == "HELLO"
    assert run("sh", "-c", "seq 100 | sort -rn | head -1").strip() == "100"
    first = subprocess.Popen(["seq", "1000"], stdout=subprocess.PIPE)
    second = subprocess.Popen(["wc", "-l"], stdin=first.stdout, stdout=subprocess.PIPE)
    assert first.stdout is not None
    first.stdout.close()
    assert int(second.communicate(timeout=PATIENCE)[0]) == 1000
    assert first.wait(PATIENCE) == 0
    assert run("sh", "-c", 'echo "$0 $PWD"', cwd=ctx.temp_dir).strip() == f"sh {ctx.temp_dir}"


@handler("children_are_ended")
def children_are_ended(ctx: Context, payload: Any) -> None:
    """By a signal, a time limit, and as a group; seen by `wait` and by a descriptor."""
    child = subprocess.Popen(["sleep", "600"])
    descriptor = os.pidfd_open(child.pid)
    child.kill()
    assert select.select([descriptor], [], [], PATIENCE)[0] == [descriptor]
    os.close(descriptor)
    assert child.wait(PATIENCE) == -signal.SIGKILL
    try:
        subprocess.run(["sleep", "600"], timeout=0.01, check=True)
        raise AssertionError("the child went on")
    except subprocess.TimeoutExpired:
        pass
    group = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    assert os.getsid(group.pid) == group.pid
    os.killpg(group.pid, signal.SIGTERM)
    assert group.wait(PATIENCE) == -signal.SIGTERM
    quiet = subprocess.Popen(
        [sys.executable, "-c", "import os; raise SystemExit(os.nice(0))"],
        preexec_fn=lambda: os.nice(5),  # noqa: PLW1509
    )
    assert quiet.wait(PATIENCE) == 5


@handler("fork_and_wait")
def fork_and_wait(ctx: Context, payload: Any) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(os.getppid()).encode())
        os._exit(9)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert int(os.read(reading, 100)) == os.getpid()
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.system("exit 3")) == 3
    assert os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "exit 4") == 4


@handler("terminal")
def terminal(ctx: Context, payload: Any) -> None:
    """A program that wants a terminal gets one."""
    ours, theirs = pty.openpty()
    assert os.isatty(theirs)
    child = subprocess.Popen(
        ["sh", "-c", "tty && echo done"], stdin=theirs, stdout=theirs, start_new_session=True
    )
    assert child.wait(PATIENCE) == 0
    assert b"/dev/pts/" in os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)


@handler("threads")
def threads(ctx: Context, payload: Any) -> None:
    results: queue.Queue[int] = queue.Queue()
    several = [threading.Thread(target=lambda n=n: results.put(square(n))) for n in range(40)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join(PATIENCE)
    assert sorted(results.get_nowait() for _ in several) == [square(n) for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(100))) == [square(n) for n in range(100)]
    event = threading.Event()
    timer = threading.Timer(0.001, event.set)
    timer.start()
    assert event.wait(PATIENCE)
    assert ctypes.CDLL(None).getpid() == os.getpid()


@handler("signals_to_itself")
async def signals_to_itself(ctx: Context, payload: Any) -> None:
    loop, seen = asyncio.get_running_loop(), asyncio.Queue[str]()
    loop.add_signal_handler(signal.SIGUSR1, seen.put_nowait, "user")
    previous = signal.signal(
        signal.SIGALRM, lambda *_: loop.call_soon_threadsafe(seen.put_nowait, "alarm") and None
    )
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await asyncio.wait_for(seen.get(), PATIENCE) == "user"
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert await asyncio.wait_for(seen.get(), PATIENCE) == "alarm"
    finally:
        signal.signal(signal.SIGALRM, previous)
        loop.remove_signal_handler(signal.SIGUSR1)
    assert python("import signal; print(signal.SIGPIPE in signal.pthread_sigmask(0, []))") == "False\n"


# --- Python in Python -----------------------------------------------------------------------------------


@handler("python_of_the_environment")
def python_of_the_environment(ctx: Context, payload: Mapping[str, Any]) -> None:
    """A child interpreter is in the same virtual environment, and so are the scripts installed there."""
    assert python("import sys; print(sys.prefix)").strip() == sys.prefix == payload["prefix"]
    assert "msgpack" in python("import msgpack, aiohttp; print(msgpack.__file__)")
    script = shutil.which("pytest")
    assert script is not None
    assert Path(script).parent == Path(sys.executable).parent
    assert "pytest" in run(script, "--version", env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})


@handler("new_virtual_environment")
def new_virtual_environment(ctx: Context, payload: Any) -> None:
    folder = ctx.temp_dir / "environment"
    python("import sys, venv; venv.create(sys.argv[1], symlinks=True)", str(folder))
    assert run(str(folder / "bin" / "python"), "-c", "import sys; print(sys.prefix)").strip() == str(folder)
