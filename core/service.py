"""The one start/stop contract.

Legal in every order, and stressed in `tests/core/test_service.py`: stop before start, double start, double stop, stop
during start, a cancelled start, a start that fails, a start after a stop. What a subclass writes is only `_start` and
`_stop`; `_stop` must put away whatever part of `_start` has happened. A failed or cancelled start leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from moltbot.core.errors import NotRunning


class Service:
    """Something with a life: stopped -> starting -> running -> stopping -> stopped."""

    def __init__(self) -> None:
        self._running = False
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """True between a successful start and the beginning of stop."""
        return self._running and self._stopping is None

    async def _start(self) -> None:
        """Acquire everything; may fail or be cancelled at any await."""
        raise NotImplementedError

    async def _stop(self) -> None:
        """Release everything that was acquired; every wait inside has a deadline."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start, or join a start under way; returns when running, raises what `_start` raised."""
        while self._stopping is not None:
            await asyncio.wait([self._stopping])
        if self._running:
            return
        # A start that was cancelled before its first step is done, and still there.
        owner = self._starting is None or self._starting.done()
        if self._starting is None or owner:
            self._starting = asyncio.create_task(self._run_start())
        task = self._starting
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _being_cancelled():
                raise NotRunning(f"{type(self).__name__} was stopped while it was starting") from None
            if owner:
                task.cancel()
                await _settled(task)
                if self._running:  # it succeeded in the moment of the cancellation
                    await _settled(asyncio.create_task(self.stop()))
            raise

    async def _run_start(self) -> None:
        try:
            await self._start()
            self._running = True
        except BaseException:
            # The clean-up must finish even if the cancellation is repeated.
            await _settled(asyncio.create_task(self._stop()))
            raise
        finally:
            self._starting = None

    async def stop(self) -> None:
        """Stop, or join a stop under way; cancels a start under way; returns when all is put away."""
        if self._starting is not None:
            self._starting.cancel()
        if self._stopping is None:
            if not self._running and self._starting is None:
                return
            self._stopping = asyncio.create_task(self._run_stop())
        task = self._stopping
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await _settled(task)
            raise

    async def _run_stop(self) -> None:
        try:
            if self._starting is not None:
                await asyncio.wait([self._starting])
            if self._running:
                await self._stop()
        finally:
            self._running = False
            self._stopping = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _settled(task: asyncio.Task[None]) -> None:
    """Wait until `task` is done, however often the waiter is cancelled; tasks here always end by deadline.

    How it ended is not told: whoever waits like this has an error of their own to raise.
    """
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue
    if not task.cancelled():
        task.exception()
