"""What is left in the database's files after rows were deleted and the file was scrubbed: nothing; and who shares a scrub."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.clock import SystemClock
from moltbot.router.database import Database
from tests.fakes import PATIENCE, FakeClock
from tests.router.support import settle


async def test_pages_that_were_laid_out_anew_keep_no_copies(tmp_path: Path) -> None:
    chance = random.Random(1)
    users = [
        b"<%06d" % number + b"x" * chance.randrange(5, 200) + b"%06d>" % number for number in range(3000)
    ]
    chance.shuffle(users)
    gone = chance.sample(users, 1000)

    def fill(connection: Any) -> None:
        for user in users:
            row = (user, str(chance.random()), user, b"-", 0, user * chance.randrange(60))
            connection.exec_driver_sql(
                "INSERT INTO outcomes (owner, key, user_id, fingerprint, created, body) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def delete(connection: Any) -> None:
        for user in gone:
            connection.exec_driver_sql("DELETE FROM outcomes WHERE user_id = ?", (user,))

    async with Database(tmp_path, SystemClock()) as database:
        await database.transact(fill)
        await database.transact(delete)
        await database.scrub()
        forgotten = {user[:7] for user in gone} | {user[-7:] for user in gone}
        for name in ("moltbot.db", "moltbot.db-wal", "moltbot.db.backup"):
            found = set(re.findall(rb"<[0-9]{6}|[0-9]{6}>", (tmp_path / name).read_bytes()))
            assert found & forgotten == set(), name


async def test_it_has_no_deadline_and_what_comes_meanwhile_shares_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Semaphore(0), threading.Semaphore(0)
    runs: list[str] = []

    def slow(database: Database, original: Any = Database._scrub) -> None:
        runs.append("scrub")
        begun.release()
        assert gate.acquire(timeout=PATIENCE)
        original(database)

    monkeypatch.setattr(Database, "_scrub", slow)
    clock = FakeClock()
    async with Database(tmp_path, clock) as database:
        first = asyncio.create_task(database.scrub())
        await settle()
        assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
        later = [asyncio.create_task(database.scrub()) for _ in range(5)]
        await settle()
        clock.advance(3600)
        await settle()
        assert not any(task.done() for task in (first, *later))
        later[0].cancel()
        await asyncio.wait([later[0]])
        gate.release(2)
        await asyncio.gather(first, *later[1:])
        assert len(runs) == 2
        gate.release()
        await database.scrub()
        assert len(runs) == 3, "what is done is not shared"
