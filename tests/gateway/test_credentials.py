"""The kept credentials by themselves: time in the test's hand, races, bounds, and a disk that fails.

What is said of them over HTTP is in `test_tokens.py` and `test_login.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, func, insert, select

from moltbot import InvalidRequest, MoltbotError, NotFound, Unavailable
from moltbot.core.clock import SystemClock
from moltbot.gateway.access import USER_SCOPES
from moltbot.gateway.credentials import MAX_CREDENTIALS, SESSION_SECONDS, Credentials
from moltbot.router.database import Database
from moltbot.router.schema import forgettings, tokens
from tests.fakes import FakeClock

T = TypeVar("T")


class Shaky(Database):
    """A database whose disk fails when the test says so, and whose writer thread waits while the test holds it."""

    failing = False

    def submit(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        def attempt(connection: Connection) -> T:
            found = work(connection)
            if self.failing:
                raise Unavailable("the disk is full")
            return found

        return super().submit(attempt)

    def hold(self) -> threading.Event:
        """Keep the writer thread busy until the event is set."""
        free = threading.Event()
        self.submit(lambda _: free.wait())
        return free


class Kept:
    """Credentials with all that is around them, and the ids that were told to have ended."""

    def __init__(self, base: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.database = Shaky(base, SystemClock())
        self.ended: list[str] = []
        self.all = Credentials(self.database, clock, self.ended.append)

    async def token(self, user_id: str | None = "ada", **more: Any) -> str:
        return (await self.all.create("token", user_id, ["route"], **more))[1]

    async def link(self, user_id: str | None = "ada") -> str:
        return (await self.all.create("link", user_id, ["read"], seconds=300.0))[1]

    async def rows(self) -> int:
        count = select(func.count()).select_from(tokens)
        return int(await self.database.transact(lambda connection: connection.execute(count).scalar_one()))


@asynccontextmanager
async def kept_in(base: Path, clock: FakeClock | None = None) -> AsyncIterator[Kept]:
    kept = Kept(base, clock or FakeClock())
    async with kept.database, kept.all:
        yield kept


@pytest.fixture
def base(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    return made


def id_of(text: str) -> str:
    return text.split("_")[1]


async def test_a_token_is_good_until_the_moment_it_ends(base: Path) -> None:
    async with kept_in(base) as kept:
        text = await kept.token(seconds=60.0)
        kept.clock.advance(59.999)
        found = kept.all.check(text, "token")
        assert found is not None
        assert (found.id, found.user_id, sorted(found.scopes)) == (id_of(text), "ada", ["route"])
        kept.clock.advance(0.001)
        assert kept.all.check(text, "token") is None
        assert kept.all.valid() == []


async def test_what_is_over_is_cleared_away_by_the_next_that_is_made(base: Path) -> None:
    async with kept_in(base) as kept:
        over, text = await kept.token(seconds=1.0), await kept.token()
        kept.clock.advance(1.0)
        assert await kept.rows() == 2
        await kept.token()
        assert await kept.rows() == 2
        assert kept.ended == [id_of(over)]
        assert kept.all.check(text, "token") is not None


async def test_what_is_over_is_over_after_a_restart_too(base: Path) -> None:
    clock = FakeClock()
    async with kept_in(base, clock) as kept:
        over, text = await kept.token(seconds=1.0), await kept.token(seconds=100.0)
    clock.advance(1.0)
    async with kept_in(base, clock) as kept:
        assert kept.all.check(over, "token") is None
        assert kept.all.check(text, "token") is not None
        assert [one.id for one in kept.all.valid()] == [id_of(text)]


async def test_a_link_is_a_session_once(base: Path) -> None:
    async with kept_in(base) as kept:
        link = await kept.link()
        made = await kept.all.redeem(link)
        assert made is not None
        session, text = made
        assert (session.kind, session.user_id, sorted(session.scopes)) == ("session", "ada", ["read"])
        assert session.expires == kept.clock.time() + SESSION_SECONDS
        assert kept.all.check(text, "session") is not None
        for wrong in (link, text, "", "mbt__", await kept.token()):
            assert await kept.all.redeem(wrong) is None
    async with kept_in(base, kept.clock) as kept:
        assert await kept.all.redeem(link) is None
        assert kept.all.check(text, "session") is not None


async def test_of_many_who_redeem_a_link_at_once_one_is_signed_in(base: Path) -> None:
    async with kept_in(base) as kept:
        link = await kept.link()
        made = await asyncio.gather(*(kept.all.redeem(link) for _ in range(20)))
        assert sum(one is not None for one in made) == 1
        assert await kept.rows() == len(kept.all.valid()) == 1


async def test_a_link_is_good_as_before_if_the_disk_fails(base: Path) -> None:
    async with kept_in(base) as kept:
        link = await kept.link()
        kept.database.failing = True
        with pytest.raises(Unavailable):
            await kept.all.redeem(link)
        kept.database.failing = False
        assert await kept.all.redeem(link) is not None
        assert await kept.all.redeem(link) is None


async def test_a_link_that_is_revoked_while_it_is_redeemed_is_one_or_the_other(base: Path) -> None:
    async with kept_in(base) as kept:
        link = await kept.link()
        made, _ = await asyncio.gather(kept.all.redeem(link), kept.all.revoke(id_of(link)))
        assert made is not None  # it came first
        link = await kept.link()
        _, made = await asyncio.gather(kept.all.revoke(id_of(link)), kept.all.redeem(link))
        assert made is None
        assert await kept.rows() == len(kept.all.valid())


async def test_a_revocation_that_nobody_waits_for_any_more_still_takes_effect(base: Path) -> None:
    async with kept_in(base) as kept:
        text = await kept.token()
        free = kept.database.hold()
        revoking = asyncio.create_task(kept.all.revoke(id_of(text)))
        await asyncio.sleep(0)
        revoking.cancel()
        await asyncio.gather(revoking, return_exceptions=True)
        free.set()
        assert await kept.rows() == 0
        assert kept.all.check(text, "token") is None
        assert kept.ended == [id_of(text)]


async def test_what_is_made_for_somebody_who_left_is_in_the_list(base: Path) -> None:
    async with kept_in(base) as kept:
        free = kept.database.hold()
        making = asyncio.create_task(kept.token())
        await asyncio.sleep(0)
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        free.set()
        assert await kept.rows() == len(kept.all.valid()) == 1


async def test_a_failing_disk_makes_no_token_and_ends_none(base: Path) -> None:
    async with kept_in(base) as kept:
        text = await kept.token()
        kept.database.failing = True
        with pytest.raises(Unavailable):
            await kept.token()
        with pytest.raises(Unavailable):
            await kept.all.revoke(id_of(text))
        kept.database.failing = False
        assert kept.all.check(text, "token") is not None  # whoever revoked it was told that it did not work
        assert (await kept.rows(), kept.ended) == (1, [])
        await kept.all.revoke(id_of(text))
        assert kept.ended == [id_of(text)]


async def test_there_are_no_more_than_the_bound_however_many_come_at_once(base: Path) -> None:
    async with kept_in(base) as kept:
        row = {"kind": "token", "digest": b"x" * 32, "scopes": "route", "label": "", "created": 1.0}
        rows = [row | {"id": f"{number:012x}"} for number in range(MAX_CREDENTIALS - 3)]
        await kept.database.transact(lambda connection: connection.execute(insert(tokens), rows))
        await kept.all.reload()
        made = await asyncio.gather(*(kept.token() for _ in range(10)), return_exceptions=True)
        refused = [error for error in made if isinstance(error, Unavailable)]
        assert len(refused) == 7
        assert "revoke some" in refused[0].message
        assert not refused[0].retryable
        assert await kept.rows() == len(kept.all.valid()) == MAX_CREDENTIALS
        await kept.all.revoke(f"{0:012x}")
        await kept.token(seconds=1.0)
        kept.clock.advance(1.0)
        await kept.token()  # what is over takes nobody's place
        with pytest.raises(Unavailable):
            await kept.token()


async def test_nothing_is_made_for_a_user_who_is_being_forgotten(base: Path) -> None:
    async with kept_in(base) as kept:
        link = await kept.link()
        row = {"user_id": b"ada", "worker_id": "worker-0", "epoch": 1, "since": 1.0}
        await kept.database.transact(lambda connection: connection.execute(insert(forgettings), [row]))
        with pytest.raises(MoltbotError, match="forgotten"):
            await kept.token()
        with pytest.raises(MoltbotError, match="forgotten"):
            await kept.all.redeem(link)
        assert await kept.token("ben")
        kept.all.forget_user("ada")
        assert kept.ended == [id_of(link)]


async def test_reading_anew_ends_what_is_gone_and_loses_nothing_that_is_made_meanwhile(base: Path) -> None:
    async with kept_in(base) as kept:
        gone = await kept.token()
        await kept.database.transact(lambda connection: connection.execute(tokens.delete()))
        free = kept.database.hold()
        reading = asyncio.create_task(kept.all.reload())
        await asyncio.sleep(0)
        making = asyncio.create_task(kept.token())
        await asyncio.sleep(0)
        free.set()
        _, text = await asyncio.gather(reading, making)
        assert kept.all.check(text, "token") is not None
        assert kept.ended == [id_of(gone)]


async def test_what_no_token_can_be(base: Path) -> None:
    async with kept_in(base) as kept:
        for wrong in (
            "",
            "_",
            "__",
            "mbt",
            "mbt_",
            "mbt__",
            "mbt_x",
            "mbt_x_",
            "ü" * 500,
            "\udcff_\udcff_\udcff",
        ):
            assert kept.all.check(wrong, "token") is None
        with pytest.raises(InvalidRequest):
            await kept.all.create("token", "", sorted(USER_SCOPES))
        with pytest.raises(NotFound):
            await kept.all.revoke("nothing")
        texts = {await kept.token() for _ in range(20)}
        assert len({id_of(text) for text in texts}) == len({text.split("_", 2)[2] for text in texts}) == 20
