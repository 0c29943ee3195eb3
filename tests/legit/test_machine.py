"""What a program asks of its machine is answered inside of the walls: processors, time, language, output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes import eventually
from tests.legit.walls import Walled, handlers_in, needs

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE = "machine.py"
DESCRIBED = Path("/etc/os-release").exists()
AT_LANDLOCK = {
    "proc": "PermissionError.*/proc",  # of all processes of the machine, so it stays closed
    "psutil": "PermissionError|AccessDenied",
    "usual_tools": "ps.*proc",
}
SAID = {
    "output": ["print", "error", "logging", "context", "child", "child-error"],
    "output_by_name": ["stdout", "stderr"],
}


@pytest.mark.parametrize("program", handlers_in(FILE))
async def test_an_honest_program(worker: Walled, program: str) -> None:
    if program == "compiler":
        needs("cc")
    payload = {
        "word": f"word-of-{worker.level}",
        "processors": os.cpu_count(),
        "described": DESCRIBED,
    }
    await worker.does(program, AT_LANDLOCK, payload)
    said = [f"{payload['word']} {what}" for what in SAID.get(program, ())]
    await eventually(lambda: all(line in worker.log for line in said))
