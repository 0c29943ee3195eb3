"""Children, pipes, threads and signals work inside of the walls."""

from __future__ import annotations

import sys

import pytest

from tests.legit.walls import Walled, handlers_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE = "processes.py"
AT_LANDLOCK = {"terminal": "OSError: out of pty devices"}


@pytest.mark.parametrize("program", handlers_in(FILE))
async def test_an_honest_program(worker: Walled, program: str) -> None:
    await worker.does(program, AT_LANDLOCK, {"prefix": sys.prefix})
