"""What the tests of pins and of their file share: an open directory, a writer thread that is held, a look at the file.

Clocks and waits that other folders use as well are in `tests/fakes.py`; routers with workers, in `tests/support.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from moltbot.core.clock import Clock, SystemClock
from moltbot.router.database import Database
from moltbot.router.directory import Directory, Pin
from moltbot.router.placement import Placement, place
from moltbot.router.ring import Ring

RING = Ring(["worker-0", "worker-1", "worker-2"])
HERE = Placement("worker-0", "worker-0", "the ring's first choice")


@asynccontextmanager
async def opened(base: Path, clock: Clock | None = None) -> AsyncIterator[Directory]:
    clock = clock or SystemClock()
    async with Database(base, clock) as database, Directory(database, clock) as directory:
        yield directory


def file_of(directory: Directory) -> Database:
    return directory._database


@contextmanager
def held(directory: Directory) -> Iterator[None]:
    """The writer thread is busy with another transaction, of which nobody else is a part, until the block ends."""
    begun, gate = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        begun.set()
        gate.wait(60)

    file_of(directory).submit(wait)
    assert begun.wait(60)
    try:
        yield
    finally:
        gate.set()


async def settle() -> None:
    """Let every task that is ready run until it waits for the writer thread."""
    for _ in range(10):
        await asyncio.sleep(0)


def choose(directory: Directory, user: str) -> Callable[[], Placement]:
    return lambda: place(RING.walk(user), directory.loads())


async def pin_all(directory: Directory, users: list[str]) -> list[Pin]:
    return await asyncio.gather(*(directory.pin(user, choose(directory, user)) for user in users))


def rows(base: Path, name: str = "moltbot.db") -> dict[bytes, tuple[str, int]]:
    """What another process reads from the file."""
    with closing(sqlite3.connect(base / name)) as connection:
        found = connection.execute("SELECT user_id, worker_id, epoch FROM pins")
        return {user_id: (worker_id, epoch) for user_id, worker_id, epoch in found}


def listing(base: Path) -> dict[str, int]:
    """Names and modes of the files in a directory."""
    return {path.name: path.stat().st_mode & 0o777 for path in base.iterdir()}


async def backed_up(base: Path, users: int = 2000) -> dict[bytes, tuple[str, int]]:
    """A file of many pages with a copy beside it."""
    async with opened(base) as directory:
        await pin_all(directory, [f"user-{n}" for n in range(users)])
    return rows(base)


def overwrite(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"\xa5" * 4096)

    return damage
