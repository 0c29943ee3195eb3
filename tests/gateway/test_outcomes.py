"""The table of answers by itself: what it says of a key, its bounds in number, bytes and age, and a disk that fails.

Requests that use it are in `test_idempotency.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from moltbot import Unavailable
from moltbot.core.clock import SystemClock
from moltbot.gateway import outcomes as table
from moltbot.gateway.outcomes import MAX_AGE, MAX_OUTCOME_BYTES, Key, Outcome, Outcomes
from moltbot.router.database import Database
from moltbot.router.schema import outcomes
from tests.fakes import FakeClock

DONE = Outcome(200, "application/json", b"{}")


class Table:
    """The answers, with a database of their own and the time in the test's hand."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.clock = clock
        self.all = Outcomes(database, clock)

    async def count(self) -> tuple[int, int]:
        """How many rows, of how many bytes."""
        query = select(func.count(), func.coalesce(func.sum(func.length(outcomes.c.body)), 0))
        count, size = await self.database.transact(lambda connection: connection.execute(query).one())
        return int(count), int(size)

    async def keep(self, key: Key, outcome: Outcome = DONE) -> None:
        assert await self.all.begin(key, again=False) == "begun"
        await self.all.end(key, outcome)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    return made


@asynccontextmanager
async def table_in(base: Path, clock: FakeClock | None = None) -> AsyncIterator[Table]:
    async with Database(base, SystemClock()) as database:
        yield Table(database, clock or FakeClock())


def key(name: str = "k", owner: str = "ada", asked: str = "this") -> Key:
    return Key(owner.encode().ljust(32), name, owner, asked.encode().ljust(32))


async def test_a_key_is_begun_once_and_then_known(base: Path) -> None:
    async with table_in(base) as kept:
        assert await kept.all.begin(key(), again=False) == "begun"
        for again in (False, True):
            assert await kept.all.begin(key(), again=again) == "unfinished"
            assert await kept.all.begin(key(asked="that"), again=again) == "different"
        await kept.all.end(key(), DONE)
        for again in (False, True):
            assert await kept.all.begin(key(), again=again) == DONE
            assert await kept.all.begin(key(asked="that"), again=again) == "different"
        assert await kept.all.begin(key(owner="ben"), again=False) == "begun"


async def test_of_many_at_once_one_begins(base: Path) -> None:
    async with table_in(base) as kept:
        found = await asyncio.gather(*(kept.all.begin(key(), again=True) for _ in range(50)))
        assert sorted(map(str, found)) == ["begun"] + ["unfinished"] * 49
        different = await asyncio.gather(
            *(kept.all.begin(key("two", asked=asked), again=True) for asked in ("this", "that"))
        )
        assert different == ["begun", "different"]


async def test_what_is_released_begins_again_as_anything(base: Path) -> None:
    async with table_in(base) as kept:
        await kept.all.begin(key(), again=False)
        await kept.all.release(key())
        assert await kept.count() == (0, 0)
        assert await kept.all.begin(key(asked="that"), again=False) == "begun"


async def test_what_an_earlier_gateway_began_is_unknown_unless_it_may_run_twice(base: Path) -> None:
    clock = FakeClock()
    async with table_in(base, clock) as kept:
        await kept.all.begin(key(), again=False)
        await kept.keep(key("done"))
    async with table_in(base, clock) as kept:
        assert await kept.all.begin(key("done"), again=False) == DONE
        assert await kept.all.begin(key(), again=False) == "unknown"
        assert await kept.all.begin(key(asked="that"), again=True) == "different"
        assert await kept.all.begin(key(), again=False) == "unknown"
        assert await kept.all.begin(key(), again=True) == "begun"
        await kept.all.end(key(), DONE)
        assert await kept.all.begin(key(), again=False) == DONE


async def test_whoever_leaves_before_it_begins_leaves_the_key_free(base: Path) -> None:
    async with table_in(base) as kept:
        free = threading.Event()
        kept.database.submit(lambda _: free.wait())
        beginning = asyncio.create_task(kept.all.begin(key(), again=False))
        await asyncio.sleep(0)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        free.set()
        assert await kept.all.begin(key(asked="that"), again=False) == "begun"
        assert await kept.count() == (1, 0)


async def test_whoever_leaves_while_it_is_kept_changes_nothing(base: Path) -> None:
    async with table_in(base) as kept:
        await kept.all.begin(key(), again=False)
        free = threading.Event()
        kept.database.submit(lambda _: free.wait())
        ending = asyncio.create_task(kept.all.end(key(), DONE))
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        again = asyncio.create_task(kept.all.begin(key(), again=True))
        await asyncio.sleep(0)
        free.set()
        assert await again == DONE


async def test_an_answer_that_is_too_large_is_known_but_not_kept(base: Path) -> None:
    async with table_in(base) as kept:
        await kept.keep(key("fits"), Outcome(200, "text/plain", b"x" * MAX_OUTCOME_BYTES))
        await kept.keep(key("large"), Outcome(201, "text/plain", b"x" * (MAX_OUTCOME_BYTES + 1)))
        found = await kept.all.begin(key("fits"), again=False)
        assert isinstance(found, Outcome)
        assert found.body is not None
        assert await kept.all.begin(key("large"), again=False) == Outcome(201, "text/plain", None)


async def test_an_answer_is_kept_for_a_day(base: Path) -> None:
    async with table_in(base) as kept:
        await kept.keep(key())
        kept.clock.advance(MAX_AGE - 1)
        assert await kept.all.begin(key(), again=False) == DONE
        kept.clock.advance(1)
        assert await kept.all.begin(key(asked="that"), again=False) == "begun"
        await kept.all.end(key(asked="that"), DONE)
        assert (await kept.count())[0] == 1


async def test_the_number_of_an_owners_is_bounded_and_the_oldest_goes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_PER_OWNER", 5)
    async with table_in(base) as kept:
        await kept.keep(key(owner="ben"))
        for number in range(8):
            await kept.keep(key(f"k-{number}"))
            kept.clock.advance(1.0)
        assert (await kept.count())[0] == 5 + 1
        assert await kept.all.begin(key("k-3"), again=False) == DONE
        assert await kept.all.begin(key("k-7"), again=False) == DONE
        assert await kept.all.begin(key(owner="ben"), again=False) == DONE
        assert await kept.all.begin(key("k-2"), again=False) == "begun"


async def test_what_is_unfinished_is_never_deleted_for_room(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_PER_OWNER", 5)
    async with table_in(base) as kept:
        for number in range(5):
            assert await kept.all.begin(key(f"k-{number}"), again=False) == "begun"
        with pytest.raises(Unavailable, match="unfinished"):
            await kept.all.begin(key("one more"), again=False)
        assert await kept.all.begin(key(owner="ben"), again=False) == "begun"
        await kept.all.release(key("k-0"))
        assert await kept.all.begin(key("one more"), again=False) == "begun"


async def test_the_bytes_of_an_owners_are_bounded_and_no_more_go_than_must(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "MAX_OUTCOME_BYTES", 1000)
    monkeypatch.setattr(table, "MAX_BYTES_PER_OWNER", 5000)
    async with table_in(base) as kept:
        for number in range(20):
            await kept.keep(key(f"k-{number}"), Outcome(200, "text/plain", b"x" * 1000))
            kept.clock.advance(1.0)
            assert (await kept.count())[1] <= 5000
        assert await kept.count() == (5, 5000)


async def test_all_together_are_bounded_too(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_IN_ALL", 30)
    monkeypatch.setattr(table, "_PURGE_EVERY", 10)
    monkeypatch.setattr(table, "MAX_BYTES_IN_ALL", 2000)
    async with table_in(base) as kept:
        for number in range(60):
            await kept.keep(key(owner=f"user-{number}"), Outcome(200, "text/plain", b"x"))
            kept.clock.advance(1.0)
            assert (await kept.count())[0] <= 30
        for number in range(40):
            await kept.keep(key(owner=f"large-{number}"), Outcome(200, "text/plain", b"x" * 100))
            kept.clock.advance(1.0)
            assert (await kept.count())[1] <= 2000 + 10 * 100
        kept.clock.advance(MAX_AGE)
        for number in range(11):
            await kept.keep(key(owner=f"late-{number}"))
        assert (await kept.count())[0] <= 11


async def test_what_is_too_old_goes_although_nobody_sends_anything(base: Path) -> None:
    async with table_in(base, FakeClock()) as kept:
        await kept.keep(key("one"))
        kept.clock.advance(MAX_AGE - 1)
        await kept.keep(key("two"))
        await kept.all.purge()
        assert (await kept.count())[0] == 2
        kept.clock.advance(1)
        await kept.all.purge()
        assert (await kept.count())[0] == 1
