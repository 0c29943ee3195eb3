"""A Python prompt per user: variables live in the worker's process, files in the user's own directory.

    moltbot gateway --handler examples/python_repl.py
    moltbot send ada "x = 6 * 7"
    moltbot send ada "print('hi'); x"

The answer is `{"stdout", "value", "error", "notice"}`: what was printed, the `repr` of the last expression, a traceback, and
a word when the variables of earlier requests are gone. A crash or a restart costs the variables, never the files: code finds
the user's directory in `files`, and the last value in `_`. A request that runs too long, or whose caller goes away, is
interrupted like by Ctrl+C; code that cannot be interrupted costs its worker, which then comes back.

Users on one worker share a process: their names are kept apart here, but nothing stops code that goes looking for others.
"""

from __future__ import annotations

import ast
import asyncio
import ctypes
import io
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from moltbot import Context, InvalidRequest, User, handler, on_leave, on_start

MAX_OUTPUT = 64 << 10
SOURCE = "<your code>"
GONE = "Your earlier variables are gone (the process ended, or you were away for long). Your files are still there."


class Interrupted(BaseException):
    """Raised inside the user's code when its caller gave up."""


class Output(io.TextIOBase):
    """What one request prints, up to a limit."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = MAX_OUTPUT

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._room > 0:
            self._parts.append(text[: self._room])
            self._room -= len(text)
        return len(text)

    def text(self) -> str:
        return shorten("".join(self._parts), cut=self._room < 0)


def shorten(text: str, *, cut: bool = False) -> str:
    """At most MAX_OUTPUT characters, and a word about it if something is missing."""
    if cut or len(text) > MAX_OUTPUT:
        return f"{text[:MAX_OUTPUT]}\n... cut here, at {MAX_OUTPUT} characters"
    return text


class OutputByThread(io.TextIOBase):
    """Takes the place of `sys.stdout`: what a session's thread prints goes to its request, the rest to the worker's log."""

    def __init__(self, rest: TextIO) -> None:
        self._rest = rest
        self._local = threading.local()

    def send_here_to(self, output: Output | None) -> None:
        self._local.output = output

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        output: Output | None = getattr(self._local, "output", None)
        return (output or self._rest).write(text)

    def flush(self) -> None:
        self._rest.flush()


stdout = OutputByThread(sys.stdout)


class Session:
    """One user's variables, and the one thread that runs their code."""

    def __init__(self, files: Path) -> None:
        files.mkdir(exist_ok=True)
        self._names: dict[str, Any] = {"__name__": "__main__", "files": files}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="repl")
        self._lock = threading.Lock()
        self._running: int | None = None

    async def run(self, code: str) -> dict[str, Any]:
        """Run code in the user's thread; a cancelled request interrupts it and waits until it has really ended."""
        job = self._thread.submit(self._run, code)
        done = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not job.cancel():
                self._interrupt()
                await asyncio.wait([done])
            raise

    def _interrupt(self) -> None:
        with self._lock:
            if self._running is not None:
                _raise_in_thread(self._running, Interrupted)

    def _run(self, code: str) -> dict[str, Any]:
        output = Output()
        stdout.send_here_to(output)
        with self._lock:
            self._running = threading.get_ident()
        value, error = None, None
        try:
            value = self._evaluate(code)
        except BaseException as problem:  # also SystemExit and Interrupted: none may end the worker
            error = describe(problem)
        finally:
            with self._lock:
                _raise_in_thread(threading.get_ident(), None)  # an interrupt that came too late
                self._running = None
            stdout.send_here_to(None)
        return {"stdout": output.text(), "value": value, "error": error, "notice": None}

    def _evaluate(self, code: str) -> str | None:
        """Run all of it; the last line, if it is an expression, gives the value."""
        tree = ast.parse(code, SOURCE)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, SOURCE, "exec"), self._names)  # noqa: S102 - running what the user wrote is the point
        if not isinstance(last, ast.Expr):
            return None
        value = eval(compile(ast.Expression(last.value), SOURCE, "eval"), self._names)
        if value is None:
            return None
        self._names["_"] = value
        return shorten(repr(value))

    def close(self) -> None:
        self._thread.shutdown(wait=False)


def _raise_in_thread(thread: int, error: type[BaseException] | None) -> None:
    """Raise in another thread at its next step in Python code; None takes back what was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error else None
    )


def describe(problem: BaseException) -> str:
    """The traceback as the user knows it: without the frames of this file."""
    try:
        lines = traceback.TracebackException.from_exception(problem, limit=-20).format()
        return shorten("".join(line for line in lines if f'File "{__file__}"' not in line))
    except BaseException:
        return f"{type(problem).__name__} (its message cannot be shown)"


sessions: dict[str, Session] = {}


@on_start
def catch_output() -> None:
    """Let every session's thread print into its own request."""
    sys.stdout = stdout


@on_leave
def forget(user: User) -> None:
    """The user is idle: their variables go, their files stay."""
    if session := sessions.pop(user.user_id, None):
        session.close()


@handler("agent")
async def agent(ctx: Context, payload: Any) -> dict[str, Any]:
    """Run `{"message": code}` for this user."""
    code = payload.get("message") if isinstance(payload, dict) else None
    if not isinstance(code, str):
        raise InvalidRequest('payload.message is missing: send {"message": "1 + 1"}')
    notice = None
    if (session := sessions.get(ctx.user_id)) is None:
        session = sessions[ctx.user_id] = Session(ctx.state_dir / "files")
        if ctx.state.get("used"):
            notice = GONE
    ctx.state["used"] = True
    return await session.run(code) | {"notice": notice}
