"""Base directories that cannot be used, by library and command: one sentence, and nothing is lost or left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moltbot import BaseDirectoryError, DatabaseDamaged, MoltbotError, Request, create_gateway_router
from tests.fakes import descendants
from tests.support import Running, check_sentence, failed, moltbot, pool_config, router_in

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


async def refusal(base: Path, says: str) -> MoltbotError:
    """Start a router in `base`; it must be refused with a sentence and leave no process. Returns the error."""
    before = descendants()
    with pytest.raises(MoltbotError, match=says) as caught:
        await create_gateway_router(pool_config=pool_config(base)).start()
    check_sentence(caught.value.message)
    assert descendants() == before
    return caught.value


async def refused(base: Path, says: str) -> None:
    """By the library and by the command, with the same sentence."""
    error = await refusal(base, says)
    assert type(error) is BaseDirectoryError
    line = failed(moltbot(base.parent, "gateway", "--port", "0", "-w", "1", "-s", str(base)), 1)
    assert line.removeprefix("moltbot: ") == error.message


async def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("precious")
    await refused(tmp_path / "base", "is a file, not a directory")
    assert (tmp_path / "base").read_text() == "precious"


async def test_a_directory_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await refusal(tmp_path / "file" / "base", "a part of .* is a file")


@pytest.mark.parametrize("target", ["real", "missing"])
async def test_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "base").symlink_to(tmp_path / target)
    await refused(tmp_path / "base", "is a link: name the directory itself")
    assert list((tmp_path / "real").iterdir()) == []


async def test_below_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with router_in(tmp_path / "link" / "base") as router:
        assert router.config.sandbox_base_dir == tmp_path / "real" / "base"


async def test_somebody_elses_directory_of_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o755)
    (tmp_path / "base" / "thesis.txt").write_text("precious")
    await refused(tmp_path / "base", "holds other files and is open to others")
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "base").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_another_users_directory(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o700)
    os.chown(tmp_path / "base", 65534, 65534)
    await refused(tmp_path / "base", r"belongs to another user \(uid 65534\)")


@NOT_ROOT
async def test_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    await refused(tmp_path / "closed" / "base", "is not writable")


async def test_a_file_system_that_is_not_writable(tmp_path: Path) -> None:
    await refusal(Path("/proc/moltbot"), "/proc/moltbot")


async def test_an_open_empty_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o777)
    (tmp_path / "base").chmod(0o777)
    async with router_in(tmp_path / "base"):
        for path in (tmp_path / "base").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
        assert (tmp_path / "base").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(options, check=False).returncode != 0:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                if not file.write(b"x" * 4096):
                    break
            except OSError:
                break
    return filler


async def test_a_full_disk(small_disk: Path) -> None:
    filler = fill(small_disk)
    await refusal(small_disk / "base", "space|full|disk")
    filler.unlink()
    async with router_in(small_disk / "base") as router:
        assert (await router.route(Request("count", "ada"))).payload == 1


async def test_a_disk_that_fills_up_while_the_gateway_runs(small_disk: Path) -> None:
    async with router_in(small_disk / "base") as router:
        assert (await router.route(Request("count", "ada"))).payload == 1
        filler = fill(small_disk)
        with pytest.raises(MoltbotError) as caught:
            for number in range(10_000):
                await router.route(Request("count", f"user-{number}"))
        check_sentence(caught.value.message)
        assert (await router.route(Request("echo", "ada", 1))).payload == 1
        filler.unlink()
        assert (await router.route(Request("count", "ada"))).payload == 2
    async with router_in(small_disk / "base") as router:
        assert (await router.route(Request("count", "ada"))).payload == 3


async def test_in_use_by_a_running_gateway(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        error = await refusal(tmp_path / "base", f"running gateway with pid {gateway.process.pid}")
        assert error.details == {"pid": gateway.process.pid, "url": gateway.document["url"]}


async def test_in_use_by_another_router_of_this_process(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        await refusal(tmp_path / "base", f"in use by the running gateway with pid {os.getpid()}")
        assert (await router.route(Request("echo", "ada", 1))).payload == 1
    async with router_in(tmp_path / "base"):
        pass


async def test_left_by_a_killed_gateway_it_is_taken_over(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base") as gateway:
        gateway.process.kill()
        gateway.process.wait()
    assert (tmp_path / "base" / "gateway.json").exists()
    async with router_in(tmp_path / "base") as router:
        assert (await router.route(Request("echo", "ada", 1))).payload == 1


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda data: b"this is not a database at all " * 100,
    "header": lambda data: b"\0" * 100 + data[100:],
    "middle": lambda data: data[:4096] + b"\xa5" * (len(data) - 4096),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_database_is_refused_with_the_way_back_and_the_way_works(
    tmp_path: Path, damage: str
) -> None:
    base = tmp_path / "base"
    async with router_in(base, worker_count=2) as router:
        homes = {
            user: (await router.route(Request("count", user))).worker_id for user in ("ada", "ben", "cy")
        }
    database = base / "moltbot.db"
    database.write_bytes(DAMAGES[damage](database.read_bytes()))
    damaged = database.read_bytes()
    error = await refusal(base, "copy moltbot.db.backup to moltbot.db|moltbot.db.backup; to start anew")
    assert type(error) is DatabaseDamaged
    line = failed(moltbot(tmp_path, "gateway", "--port", "0", "-w", "2", "-s", str(base)), 1)
    assert "moltbot.db.backup" in line
    assert database.read_bytes() == damaged, "what may be needed is not overwritten"
    for suffix in ("", "-wal", "-shm"):
        (base / f"moltbot.db{suffix}").unlink(missing_ok=True)
    shutil.copy(base / "moltbot.db.backup", database)
    async with router_in(base, worker_count=2) as router:
        for user, worker_id in homes.items():
            reply = await router.route(Request("count", user))
            assert (reply.worker_id, reply.payload) == (worker_id, 2)


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir(mode=0o700)
    connection = sqlite3.connect(tmp_path / "base" / "moltbot.db")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    await refusal(tmp_path / "base", "not one of moltbot's")


async def test_what_a_worker_planted_in_its_place_does_not_stop_its_next_start(tmp_path: Path) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    outside.mkdir()
    async with router_in(base):
        pass
    shutil.rmtree(base / "worker-0" / "state")
    (base / "worker-0" / "state").symlink_to(outside)
    async with router_in(base):
        assert (base / "worker-0" / "state").is_dir()
        assert not (base / "worker-0" / "state").is_symlink()
    assert list(outside.iterdir()) == []
