"""The service that writes `moltbot.db`: transactions that survive what happens, start and stop, copies.

What is refused at opening, and the way back from a copy, is in `test_database_file.py`; what pins promise, in
`test_directory.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from moltbot.core.clock import SystemClock
from moltbot.core.errors import DatabaseDamaged, NotRunning, Unavailable
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from tests.fakes import FakeClock
from tests.router.support import (
    HERE,
    backed_up,
    file_of,
    held,
    listing,
    opened,
    overwrite,
    pin_all,
    rows,
    settle,
)

COUNT = sa.text("SELECT count(*) FROM pins")

# --- transactions ----------------------------------------------------------------------------------


async def test_the_file_is_synced_at_every_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        names = ("journal_mode", "synchronous", "fullfsync", "foreign_keys")
        values = await file_of(directory).transact(
            lambda c: [c.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]
        )
        assert values == ["wal", 2, 1, 1]


async def test_a_mistake_in_a_transaction_comes_back_as_it_is_and_is_rolled_back(tmp_path: Path) -> None:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DELETE FROM pins")
        raise ValueError("mine")

    async with opened(tmp_path) as directory:
        await directory.pin("user-a", lambda: HERE)
        with pytest.raises(ValueError, match="mine"):
            await file_of(directory).transact(work)
        with pytest.raises(sa.exc.IntegrityError):
            await file_of(directory).transact(
                lambda c: c.exec_driver_sql("INSERT INTO pins SELECT * FROM pins").close()
            )
        assert len(rows(tmp_path)) == 1


async def test_what_waits_together_shares_a_commit_and_fails_alone(tmp_path: Path) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DELETE FROM pins")
        raise ValueError("mine")

    async with opened(tmp_path) as directory:
        file = file_of(directory)
        await directory.pin("user-a", lambda: HERE)
        commits: list[str] = []
        sa.event.listen(file.engine, "commit", lambda _: commits.append("commit"))
        with held(directory):
            counts = [file.submit(lambda c: c.execute(COUNT).scalar_one()) for _ in range(3)]
            failing = file.submit(fail)
            broken = file.submit(lambda c: c.exec_driver_sql("INSERT INTO pins SELECT * FROM pins").close())
            after = file.submit(lambda c: c.execute(COUNT).scalar_one())
        assert await asyncio.gather(*counts, after) == [1, 1, 1, 1]
        with pytest.raises(ValueError, match="mine"):
            await failing
        with pytest.raises(sa.exc.IntegrityError):
            await broken
        assert len(commits) == 2  # of what held them up, and theirs
        assert len(rows(tmp_path)) == 1


async def test_a_shared_commit_that_fails_is_tried_one_by_one(tmp_path: Path) -> None:
    def delete_then_fill(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")
        connection.exec_driver_sql("CREATE TABLE too_much (x)")

    async with opened(tmp_path) as directory:
        file = file_of(directory)
        with held(directory):
            fine = file.submit(lambda c: c.execute(sa.text("INSERT INTO meta VALUES ('fine', '1')")).close())
            full = file.submit(delete_then_fill)
        with pytest.raises(Unavailable, match="full"):
            await full
        await fine
        found = sa.text("SELECT count(*) FROM meta WHERE key = 'fine'")
        assert await file.transact(lambda c: c.execute(found).scalar_one()) == 1


async def test_a_file_that_is_held_by_another_program_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        await file_of(directory).transact(lambda c: c.exec_driver_sql("PRAGMA busy_timeout=1").close())
        with closing(sqlite3.connect(tmp_path / "moltbot.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="locked: close the other program"):
                await directory.pin("user-a", lambda: HERE)
        await directory.pin("user-a", lambda: HERE)


PIN_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from moltbot.core.clock import SystemClock
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from moltbot.router.placement import Placement

async def client(directory, name):
    for number in range(10**9):
        user = f"{name}-{number}"
        await directory.pin(user, lambda: Placement("worker-0", "worker-0", "-"))
        print(user, flush=True)

async def main():
    database = Database(Path(sys.argv[1]), SystemClock())
    directory = Directory(database, SystemClock())
    await database.start()
    await directory.start()
    await asyncio.gather(*(client(directory, name) for name in "abcdefgh"))

asyncio.run(main())
"""


def users_before_kill_9(base: Path) -> list[str]:
    """What a child had returned when it was killed between two moments of its own choosing."""
    command = [sys.executable, "-c", PIN_UNTIL_KILLED, str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(200)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]


async def test_what_was_returned_survives_kill_9(tmp_path: Path) -> None:
    returned = users_before_kill_9(tmp_path)
    async with opened(tmp_path) as directory:
        assert len(returned) >= 200
        assert set(returned) <= set(directory.pins)


DISK_FULL = """
import asyncio, resource, sys
from pathlib import Path
from moltbot.core.clock import SystemClock
from moltbot.core.errors import Unavailable
from moltbot.router.database import Database
from moltbot.router.directory import Directory
from moltbot.router.placement import Placement

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    async with Database(Path(sys.argv[1]), SystemClock()) as database, Directory(database, SystemClock()) as directory:
        limit(100_000)
        failed = 0
        for number in range(200):
            try:
                await directory.pin(f"{number}-" + "x" * 500, lambda: Placement("worker-0", "worker-0", "-"))
            except Unavailable as error:
                failed += 1
                assert "could not be written" in error.message and sys.argv[1] in error.message, error.message
        assert failed and directory.pins, (failed, len(directory.pins))
        assert directory.loads() == directory.counts() == {"worker-0": 200 - failed}
        limit(resource.RLIM_INFINITY)
        await directory.pin("afterwards", lambda: Placement("worker-0", "worker-0", "-"))
        print(*directory.pins)

asyncio.run(main())
"""


def test_a_file_that_cannot_grow_costs_only_who_asked_then(tmp_path: Path) -> None:
    """The kernel refuses the write in the middle of a commit, then allows it again."""
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path)]
    child = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    returned = {user.encode() for user in child.stdout.split()}
    assert b"afterwards" in returned
    assert set(rows(tmp_path)) == returned


# --- start and stop --------------------------------------------------------------------------------


async def test_a_clean_stop_leaves_the_file_and_its_copy_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        await pin_all(directory, ["a", "b", "c"])
        assert listing(tmp_path) == dict.fromkeys(["moltbot.db", "moltbot.db-wal", "moltbot.db-shm"], 0o600)
    assert listing(tmp_path) == dict.fromkeys(["moltbot.db", "moltbot.db.backup"], 0o600)
    assert rows(tmp_path) == rows(tmp_path, "moltbot.db.backup")


async def test_start_and_stop_are_legal_in_every_order(tmp_path: Path) -> None:
    clock = SystemClock()
    database = Database(tmp_path, clock)
    directory = Directory(database, clock)
    await database.stop()
    with pytest.raises(NotRunning):
        await directory.start()
    start = asyncio.create_task(database.start())
    await asyncio.sleep(0)
    start.cancel()
    await asyncio.wait([start])
    for _ in range(2):
        await asyncio.gather(database.start(), database.start())
        await asyncio.gather(directory.start(), directory.start())
        await directory.pin("user-a", lambda: HERE)
        await asyncio.gather(directory.stop(), directory.stop())
        await asyncio.gather(database.stop(), database.stop())
    assert not (tmp_path / "moltbot.db-wal").exists()


async def test_a_stop_that_waits_for_what_is_needed_and_is_cancelled_leaves_no_timer(tmp_path: Path) -> None:
    clock = FakeClock()
    async with Database(tmp_path, clock) as database:
        with database.needed():
            waiting = asyncio.create_task(database._until_unneeded())
            await settle()
            assert clock.pending == 1
            waiting.cancel()
            await asyncio.wait([waiting])
            assert clock.pending == 0


def open_files() -> list[str]:
    """The paths behind this process's descriptors."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return names


async def test_a_failed_start_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "moltbot.db").write_bytes(b"no database" * 1000)
    database = Database(tmp_path, SystemClock())
    for _ in range(3):
        with pytest.raises(DatabaseDamaged):
            await database.start()
    assert not any(Path(name).is_relative_to(tmp_path) for name in open_files())
    assert not (tmp_path / "moltbot.db.backup").exists()


# --- copies ----------------------------------------------------------------------------------------


async def test_a_copy_is_made_while_running(tmp_path: Path) -> None:
    async with opened(tmp_path) as directory:
        await pin_all(directory, ["a", "b"])
        (tmp_path / "moltbot.db.backup.new").write_text("left by a crash")
        assert await file_of(directory).backup() == tmp_path / "moltbot.db.backup"
        assert (tmp_path / "moltbot.db.backup").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "moltbot.db.backup.new").exists()
        await pin_all(directory, ["c"])
        assert set(rows(tmp_path, "moltbot.db.backup")) == {b"a", b"b"}


async def test_a_copy_that_fails_keeps_the_one_before_and_stop_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as directory:
        await file_of(directory).backup()
        kept = (tmp_path / "moltbot.db.backup").read_bytes()
        (tmp_path / "moltbot.db.backup.new").mkdir()  # stands in the way
        with pytest.raises(Unavailable, match="the copy before it is kept"):
            await file_of(directory).backup()
        await directory.pin("user-a", lambda: HERE)
        caplog.set_level(logging.ERROR)
    assert (tmp_path / "moltbot.db.backup").read_bytes() == kept
    assert "the copy before it is kept" in caplog.text
    assert not (tmp_path / "moltbot.db-wal").exists()
    assert set(rows(tmp_path)) == {b"user-a"}


async def test_damage_met_while_running_does_not_replace_the_good_copy(tmp_path: Path) -> None:
    before = await backed_up(tmp_path)
    async with opened(tmp_path) as directory:
        await file_of(directory).transact(lambda c: c.exec_driver_sql("PRAGMA cache_size=0").close())
        overwrite(20 * 4096)(tmp_path / "moltbot.db")  # among the pins
        with pytest.raises(Unavailable, match="malformed"):
            await file_of(directory).backup()
    assert rows(tmp_path, "moltbot.db.backup") == before
