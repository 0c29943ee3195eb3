"""Temporary files, databases, repositories, links, locks and large files work inside of the walls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.legit.walls import Walled, handlers_in, needs

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE = "files.py"
AT_LANDLOCK = {"tmp_and_devices": "PermissionError.*/tmp"}  # there is only the machine's own, for everybody


def grants(base: Path) -> list[Path]:
    """At the level `landlock` git sees that the machine has settings, and stops if it cannot read them."""
    return [path for path in (Path("/etc/gitconfig"),) if path.exists()]


@pytest.mark.parametrize("program", handlers_in(FILE))
async def test_an_honest_program(worker: Walled, program: str) -> None:
    if program == "git":
        needs("git")
    await worker.does(program, AT_LANDLOCK)
