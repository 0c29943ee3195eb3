"""The start/stop contract, in every order that callers can come up with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from moltbot.core.errors import NotRunning
from moltbot.core.service import Service


class Resource(Service):
    """Acquires three things with a pause before, between and after; `gates` hold it where a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[int] = []
        self.acquired = self.released = 0
        self.starts = self.stops = 0
        self.entered = asyncio.Event()
        self.start_gate = asyncio.Event()
        self.stop_gate = asyncio.Event()
        self.start_gate.set()
        self.stop_gate.set()
        self.fail_start = self.fail_stop = False

    async def _start(self) -> None:
        self.starts += 1
        for thing in range(3):
            await asyncio.sleep(0)
            self.held.append(thing)
            self.acquired += 1
            self.entered.set()
        await self.start_gate.wait()
        if self.fail_start:
            raise ConnectionError("cannot start")

    async def _stop(self) -> None:
        self.stops += 1
        while self.held:
            await asyncio.sleep(0)
            self.held.pop()
            self.released += 1
        await self.stop_gate.wait()
        if self.fail_stop:
            raise OSError("cannot stop")

    def assert_stopped(self) -> None:
        assert not self.running
        assert self.acquired == self.released
        assert self.held == []


@pytest.fixture
async def service() -> AsyncIterator[Resource]:
    """A service that can be stopped at the end, and then leaves nothing behind, not even a task."""
    before = asyncio.all_tasks()
    yield (service := Resource())
    service.fail_stop = False
    await service.stop()
    service.assert_stopped()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def starting(service: Resource) -> asyncio.Task[None]:
    """A start that is held in its middle."""
    service.start_gate.clear()
    task = asyncio.create_task(service.start())
    await service.entered.wait()
    return task


async def stopping(service: Resource) -> asyncio.Task[None]:
    """A stop that is held at its end."""
    service.stop_gate.clear()
    task = asyncio.create_task(service.stop())
    while service.held:
        await asyncio.sleep(0)
    return task


async def spin(until: Callable[[], bool] = lambda: False, turns: int = 20) -> None:
    for _ in range(turns):
        if until():
            return
        await asyncio.sleep(0)


async def test_it_runs_from_start_to_stop(service: Resource) -> None:
    assert not service.running
    await service.start()
    assert service.running
    await service.stop()
    service.assert_stopped()


async def test_the_context_manager_starts_and_stops(service: Resource) -> None:
    with pytest.raises(ZeroDivisionError):
        async with service:
            assert service.running
            raise ZeroDivisionError
    service.assert_stopped()


async def test_stop_before_start_does_nothing(service: Resource) -> None:
    await service.stop()
    assert service.stops == 0


async def test_a_second_start_and_a_second_stop_do_nothing(service: Resource) -> None:
    await service.start()
    await service.start()
    await service.stop()
    await service.stop()
    assert (service.starts, service.stops) == (1, 1)


async def test_concurrent_starts_and_concurrent_stops_share_one(service: Resource) -> None:
    await asyncio.gather(*(service.start() for _ in range(5)))
    assert service.running
    await asyncio.gather(*(service.stop() for _ in range(5)))
    assert (service.starts, service.stops) == (1, 1)


async def test_it_starts_again_after_a_stop(service: Resource) -> None:
    for _ in range(3):
        await service.start()
        await service.stop()
    assert (service.starts, service.acquired) == (3, 9)


async def test_it_is_not_running_while_it_starts_or_stops(service: Resource) -> None:
    start = await starting(service)
    assert not service.running
    service.start_gate.set()
    await start
    stop = await stopping(service)
    assert not service.running
    service.stop_gate.set()
    await stop


async def test_stop_during_start_cancels_it_and_tells_every_starter(service: Resource) -> None:
    first = await starting(service)
    second = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    await service.stop()
    service.assert_stopped()
    for start in (first, second):
        with pytest.raises(NotRunning, match="Resource was stopped while it was starting"):
            await start


async def test_a_stop_in_the_same_moment_as_a_start_leaves_it_startable(service: Resource) -> None:
    results = await asyncio.gather(service.start(), service.stop(), return_exceptions=True)
    assert isinstance(results[0], NotRunning)
    service.assert_stopped()
    await service.start()
    assert service.running


async def test_a_start_during_stop_waits_and_then_starts(service: Resource) -> None:
    await service.start()
    stop = await stopping(service)
    start = asyncio.create_task(service.start())
    await spin()
    assert service.starts == 1
    service.stop_gate.set()
    await asyncio.gather(stop, start)
    assert service.running
    assert service.starts == 2


async def test_a_cancelled_start_leaves_nothing_behind(service: Resource) -> None:
    start = await starting(service)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    service.assert_stopped()
    service.start_gate.set()
    await service.start()
    assert service.running


async def test_a_start_cancelled_twice_still_puts_everything_away(service: Resource) -> None:
    service.stop_gate.clear()
    start = await starting(service)
    start.cancel()
    await spin(lambda: service.stops == 1)
    start.cancel()
    await spin()
    assert not start.done()
    service.stop_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await start
    service.assert_stopped()


@pytest.mark.parametrize("turns", range(12))
async def test_a_start_cancelled_at_any_moment_is_running_or_has_left_nothing(
    service: Resource, turns: int
) -> None:
    start = asyncio.create_task(service.start())
    await spin(turns=turns)
    start.cancel()
    await asyncio.wait([start])
    if start.cancelled():
        service.assert_stopped()
    else:
        assert service.running


async def test_a_start_cancelled_as_it_succeeds_leaves_nothing(service: Resource) -> None:
    start = asyncio.create_task(service.start())
    while not service.running:
        await asyncio.sleep(0)
    assert not start.done()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    service.assert_stopped()


async def test_a_joiner_that_gives_up_does_not_end_the_start(service: Resource) -> None:
    owner = await starting(service)
    joiner = asyncio.create_task(service.start())
    await asyncio.sleep(0)
    joiner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joiner
    service.start_gate.set()
    await owner
    assert service.running


async def test_a_failing_start_leaves_nothing_and_raises_its_own_error(service: Resource) -> None:
    service.fail_start = True
    results = await asyncio.gather(service.start(), service.start(), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError, ConnectionError]
    service.assert_stopped()
    service.fail_start = False
    await service.start()
    assert service.running


async def test_a_failing_start_whose_clean_up_fails_raises_the_first_error(service: Resource) -> None:
    service.fail_start = service.fail_stop = True
    with pytest.raises(ConnectionError):
        await service.start()
    service.assert_stopped()


async def test_a_cancelled_stop_still_puts_everything_away(service: Resource) -> None:
    await service.start()
    stop = await stopping(service)
    stop.cancel()
    await spin()
    stop.cancel()
    await spin()
    assert not stop.done()
    service.stop_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await stop
    service.assert_stopped()


async def test_a_cancelled_stop_of_a_start_still_puts_everything_away(service: Resource) -> None:
    start = await starting(service)
    service.stop_gate.clear()
    stop = asyncio.create_task(service.stop())
    await spin(lambda: service.stops == 1)
    stop.cancel()
    await spin()
    assert not stop.done()
    service.stop_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await stop
    service.assert_stopped()
    with pytest.raises(NotRunning):
        await start


async def test_a_failing_stop_is_told_and_does_not_block_the_next_start(service: Resource) -> None:
    await service.start()
    service.fail_stop = True
    results = await asyncio.gather(service.stop(), service.stop(), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert not service.running
    service.fail_stop = False
    await service.start()
    assert service.running
