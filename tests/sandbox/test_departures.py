"""Users leave workers' memory: which workers are asked, and what the clock ends.

Hooks that stay for ever and workers that are restarted for it are in `tests/router/test_forgetting.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moltbot.sandbox import lifecycle
from moltbot.sandbox.departures import depart
from tests.fakes import FakeClock


class Silent:
    """What `depart` sees of a worker that answers nothing. running: its process, after the connection has ended."""

    def __init__(self, *loaded: str, channel: object = None, running: bool = True) -> None:
        self.loaded = {*loaded}
        self.life = SimpleNamespace(leaving=Counter(), channel=channel, running=running)
        self.handled: list[lifecycle.Event] = []

    def is_loaded(self, user_id: str) -> bool:
        return user_id in self.loaded

    def unload(self, user_id: str) -> None:
        if user_id in self.loaded:
            self.loaded.remove(user_id)
            self.life.leaving[user_id] += 1

    def handle(self, event: lifecycle.Event) -> None:
        self.handled.append(event)

    async def until(self, promise: Callable[[], bool]) -> None:
        while not promise():
            await asyncio.Event().wait()


def departing(worker: Any, clock: FakeClock, *, home: bool) -> asyncio.Task[None]:
    return asyncio.create_task(depart(worker, "ada", home=home, clock=clock, seconds=5.0, drain_seconds=30.0))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_worker_without_the_user_has_nothing_to_do_in_any_state() -> None:
    for channel in (None, object()):
        for running in (True, False):
            worker = Silent("ben", channel=channel, running=running)
            await departing(worker, FakeClock(), home=False)
            assert worker.handled == []
            assert worker.loaded == {"ben"}


async def test_a_home_whose_process_does_not_end_is_told() -> None:
    with pytest.raises(TimeoutError, match="does not end"):
        await departing(Silent(channel=None), FakeClock(), home=True)
    await departing(Silent(channel=None, running=False), FakeClock(), home=True)


async def test_its_deadlines_are_the_clock_s() -> None:
    clock, worker = FakeClock(), Silent("ada", channel=object())
    leaving = departing(worker, clock, home=False)
    await turn()
    clock.advance(4.9)
    await turn()
    assert worker.handled == []
    clock.advance(0.2)
    await turn()
    assert [type(event) for event in worker.handled] == [lifecycle.Drain]
    clock.advance(89)
    await turn()
    assert not leaving.done()
    clock.advance(2)
    with pytest.raises(TimeoutError):
        await leaving
    assert clock.pending == 0
