"""Random interleavings of start, stop and cancel: what was acquired is always released."""

from __future__ import annotations

import asyncio
import random

import pytest

from moltbot.core.errors import NotRunning
from moltbot.core.service import Service

ROUNDS = 40
EXPECTED = (NotRunning, ConnectionError)


class Shaky(Service):
    """Starts in random steps, fails at random, and counts."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.acquired = self.released = self.held = 0
        self.busy = False

    async def _pause(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def _start(self) -> None:
        assert self.held == 0, "a start found what an earlier life had left"
        assert not self.busy, "two lives overlap"
        self.busy = True
        try:
            for _ in range(self.chance.randrange(1, 4)):
                await self._pause()
                self.held += 1
                self.acquired += 1
            if self.chance.random() < 0.15:
                raise ConnectionError
            await self._pause()
        finally:
            self.busy = False

    async def _stop(self) -> None:
        assert not self.busy, "a stop runs beside a start"
        self.busy = True
        try:
            while self.held:
                await self._pause()
                self.held -= 1
                self.released += 1
        finally:
            self.busy = False


async def interleave(chance: random.Random) -> None:
    service = Shaky(chance)
    tasks: list[asyncio.Task[None]] = []
    starts: set[asyncio.Task[None]] = set()
    for _ in range(chance.randrange(4, 25)):
        match chance.randrange(5):
            case 0 | 1:
                tasks.append(asyncio.create_task(service.start()))
                starts.add(tasks[-1])
            case 2:
                tasks.append(asyncio.create_task(service.stop()))
            case 3 if tasks:
                chance.choice(tasks).cancel()
        for _ in range(chance.choice((0, 0, 1, 2, 5))):
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            assert task in starts
            assert isinstance(result, EXPECTED)
    # It is whole in either state, and both states can be left.
    assert (service.held > 0) == service.running
    if chance.random() < 0.5:
        while not service.running:
            try:
                await service.start()
            except ConnectionError:
                assert service.held == 0
    await service.stop()
    assert service.acquired == service.released
    assert service.held == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_the_order_what_was_acquired_is_released(seed: int) -> None:
    chance = random.Random(seed)
    async with asyncio.timeout(60):
        before = asyncio.all_tasks()
        for _ in range(ROUNDS):
            await interleave(chance)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before
