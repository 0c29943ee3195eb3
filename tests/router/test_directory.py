"""Pins: durable before seen, one placement per user, shared commits, failures that leave nothing half done.

The file they are in is tested in `test_database_file.py`, the service that writes it in `test_database.py`, and where
users are placed in `test_placement.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from moltbot.core.errors import DatabaseDamaged, NotRunning, Unavailable, WorkersMissing
from moltbot.router import directory as directory_module
from moltbot.router.directory import Directory, Pin
from moltbot.router.placement import Placement, place
from tests.fakes import FakeClock
from tests.router.support import HERE, backed_up, choose, file_of, held, opened, pin_all, rows, settle

# --- first pins ------------------------------------------------------------------------------------


async def test_a_pin_says_where_since_when_and_why_and_survives_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path, FakeClock(since_1970=1234.5)) as directory:
        assert directory.get("user-a") is None
        pin = await directory.pin("user-a", lambda: HERE)
        assert pin == Pin("worker-0", 1, 1234.5, "the ring's first choice") == directory.get("user-a")
    async with opened(tmp_path) as directory:
        assert directory.pins == {"user-a": pin}
        assert directory.counts() == directory.loads() == {"worker-0": 1}
        assert await directory.pin("user-a", lambda: pytest.fail("a pinned user is not placed again")) == pin


async def test_a_pin_is_on_disk_before_it_is_seen(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        seen: list[Pin | None] = []
        sa.event.listen(file_of(directory).engine, "commit", lambda _: seen.append(directory.get("user-a")))
        with held(directory):
            task = asyncio.create_task(directory.pin("user-a", lambda: HERE))
            await settle()
            assert not task.done()
            assert directory.get("user-a") is None
            assert (directory.counts(), directory.loads()) == ({}, {"worker-0": 1})
        await task
        assert seen == [None, None]  # neither at the commit before nor at its own
        assert rows(tmp_path) == {b"user-a": ("worker-0", 1)}
        assert directory.counts() == {"worker-0": 1}


def count_commits(directory: Directory) -> list[str]:
    commits: list[str] = []
    sa.event.listen(file_of(directory).engine, "commit", lambda _: commits.append("commit"))
    return commits


async def test_users_who_come_together_share_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        commits = count_commits(directory)
        with held(directory):  # one commit
            first = asyncio.create_task(pin_all(directory, ["user-x"]))
            await settle()  # a second, which waits
            others = asyncio.create_task(pin_all(directory, [f"user-{n}" for n in range(100)]))
            await settle()  # and all that has collected meanwhile is the third
        await asyncio.gather(first, others)
        assert len(commits) == 3
        assert len(rows(tmp_path)) == 101


async def test_users_who_come_together_are_spread_as_if_they_came_one_by_one(tmp_path: Path) -> None:
    users = [f"user-{n}" for n in range(30)]
    async with opened(tmp_path) as directory:
        with held(directory):
            tasks = asyncio.create_task(pin_all(directory, users))
            await settle()
            assert directory.loads() == {"worker-0": 10, "worker-1": 10, "worker-2": 10}
        await tasks
        assert directory.counts() == {"worker-0": 10, "worker-1": 10, "worker-2": 10}
        homes = {worker: directory.users_of(worker) for worker in directory.counts()}
        assert sorted(user for home in homes.values() for user in home) == sorted(users)
        assert directory.users_of("worker-9") == []


async def test_one_user_who_comes_many_times_at_once_gets_one_pin(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        places = iter([HERE])  # a second placement would find it empty
        pins = await asyncio.gather(*(directory.pin("user-a", lambda: next(places)) for _ in range(50)))
        assert set(pins) == {directory.pins["user-a"]}
        assert rows(tmp_path) == {b"user-a": ("worker-0", 1)}
        assert directory.loads() == {"worker-0": 1}


async def test_ids_are_compared_byte_by_byte(tmp_path: Path) -> None:
    users = ["a", "A", "a\0", "a\0b", "\0", "\u00e9", "e\u0301", "\U0001f98a", "a/b", "a_b", " a", "é" * 256]
    async with opened(tmp_path) as directory:
        await pin_all(directory, users)
    assert set(rows(tmp_path)) == {user.encode() for user in users}
    async with opened(tmp_path) as directory:
        assert set(directory.pins) == set(users)


async def test_a_placement_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        with pytest.raises(Unavailable, match="no worker can take"):
            await directory.pin("user-a", lambda: place([], {}))
        with pytest.raises(UnicodeEncodeError):
            await directory.pin("half \ud83d", lambda: HERE)
        assert directory.loads() == {}
        assert (await directory.pin("user-a", lambda: HERE)).worker_id == "worker-0"


async def test_waiting_first_pins_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "MAX_PENDING", 3)
    async with opened(tmp_path) as directory:
        with held(directory):
            waiting = asyncio.create_task(pin_all(directory, ["a", "b", "c"]))
            await settle()
            with pytest.raises(Unavailable, match="3 new users wait"):
                await directory.pin("d", lambda: HERE)
        await waiting
        await directory.pin("d", lambda: HERE)


# --- failures --------------------------------------------------------------------------------------


async def test_a_full_database_fails_every_waiting_caller_and_nothing_stays(tmp_path: Path) -> None:
    users = [f"{n}-" + "x" * 500 for n in range(20)]
    async with opened(tmp_path) as directory:
        await directory.pin("before", lambda: HERE)
        await file_of(directory).transact(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1").close())
        twice = [directory.pin(user, choose(directory, user)) for user in [*users, *users]]
        results = await asyncio.gather(*twice, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert len({id(result) for result in results}) == 40  # each caller has an error of their own
        error = results[-1]
        assert isinstance(error, Unavailable)
        assert error.retryable
        assert error.verdict == "not_started"
        assert "could not be given a worker: moltbot.db could not be written" in error.message
        assert f"full: free some space on the disk of {tmp_path}" in error.message
        assert directory.loads() == directory.counts() == {"worker-0": 1}
        assert set(directory.pins) == {"before"}
        assert set(rows(tmp_path)) == {b"before"}
        await file_of(directory).transact(lambda c: c.exec_driver_sql("PRAGMA max_page_count=100000").close())
        await pin_all(directory, users)
    assert len(rows(tmp_path)) == 21


async def test_a_cancelled_caller_harms_nobody_and_keeps_the_pin(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        with held(directory):
            first = asyncio.create_task(directory.pin("user-a", lambda: HERE))
            second = asyncio.create_task(directory.pin("user-a", lambda: HERE))
            alone = asyncio.create_task(directory.pin("user-b", lambda: HERE))
            await settle()
            first.cancel()
            alone.cancel()
            await asyncio.wait([first, alone])
            assert first.cancelled()
            assert alone.cancelled()
        assert (await second).worker_id == "worker-0"
        again = await directory.pin("user-b", lambda: pytest.fail("it has its place already"))
        assert directory.pins == {"user-a": await second, "user-b": again}


async def test_a_disk_that_hangs_does_not_hold_the_caller(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as directory:
        with held(directory):
            task = asyncio.create_task(directory.pin("user-a", lambda: HERE))
            other = asyncio.create_task(file_of(directory).transact(lambda _: None))
            await settle()
            clock.advance(29.9)
            await settle()
            assert not task.done()
            clock.advance(0.2)
            with pytest.raises(Unavailable, match="did not answer within 30 s"):
                await task
            with pytest.raises(Unavailable, match="did not answer within 30 s"):
                await other
            with pytest.raises(
                Unavailable, match="did not answer"
            ):  # at once: what is on its way is known to hang
                await directory.pin("user-a", lambda: HERE)
            assert directory.get("user-a") is None
            assert directory.loads() == {"worker-0": 1}  # it may still be stored, so it counts
        await directory.stop()
        assert set(directory.pins) == {"user-a"}  # and it was
        assert directory.counts() == {"worker-0": 1}


# --- start and stop --------------------------------------------------------------------------------


async def test_stop_waits_for_what_is_being_stored_and_refuses_what_comes_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        with held(directory):
            task = asyncio.create_task(directory.pin("user-a", lambda: HERE))
            await settle()
            stopping = asyncio.create_task(directory.stop())
            await settle()
            assert not stopping.done()
            with pytest.raises(NotRunning):
                await directory.pin("user-b", lambda: HERE)
        await stopping
        assert (await task).worker_id == "worker-0"
    with pytest.raises(NotRunning):
        file_of(directory).submit(lambda _: None)


async def test_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    clock = FakeClock()
    async with opened(tmp_path, clock) as directory:
        with held(directory):
            users = ["user-a", "user-b"]
            tasks = [asyncio.create_task(directory.pin(user, lambda: HERE)) for user in users]
            await settle()
            stopping = asyncio.create_task(directory.stop())
            await settle()
            clock.advance(31)
            await stopping
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, Unavailable) for result in results)
            assert directory.loads() == {}
        await directory.start()
        assert directory.get("user-c") is None


async def test_a_user_id_that_is_no_text_is_damage(tmp_path: Path) -> None:
    await backed_up(tmp_path, 3)
    with closing(sqlite3.connect(tmp_path / "moltbot.db")) as connection, connection:
        connection.execute("INSERT INTO pins VALUES (x'ff', 'worker-0', 1, 0.0, '-')")
    with pytest.raises(DatabaseDamaged, match="not UTF-8"):
        async with opened(tmp_path):
            pass


async def test_users_of_missing_workers_are_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        for number, worker in enumerate(["worker-0", "worker-4", "worker-4", "worker-10"]):
            await directory.pin(f"user-{number}", partial(Placement, worker, worker, "-"))
        directory.check_workers(f"worker-{n}" for n in range(11))
        with pytest.raises(
            WorkersMissing,
            match=r"have: worker-4 \(2 users\), worker-10 \(1 user\); start with all of them: -w 11 or more",
        ) as caught:
            directory.check_workers(["worker-0"])
        assert caught.value.details == {"workers": {"worker-4": 2, "worker-10": 1}}
        await directory.pin("user-x", lambda: Placement("blue", "blue", "-"))
        with pytest.raises(WorkersMissing, match="a pool that has workers of these names"):
            directory.check_workers(f"worker-{n}" for n in range(11))
