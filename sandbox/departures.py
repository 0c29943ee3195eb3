"""A user leaves a worker's memory for good, whatever the worker does about it.

How a frame is sent and an answer taken is in `incarnation.py`; who must leave, and why, is decided in `router/`.
"""

from __future__ import annotations

from moltbot.core.clock import Clock
from moltbot.core.within import within
from moltbot.sandbox import lifecycle
from moltbot.sandbox.incarnation import Incarnation
from moltbot.sandbox.lifecycle import ExitReason
from moltbot.sandbox.supervisor import Supervisor

_LAST_SECONDS = 60.0  # for a killed process to end


async def depart(
    worker: Supervisor, user_id: str, *, home: bool, clock: Clock, seconds: float, drain_seconds: float
) -> None:
    """Return when the user is in no process's memory; none of their requests may run.

    home: the user lives on this worker. Any other, whatever state it is in, has nothing to do unless it has the user. A worker
    that does not let the user go within `seconds` is drained, for up to `drain_seconds`, and restarted. Raises TimeoutError
    if its process cannot be ended.
    """
    life = worker.life
    if life is None or not (home or worker.is_loaded(user_id) or life.leaving[user_id]):
        return
    worker.unload(user_id)
    try:
        async with within(clock, seconds):
            await worker.until(lambda: not life.leaving[user_id] or life.channel is None)
    except TimeoutError:
        await _restart(worker, life, "a user's on_leave hook did not end", clock, drain_seconds)
    if life.channel is None and life.running:
        raise TimeoutError("the worker's process does not end")


async def renew(worker: Supervisor, why: str, *, clock: Clock, drain_seconds: float) -> None:
    """Return when no process lives that lived before: what they held open is held no more. Raises TimeoutError."""
    if worker.life is not None:
        await _restart(worker, worker.life, why, clock, drain_seconds)


async def _restart(
    worker: Supervisor, life: Incarnation, why: str, clock: Clock, drain_seconds: float
) -> None:
    worker.handle(lifecycle.Drain(ExitReason.OVERDUE, why))
    async with within(clock, drain_seconds + _LAST_SECONDS):
        await worker.until(lambda: life.channel is None)
