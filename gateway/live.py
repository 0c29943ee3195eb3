"""The requests under way, by credential: so that a revoked or expired one ends with its streams, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

from moltbot.core.clock import Clock
from moltbot.gateway.access import Credential

T = TypeVar("T")
_REQUEST: ContextVar[object | None] = ContextVar("moltbot.gateway.live.request", default=None)
"""Which request runs: the same in the tasks and callbacks that it starts, and so known where it ends its own credential."""


class Live:
    """The tasks that work for each credential, and for which request each works."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[str, dict[asyncio.Task[object], object]] = {}
        self._ended: set[asyncio.Task[object]] = set()

    async def run(self, credential: Credential, work: Awaitable[T]) -> T:
        """Do `work` in the current task, which is cancelled if the credential ends before it does."""
        task = asyncio.current_task()
        assert task is not None
        request = _REQUEST.get()
        if request is None:
            request = object()
            _REQUEST.set(request)  # each request has a task of its own, which ends with it
        tasks = self._tasks.setdefault(credential.id, {})
        tasks[task] = request
        timer = None
        if credential.expires_at is not None:
            left = max(0.0, credential.expires_at - self._clock.time())
            timer = self._clock.call_later(left, partial(self._end_task, task))
        try:
            return await work
        finally:
            if timer is not None:
                timer.cancel()
            tasks.pop(task, None)
            if not tasks and self._tasks.get(credential.id) is tasks:
                del self._tasks[credential.id]

    def let_go(self, credential: Credential) -> None:
        """The request that runs now is not cancelled with its credential: it ends it, and has yet to be answered."""
        asking = _REQUEST.get()
        tasks = self._tasks.get(credential.id, {})
        for task in [task for task, request in tasks.items() if request is asking]:
            del tasks[task]

    def end(self, credential_id: str) -> None:
        """Cancel all that works for it, but for the request that asked for this: it has yet to be answered."""
        asking = _REQUEST.get()
        for task, request in list(self._tasks.get(credential_id, {}).items()):
            if asking is None or request is not asking:
                self._end_task(task)

    def _end_task(self, task: asyncio.Task[object]) -> None:
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)
        task.cancel()

    def was_ended(self) -> bool:
        """True if the current task was cancelled here, and not by a client that left."""
        return asyncio.current_task() in self._ended

    def __len__(self) -> int:
        return len(self._tasks)
