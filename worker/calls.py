"""One request inside the worker: from its frame, through the handler, to its one final frame.

Coroutines and async generators run on the loop, plain functions and generators in a thread. A coroutine that is
cancelled is interrupted; a thread is only told, and its final frame comes when it has really ended, so that the
gateway never lets two requests of one lane overlap. Which users are loaded is decided in `loop.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import AsyncGeneratorType
from typing import Any, Protocol

from moltbot.core.errors import FrameError, InvalidRequest
from moltbot.core.framing import Frame
from moltbot.core.session import Callee
from moltbot.worker.context import CALLER_GAVE_UP, CancelledByCaller, Context
from moltbot.worker.handlers import Handler
from moltbot.worker.state import StateError
from moltbot.worker.users import User

MAX_EMIT_AHEAD = 1 << 20
MAX_ERROR_TEXT = 2000

log = logging.getLogger("worker")


class Fault(Exception):
    """A failure that already has its sentence."""


class Host(Protocol):
    """What a call needs of the worker it runs in."""

    worker_id: str
    session: Callee
    loop: asyncio.AbstractEventLoop
    thread_id: int
    threads: ThreadPoolExecutor

    def flush_soon(self) -> None:
        """Write what the session has to send."""


def is_coroutine_handler(function: Handler) -> bool:
    """True if the handler runs on the loop (and so can be interrupted)."""
    targets = (function, type(function).__call__)  # a function, or an object that can be called like one
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in targets)


def describe(error: BaseException) -> str:
    """`ValueError: text`, also for an exception whose text cannot be made."""
    return f"{type(error).__name__}: {_shown(error)}"


def _shown(value: object) -> str:
    """The text of what a stranger's code made, such that a frame can carry it."""
    try:
        text = str(value)
    except BaseException:
        text = "(its message cannot be shown)"
    return text[:MAX_ERROR_TEXT].encode(errors="replace").decode()


class Call:
    """One request; `run` is its life, `cancel` the caller's wish to end it."""

    def __init__(
        self, host: Host, id: int, frame: Frame, handler: Handler, user: User, *, on_loop: bool
    ) -> None:
        self._host = host
        self._id = id
        self._kind: str = frame["type"]
        self._payload = frame["payload"]
        self._handler = handler
        self._user = user
        self._on_loop = on_loop
        self._room: asyncio.Event | None = None
        self._begun = False
        self._ended = False
        self.task: asyncio.Task[None] | None = None
        meta = frame.get("meta") or {}
        self._context = Context(
            user,
            request_id=meta.pop("request_id", None) or str(id),
            worker_id=host.worker_id,
            deadline=time.monotonic() + frame.get("deadline_ms", 0) / 1000,
            meta=meta,
            send=self._send,
        )

    def cancel(self, reason: str | None = None) -> None:
        """The caller gave up, or `reason` ends the request; an interrupted handler finds it in its CancelledError."""
        reason = self._context._cancelled = reason or CALLER_GAVE_UP
        self.credit_granted()
        # A task that has not begun would end without a final frame; it looks at the flag when it begins.
        if self._on_loop and self._begun and self.task is not None:
            self.task.cancel(reason)

    def credit_granted(self) -> None:
        """The reader has room again."""
        if self._room is not None:
            self._room.set()

    async def run(self) -> None:
        """Run the handler and hand exactly one final frame to the session, whatever happens; the host writes it."""
        self._begun = True
        try:
            final = await self._serve()
        except (asyncio.CancelledError, CancelledByCaller):
            final = self._failure(*_cancelled(self._context.cancelled))
        except FrameError as error:
            final = self._failure("reply_too_large", error.message)
        except InvalidRequest as error:
            final = self._failure("invalid_request", error.message)
        except (Fault, StateError) as error:
            final = self._failure("handler_error", str(error))
        except (
            BaseException
        ) as error:  # also SystemExit: a handler must not end the worker by a plain sys.exit()
            log.error(
                "handler %r failed", self._kind, exc_info=error, extra={"request": self._context.request_id}
            )
            final = self._failure("handler_error", f"handler {self._kind!r} raised {describe(error)}")
        self._ended = True
        self.credit_granted()  # a thread that the handler left behind may wait for room
        self._host.session.finish(self._id, final)

    def _failure(self, code: str, message: object) -> bytes:
        return self._host.session.prepare(self._id, "error", code=code, message=_shown(message), details=None)

    async def _serve(self) -> bytes:
        user = self._user
        self._context.checkpoint()
        if user.arrival is not None and (error := await asyncio.shield(user.arrival)) is not None:
            raise Fault(error)
        user.enter()
        failed = True
        try:
            payload = await self._invoke()
            try:
                final = self._host.session.prepare(
                    self._id, "reply", payload=payload, usage=self._context.usage
                )
            except (TypeError, ValueError, OverflowError) as error:
                raise Fault(
                    f"handler {self._kind!r} returned a value that msgpack cannot carry ({describe(error)}): "
                    "return text, numbers, lists and dicts"
                ) from None
            user.save()
            failed = False
            return final
        finally:
            user.exit(failed=failed)

    async def _invoke(self) -> Any:
        if self._on_loop:
            result = self._handler(self._context, self._payload)
            if inspect.isasyncgen(result):
                return await self._stream_all(result)
            return await result
        return await self._host.loop.run_in_executor(self._host.threads, self._in_thread)

    async def _stream_all(self, items: AsyncGeneratorType[Any, Any]) -> None:
        async with contextlib.aclosing(items):
            async for item in items:
                await self._stream("chunk", {"data": item})

    def _in_thread(self) -> Any:
        self._context.checkpoint()  # it may have waited, for a thread or for on_arrive
        try:
            result = self._handler(self._context, self._payload)
        except StopIteration as error:  # no future can carry it: the request would never end
            raise RuntimeError("StopIteration") from error
        if not isinstance(result, Iterator):
            return result
        try:
            for item in result:
                self._context.checkpoint()
                self._send("chunk", {"data": item})
        finally:
            if isinstance(result, Generator):
                result.close()  # here, in its thread, and before the final frame
        return None

    async def _stream(self, kind: str, fields: dict[str, Any]) -> None:
        """Send one streamed frame and wait until the next one may go."""
        session = self._host.session
        self._check_open()
        session.stream(self._id, kind, **fields)
        self._host.flush_soon()
        while not self._ended and not session.may_stream(self._id):
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def _send(self, kind: str, fields: dict[str, Any]) -> None:
        """The synchronous form, for `Context`."""
        self._check_open()
        if threading.get_ident() != self._host.thread_id:
            asyncio.run_coroutine_threadsafe(self._stream(kind, fields), self._host.loop).result()
            return
        if self._host.session.backlog(self._id) > MAX_EMIT_AHEAD:
            raise BufferError("this request is 1 MiB ahead of its reader: await something, or send less")
        self._host.session.stream(self._id, kind, **fields)
        self._host.flush_soon()

    def _check_open(self) -> None:
        if self._ended:
            raise RuntimeError("this request has ended: nobody listens any more")


def _cancelled(by_caller: bool) -> tuple[str, str]:
    if by_caller:
        return "cancelled", "the request was cancelled by its caller"
    return "handler_error", "the handler raised CancelledError by itself"
