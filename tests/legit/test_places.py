"""A handler may lie wherever an author keeps it, and its user's state outlives worker and gateway."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.examples.running import EXAMPLES
from tests.fakes import change_to
from tests.legit.walls import needs, walled
from tests.support import BEHAVIOURS

HANDLER = """
import sys
from pathlib import Path
from moltbot import handler

@handler("agent")
async def agent(ctx, payload):
    assert sys.path[0] == str(Path(__file__).parent)
    ctx.state["count"] = ctx.state.get("count", 0) + 1
    return [__file__, __name__, ctx.state["count"]]
"""


def written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HANDLER)
    path.chmod(0o644)
    return path


def plain(folder: Path) -> Path:
    return written(folder / "my_agent.py")


def spaces_and_letters(folder: Path) -> Path:
    return written(folder / "meine Ordner, größer" / "文件 'x\"" / "my_agent.py")


def link(folder: Path) -> Path:
    written(folder / "real" / "other_name.py")
    (folder / "links").mkdir()
    (folder / "links" / "my_agent.py").symlink_to("../real/other_name.py")
    return folder / "links" / "my_agent.py"


def below_a_link(folder: Path) -> Path:
    written(folder / "real" / "my_agent.py")
    (folder / "linked").symlink_to("real")
    return folder / "linked" / "my_agent.py"


def private_home(folder: Path) -> Path:
    path = written(folder / "home" / "ada" / "agents" / "my_agent.py")
    (folder / "home" / "ada").chmod(0o700)
    return path


@pytest.mark.parametrize("place", [plain, spaces_and_letters, link, below_a_link, private_home])
@pytest.mark.parametrize("top", ["tmp", "test"])
async def test_a_handler_file(tmp_path: Path, place: Callable[[Path], Path], top: str) -> None:
    """Both below /tmp, of which a worker has its own, and wherever this test has its directory."""
    with tempfile.TemporaryDirectory(dir="/tmp" if top == "tmp" else tmp_path) as folder:
        path = place(Path(folder))
        async with walled(tmp_path / "base", handler=str(path)) as worker:
            assert await worker.ask("agent") == [str(path), "my_agent", 1]


@pytest.mark.parametrize("settings", [{}, {"durable_state": True}], ids=["quick", "durable"])
async def test_state_and_conversation_survive_the_worker_and_the_gateway(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with walled(tmp_path / "base", handler=BEHAVIOURS, restart_delay=0, **settings) as worker:
        assert [await worker.ask("count") for _ in range(3)] == [1, 2, 3]
        status = worker.router.get_status()
        assert status is not None
        assert status.isolation == worker.level
        pid = status.workers[0].pid
        assert pid is not None
        with worker.router.events() as events:
            os.kill(pid, signal.SIGKILL)
            await change_to(events, "ready", incarnation=2)
        assert await worker.ask("count") == 4
    async with walled(tmp_path / "base", handler=BEHAVIOURS, **settings) as worker:
        assert await worker.ask("count") == 5
        assert await worker.ask("history") == [{"count": number} for number in range(1, 6)]


async def test_a_worker_without_python(tmp_path: Path) -> None:
    needs("node")
    command = ["node", str(EXAMPLES / "node_worker.js")]
    async with walled(tmp_path / "base", worker_command=command, restart_delay=0) as worker:
        for turn in (1, 2):
            reply = await worker.ask("agent", {"message": "hi"})
            assert reply == f"worker-0 runs Node, turn {turn} with you. You said: hi"
        status = worker.router.get_status()
        assert status is not None
        assert status.workers[0].pid is not None
        with worker.router.events() as events:
            os.kill(status.workers[0].pid, signal.SIGKILL)
            await change_to(events, "ready", incarnation=2)
        assert "turn 3 " in await worker.ask("agent", {"message": "hi"})
