"""One worker fills its share of the disk with bytes, names or depth: its users are told, all others go on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from moltbot import Request
from moltbot.core.errors import StorageFull
from moltbot.core.events import StorageAlarm
from moltbot.sandbox.isolation.plan import Level
from tests.escape.siege import LEVELS, RESIDENT, Siege, besieged, remove
from tests.fakes import PATIENCE, change_to, first_event

LIMITS = {"max_disk": "20MB", "max_inodes": 1000}

# Each goes on until it is ended, but for its own bound.
BYTES = """
for number in range(8):
    with open(f"{given['where']}/{number}", "wb") as file:
        for _ in range(4):
            file.write(os.urandom(1 << 20))
linger()
"""
NAMES = """
for number in range(1500):
    open(f"{given['where']}/{number}", "w").close()
linger()
"""
DEPTH = """
os.chdir(given["where"])
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
linger()
"""
FILLS = {"bytes": BYTES, "names": NAMES, "depth": DEPTH}


def inside(siege: Siege, part: str, user: str) -> str:
    """A user's directory as the worker names it."""
    incarnation = str(siege.worker().incarnation) if part == "temp" else ""
    top = siege.root / part / incarnation
    return f"/sandbox/{part}/{user}" if siege.level is Level.BUBBLEWRAP else str(top / user)


async def fill(siege: Siege, program: str, part: str) -> Path:
    """Run a program until it is interrupted because the disk is full; returns the folder, as we see it."""
    user = await siege.attacker()
    await siege.inside(
        "import os; [os.makedirs(path, exist_ok=True) for path in (state, cache, temp)]; answer = 1", user
    )
    incarnation = siege.worker().incarnation
    with pytest.raises(StorageFull) as caught:
        await siege.attack(program, user, where=inside(siege, part, user))
    assert (caught.value.worker, caught.value.verdict) == ("worker-0", "maybe_ran")
    alarm = await first_event(siege.events, StorageAlarm, lambda event: event.full)
    assert alarm.worker_id == "worker-0"
    change = await change_to(siege.events, "killing")
    assert change.reason == "over_disk"
    await siege.restarted(incarnation + 1)
    assert siege.marked() == []
    return siege.root / part / user


async def served_again(siege: Siege) -> None:
    """Wait until the worker takes requests; until then it refuses them at once."""
    async with asyncio.timeout(PATIENCE):
        while True:
            error = await refusal(siege)
            if error is None:
                return
            assert (error.verdict, error.retryable) == ("not_started", True)
            await siege.witnessed(1)


async def refusal(siege: Siege) -> StorageFull | None:
    """Why the resident is not served."""
    try:
        await siege.resident()
    except StorageFull as error:
        return error
    return None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("what", "part"), [("bytes", "temp"), ("names", "cache")])
async def test_what_may_be_thrown_away_is_and_the_worker_goes_on(
    tmp_path: Path, level: Level, what: str, part: str
) -> None:
    async with besieged(tmp_path, level, **LIMITS) as siege:
        folder = await fill(siege, FILLS[what], part)
        await served_again(siege)
        assert not folder.exists() or os.listdir(folder) == []
        assert siege.worker().incarnation == 2


@pytest.mark.parametrize("level", LEVELS)
async def test_state_is_never_thrown_away_and_its_worker_is_full_until_somebody_makes_room(
    tmp_path: Path, level: Level
) -> None:
    async with besieged(tmp_path, level, **LIMITS) as siege:
        folder = await fill(siege, FILLS["depth"], "state")
        with pytest.raises(StorageFull):
            await siege.router.route(Request("count", RESIDENT))
        assert folder.joinpath("d", "d").is_dir()
        remove(folder)
        await served_again(siege)
        assert siege.worker().incarnation == 2
