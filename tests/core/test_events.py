"""Events and their broadcast: in order, bounded, ended by close."""

from __future__ import annotations

import asyncio

import pytest

from moltbot.core.events import (
    SUBSCRIPTION_LIMIT,
    Broadcast,
    PoolEvent,
    Subscription,
    UserPinned,
    WorkerChanged,
)

DEADLINE = 10


async def collect(subscription: Subscription[int]) -> list[int]:
    async with asyncio.timeout(DEADLINE):
        return [item async for item in subscription]


async def test_every_subscriber_sees_every_event_in_order() -> None:
    broadcast = Broadcast[int]()
    readers = [asyncio.create_task(collect(broadcast.subscribe())) for _ in range(3)]
    for number in range(500):
        broadcast.publish(number)
        if number % 7 == 0:
            await asyncio.sleep(0)
    broadcast.close()
    assert await asyncio.gather(*readers) == [list(range(500))] * 3


async def test_a_subscription_sees_only_what_comes_after_it() -> None:
    broadcast = Broadcast[int]()
    broadcast.publish(1)
    subscription = broadcast.subscribe()
    broadcast.publish(2)
    broadcast.close()
    assert await collect(subscription) == [2]


async def test_a_waiting_reader_is_woken_by_the_next_event() -> None:
    broadcast = Broadcast[int]()
    subscription = broadcast.subscribe()
    reader = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    assert not reader.done()
    broadcast.publish(5)
    assert await asyncio.wait_for(reader, DEADLINE) == 5
    subscription.close()


async def test_two_readers_of_one_subscription_share_its_events() -> None:
    broadcast = Broadcast[int]()
    subscription = broadcast.subscribe()
    readers = [asyncio.create_task(collect(subscription)) for _ in range(2)]
    for number in range(100):
        broadcast.publish(number)
    broadcast.close()
    one, other = await asyncio.gather(*readers)
    assert sorted(one + other) == list(range(100))


async def test_an_unread_subscription_loses_the_oldest_and_counts_them() -> None:
    broadcast = Broadcast[int]()
    slow, quick = broadcast.subscribe(), broadcast.subscribe()
    for number in range(SUBSCRIPTION_LIMIT + 25):
        broadcast.publish(number)
        assert await anext(quick) == number
    assert (slow.take_lost(), slow.take_lost(), quick.take_lost()) == (25, 0, 0)
    broadcast.publish(-1)
    assert slow.take_lost() == 1
    broadcast.close()
    assert await collect(slow) == [*range(26, SUBSCRIPTION_LIMIT + 25), -1]


async def test_close_ends_the_iteration_after_what_is_still_held() -> None:
    broadcast = Broadcast[int]()
    subscription = broadcast.subscribe()
    broadcast.publish(1)
    subscription.close()
    broadcast.publish(2)
    assert await collect(subscription) == [1]
    assert await collect(subscription) == []


async def test_close_ends_a_reader_that_waits() -> None:
    broadcast = Broadcast[int]()
    readers = [asyncio.create_task(collect(broadcast.subscribe())) for _ in range(2)]
    await asyncio.sleep(0)
    broadcast.close()
    assert await asyncio.gather(*readers) == [[], []]


async def test_leaving_the_with_block_closes() -> None:
    broadcast = Broadcast[int]()
    with broadcast.subscribe() as subscription:
        broadcast.publish(1)
    broadcast.publish(2)
    assert await collect(subscription) == [1]


async def test_close_may_be_repeated_and_leaves_the_others_alone() -> None:
    broadcast = Broadcast[int]()
    gone, stays = broadcast.subscribe(), broadcast.subscribe()
    gone.close()
    gone.close()
    broadcast.publish(1)
    broadcast.close()
    broadcast.close()
    assert await collect(stays) == [1]


async def test_a_cancelled_reader_loses_nothing() -> None:
    broadcast = Broadcast[int]()
    subscription = broadcast.subscribe()
    reader = asyncio.ensure_future(anext(subscription))
    await asyncio.sleep(0)
    broadcast.publish(1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    broadcast.close()
    assert await collect(subscription) == [1]


def test_publishing_without_subscribers_is_harmless() -> None:
    Broadcast[int]().publish(1)


@pytest.mark.parametrize(
    ("event", "json"),
    [
        (
            WorkerChanged(1.5, "worker-0", 2, "ready", "stopped", "crashed"),
            {
                "event": "worker-changed",
                "at": 1.5,
                "workerId": "worker-0",
                "incarnation": 2,
                "previous": "ready",
                "state": "stopped",
                "reason": "crashed",
                "detail": None,
            },
        ),
        (
            UserPinned(0, "ada", "worker-1", 1, "placed"),
            {
                "event": "user-pinned",
                "at": 0,
                "userId": "ada",
                "workerId": "worker-1",
                "epoch": 1,
                "why": "placed",
            },
        ),
    ],
)
def test_an_event_in_json_has_its_name_and_camel_case_keys(event: PoolEvent, json: object) -> None:
    assert event.to_json() == json
