"""Forgetting a user across the ends of the gateway: no crash leaves it half done, and a lost key is told.

What forgetting leaves while nothing goes wrong is in `test_forgetting.py`.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from moltbot import NotRunning, Request, StartupError, UserForgetting
from moltbot.core.events import UserForgotten
from moltbot.router import forgetting
from tests.fakes import PATIENCE, eventually, first_event
from tests.router.test_forgetting import ADA, MARK, count, count_rows, traces
from tests.support import router_in

HERE = Path(__file__).parents[2]

CRASHING = f"""
import asyncio, os, signal, sys
from pathlib import Path
from moltbot import Request
from moltbot.router import forgetting
from moltbot.sandbox.remains import delete_user_files
from tests.support import router_in

async def crash(forgettings, one):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with router_in(Path(sys.argv[1])) as router:
        await router.route(Request("count", "ben"))
        await router.route(Request("leave_traces", {ADA!r}, {MARK!r}))
        await router.database.backup()
        forgetting.STEPS = (*forgetting.STEPS[:int(sys.argv[2])], crash)
        await router.forget({ADA!r})

asyncio.run(main())
"""


@pytest.mark.parametrize("steps", range(len(forgetting.STEPS) + 1))
async def test_a_crash_after_each_step(tmp_path: Path, steps: int) -> None:
    base = tmp_path / "base"
    command = [sys.executable, "-c", CRASHING, str(base), str(steps)]
    ended = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=PATIENCE, check=False, cwd=HERE
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    async with router_in(base) as router:
        if steps == 0:  # it was not certain yet
            assert await count(router, ADA) == (1, 1)
            assert traces(base)
            return
        if count_rows(base)["forgettings"]:
            with pytest.raises(UserForgetting):
                await count(router, ADA)
            await router.forget(ADA)
        await eventually(lambda: traces(base) == [])
        await eventually(lambda: scrubbed(base))
        assert count_rows(base) == {"pins": 1, "outcomes": 0, "tokens": 0, "forgettings": 0, "tombstones": 1}
        assert await count(router, ADA) == (1, 2)
        assert await count(router, "ben") == (2, 1)


def scrubbed(base: Path) -> bool:
    with closing(sqlite3.connect(f"file:{base / 'moltbot.db'}?mode=ro", uri=True)) as connection:
        return not connection.execute("SELECT 1 FROM tombstones WHERE NOT scrubbed").fetchall()


async def test_a_router_that_stops_meanwhile_goes_on_at_its_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr("moltbot.router.forgetting.delete_user_files", never)
        async with router_in(tmp_path / "base") as router:
            await router.route(Request("leave_traces", ADA, MARK))
            with router.events() as events:
                asked = asyncio.create_task(router.forget(ADA, PATIENCE))
                await first_event(events, UserForgotten)
        with pytest.raises(NotRunning):
            await asked
    async with router_in(tmp_path / "base"):
        await eventually(lambda: traces(tmp_path / "base") == [])


# --- the key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [None, "another-key-of-43-characters-and-some-more\n"])
async def test_a_lost_key_is_not_replaced_in_silence(tmp_path: Path, other: str | None) -> None:
    base = tmp_path / "base"
    async with router_in(base) as router:
        await count(router, ADA)
        await router.forget(ADA)
    key = (base / "key").read_text()
    if other is None:
        (base / "key").unlink()
    else:
        (base / "key").write_text(other)
    with pytest.raises(StartupError, match="restore it from a backup; or, accepting") as caught:
        async with router_in(base):
            pass
    assert (base / "key").exists() == (other is not None)
    if other is None:
        with closing(sqlite3.connect(base / "moltbot.db")) as connection, connection:
            connection.execute(caught.value.message.split('"')[1])
    else:
        (base / "key").write_text(key)
    async with router_in(base) as router:
        assert await count(router, ADA) == (1, 1 if other is None else 2)
