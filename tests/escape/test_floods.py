"""One worker floods whatever there is: it is bounded or ended, and nobody else notices."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from moltbot import WorkerDied
from moltbot.sandbox.isolation.plan import Level
from moltbot.sandbox.logs import LOG_BACKUPS, MAX_LOG_BYTES
from tests.escape.attempts_floods import FLOODS, Flood
from tests.escape.siege import LEVELS, Siege, besieged

LOG_SLACK = 1 << 20  # one write more than the limit, on each of the files


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name)
async def test_a_flood_is_bounded_and_nobody_else_notices(tmp_path: Path, level: Level, flood: Flood) -> None:
    fate = flood.expected[level]
    async with besieged(tmp_path, level, **flood.settings) as siege:
        incarnation = siege.worker().incarnation
        attack = siege.attack(flood.program, careful=level is not Level.BUBBLEWRAP)
        said, ended = await outcome(attack)
        if ended is None:
            assert said in fate.says
            await siege.witnessed()
            await siege.resident()
            assert siege.worker().incarnation == incarnation, "a flood that is refused costs no restart"
        else:
            assert ended in fate.ends
            await siege.restarted(incarnation + 1)
            assert siege.marked() == []
        check_traces(siege, tmp_path)


async def outcome(attack: Coroutine[Any, Any, Any]) -> tuple[str, str | None]:
    """What the program said, and the reason for which the worker ended if it did."""
    try:
        return await attack or "killed", None
    except WorkerDied as error:
        return "", error.reason


def check_traces(siege: Siege, tmp_path: Path) -> None:
    """Logs are bounded, and there is no image of memory anywhere."""
    logs = list((siege.root / "logs").iterdir())
    assert len(logs) <= 1 + LOG_BACKUPS
    assert all(log.stat().st_size <= MAX_LOG_BYTES + LOG_SLACK for log in logs)
    assert [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith("core")] == []
