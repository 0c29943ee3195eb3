"""Pools of processes and shared memory work inside of the strongest wall; the middle one says no clearly."""

from __future__ import annotations

import pytest

from tests.legit.walls import Walled, handlers_in

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE = "pools.py"
AT_LANDLOCK = {
    # Every one of them needs a file in /dev/shm, which at this level is everybody's and stays closed.
    **dict.fromkeys(handlers_in(FILE), "PermissionError"),
    "manager": "EOFError",  # its child can make no unix socket, and ends at once
}


@pytest.mark.parametrize("program", handlers_in(FILE))
async def test_an_honest_program(worker: Walled, program: str) -> None:
    await worker.does(program, AT_LANDLOCK)
