"""100,000 pinned users: what each costs in memory, what they add to a start, and what one lookup takes.

Measured: `Database` and `Directory` alone, without workers, on rows that were put into `moltbot.db` in one transaction; the
start includes SQLite's check of the whole file. The floor is one `SELECT` with the standard library's sqlite3 into a dict
of plain tuples. Each load runs in a process of its own, so that memory is counted from the same beginning. Not
measured: first pins at their own pace, users that are loaded in workers.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path

import psutil
from sqlalchemy import Connection, insert

from benchmarks.runner import Plan, Row, compared, scratch
from moltbot.core.clock import SystemClock
from moltbot.router.database import Database
from moltbot.router.database_file import FILE
from moltbot.router.directory import Directory
from moltbot.router.schema import pins

USERS = 100_000
LOOKUPS = 200_000
MAX_TURNS = 5


def measure(plan: Plan) -> list[Row]:
    with scratch() as base, scratch() as empty:
        asyncio.run(_fill(base, USERS))
        asyncio.run(_fill(empty, 0))
        ours, floors, bare_starts = [], [], []
        for _ in range(min(plan.turns, MAX_TURNS)):
            ours.append(_in_child("ours", base))
            floors.append(_in_child("floor", base))
            bare_starts.append(_in_child("ours", empty)["seconds"] * 1000)
    series = {
        key: ([each[key] * factor for each in ours], [each[key] * factor for each in floors])
        for key, factor in (("bytes", 1.0), ("seconds", 1e3), ("lookup", 1e9))
    }
    return [
        compared(f"{USERS:,} pins, memory per user", "bytes", *series["bytes"]),
        compared(f"{USERS:,} pins, start", "ms", *series["seconds"]),
        Row("no pins, start", "ms", statistics.median(bare_starts)),
        compared(f"{USERS:,} pins, one lookup", "ns", *series["lookup"]),
    ]


async def _fill(base: Path, count: int) -> None:
    rows = [
        {
            "user_id": f"user-{index}".encode(),
            "worker_id": f"worker-{index % 4}",
            "epoch": 1,
            "since": 1.7e9 + index,
            "why": "the ring's first choice",
        }
        for index in range(count)
    ]

    def fill(connection: Connection) -> None:
        if rows:
            connection.execute(insert(pins), rows)

    async with Database(base, SystemClock()) as opened:
        await opened.transact(fill)


def _in_child(what: str, base: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.pins", what, str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


# --- in the child ----------------------------------------------------------------------------------------


async def _ours(base: Path) -> dict[str, float]:
    before = _private_bytes()
    begun = time.perf_counter()
    async with Database(base, SystemClock()) as opened:
        directory = Directory(opened, SystemClock())
        await directory.start()
        seconds = time.perf_counter() - begun
        figures = _figures(before, seconds, timeit.timeit(lambda: directory.get("user-4711"), number=LOOKUPS))
        await directory.stop()
    return figures


def _floor(base: Path) -> dict[str, float]:
    before = _private_bytes()
    begun = time.perf_counter()
    with sqlite3.connect(base / FILE) as connection:
        found = {row[0].decode(): row[1:] for row in connection.execute("SELECT * FROM pins")}
    connection.close()
    seconds = time.perf_counter() - begun
    return _figures(before, seconds, timeit.timeit(lambda: found["user-4711"], number=LOOKUPS))


def _figures(before: int, seconds: float, lookups: float) -> dict[str, float]:
    return {"bytes": (_private_bytes() - before) / USERS, "seconds": seconds, "lookup": lookups / LOOKUPS}


def _private_bytes() -> int:
    gc.collect()
    uss: int = psutil.Process().memory_full_info().uss
    return uss


if __name__ == "__main__":
    _what, _base = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(asyncio.run(_ours(_base)) if _what == "ours" else _floor(_base)))
