"""Which `moltbot.db` is refused at a start, and that the way back that the refusal names is one.

Covers damage, links, other versions, other programs' files. Damage that is met later and copies are in
`test_database.py`; a damaged user id, in `test_directory.py`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moltbot.core.clock import SystemClock
from moltbot.core.errors import BaseDirectoryError, DatabaseDamaged, StartupError
from moltbot.router.database import Database
from tests.router.support import backed_up, file_of, listing, opened, overwrite, pin_all

# --- damage and the way back -----------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def truncate_to_less_than_a_header(path: Path) -> None:
    os.truncate(path, 50)


DAMAGES = [truncate, truncate_to_less_than_a_header, overwrite(0), overwrite(4096), overwrite(8 * 4096)]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_refused_and_the_way_back_works(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = await backed_up(tmp_path)
    damage(tmp_path / "moltbot.db")
    with pytest.raises(DatabaseDamaged) as caught:
        await Database(tmp_path, SystemClock()).start()
    assert str(tmp_path / "moltbot.db") in caught.value.message
    assert "copy moltbot.db.backup to moltbot.db, start" in caught.value.message
    for name in ("moltbot.db", "moltbot.db-wal", "moltbot.db-shm"):  # as the message says
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / f"{name}.aside")
    shutil.copy(tmp_path / "moltbot.db.backup", tmp_path / "moltbot.db")
    async with opened(tmp_path) as directory:
        assert {user.encode(): (pin.worker_id, pin.epoch) for user, pin in directory.pins.items()} == before


async def test_the_way_back_after_a_crash_leaves_the_old_log_behind(tmp_path: Path) -> None:
    """The -wal of the damaged file holds pages that SQLite would write into the restored copy."""
    crashed = tmp_path / "crashed"
    async with opened(tmp_path) as directory:
        await pin_all(directory, ["a", "b"])
        await file_of(directory).backup()
        await pin_all(directory, [f"user-{n}" for n in range(500)])
        crashed.mkdir()
        for name in ("moltbot.db", "moltbot.db-wal", "moltbot.db.backup"):
            shutil.copy(tmp_path / name, crashed / name)
    with (crashed / "moltbot.db-wal").open("r+b") as log:
        log.seek(32 + 24 + 100)  # into the first page, which the log's checksum covers
        log.write(b"\xa5" * 50)
    truncate_to_less_than_a_header(crashed / "moltbot.db")
    with pytest.raises(DatabaseDamaged, match=r"move moltbot\.db, moltbot\.db-wal and moltbot\.db-shm aside"):
        await Database(crashed, SystemClock()).start()
    for name in listing(crashed):
        if name != "moltbot.db.backup":
            (crashed / name).unlink()
    shutil.copy(crashed / "moltbot.db.backup", crashed / "moltbot.db")
    async with opened(crashed) as directory:
        assert set(directory.pins) == {"a", "b"}


async def test_a_damaged_file_without_a_copy_says_what_starting_anew_costs(tmp_path: Path) -> None:
    (tmp_path / "moltbot.db").write_bytes(b"no database" * 1000)
    with pytest.raises(
        DatabaseDamaged, match=r"There is no moltbot\.db\.backup; .* users may lose their state"
    ):
        await Database(tmp_path, SystemClock()).start()


async def test_an_empty_file_is_new_but_not_beside_what_tells_of_a_life_before(tmp_path: Path) -> None:
    (tmp_path / "moltbot.db").touch()
    (tmp_path / "moltbot.db").chmod(0o666)
    before = await backed_up(tmp_path, 3)
    assert listing(tmp_path)["moltbot.db"] == 0o600
    assert len(before) == 3
    os.truncate(tmp_path / "moltbot.db", 0)
    with pytest.raises(DatabaseDamaged, match=r"empty, but there is a moltbot\.db\.backup"):
        await Database(tmp_path, SystemClock()).start()
    (tmp_path / "moltbot.db").unlink()
    with pytest.raises(DatabaseDamaged, match=r"empty, but there is a moltbot\.db\.backup"):
        await Database(tmp_path, SystemClock()).start()
    (tmp_path / "moltbot.db-wal").write_bytes(b"frames")
    with pytest.raises(DatabaseDamaged, match=r"empty, but its moltbot\.db-wal is not"):
        await Database(tmp_path, SystemClock()).start()


# --- what is not ours ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "error", "words"),
    [
        ("UPDATE meta SET value = '2' WHERE key = 'schema_version'", StartupError, "has schema version 2"),
        ("UPDATE meta SET value = '-1' WHERE key = 'schema_version'", DatabaseDamaged, "no valid schema"),
        ("DELETE FROM meta", DatabaseDamaged, "no valid schema"),
        ("DROP TABLE meta", DatabaseDamaged, "not one of moltbot's"),
        ("ALTER TABLE meta RENAME COLUMN value TO v", DatabaseDamaged, "no such column"),
    ],
)
async def test_a_file_of_another_version_or_program_is_refused_and_not_touched(
    tmp_path: Path, statement: str, error: type[StartupError], words: str
) -> None:
    await backed_up(tmp_path, 3)
    with closing(sqlite3.connect(tmp_path / "moltbot.db")) as connection, connection:
        connection.execute(statement)
    before = (tmp_path / "moltbot.db").read_bytes(), (tmp_path / "moltbot.db.backup").read_bytes()
    with pytest.raises(StartupError, match=words) as caught:
        await Database(tmp_path, SystemClock()).start()
    assert type(caught.value) is error
    assert before == ((tmp_path / "moltbot.db").read_bytes(), (tmp_path / "moltbot.db.backup").read_bytes())


@pytest.mark.parametrize("name", ["moltbot.db", "moltbot.db-wal", "moltbot.db-shm", "moltbot.db-journal"])
async def test_a_link_is_refused_and_not_followed(tmp_path: Path, name: str) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir()
    (base / name).symlink_to(target)
    with pytest.raises(BaseDirectoryError, match=f"{name} is a link"):
        await Database(base, SystemClock()).start()
    assert not target.exists()


async def test_what_is_no_file_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseDirectoryError, match="No such file or directory"):
        await Database(tmp_path / "nowhere", SystemClock()).start()
    os.mkfifo(tmp_path / "moltbot.db")
    with pytest.raises(BaseDirectoryError, match="not a file of the gateway's user"):
        await Database(tmp_path, SystemClock()).start()
