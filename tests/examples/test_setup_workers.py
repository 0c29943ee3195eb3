"""`examples/setup_workers.py` prints what the setup guide shows, and can be run twice."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.examples.running import EXAMPLES

LINE = "─" * 30


async def run_example(*arguments: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "setup_workers.py"),
        *arguments,
        cwd=cwd,
        env={"TMPDIR": str(cwd), "PYTHONIOENCODING": "utf-8"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text
    return text


async def test_prints_what_the_guide_shows_and_leaves_nothing(tmp_path: Path) -> None:
    output = await run_example(cwd=tmp_path)

    expected = f"""Starting worker pool with 3 workers...

Worker pool ready!

Routing assignments:
{LINE}
  user-a     → worker-0
  user-b     → worker-1
  user-c     → worker-2

Verifying sticky routing (10 requests each):
{LINE}
  user-a     → always worker-0
  user-b     → always worker-1
  user-c     → always worker-2

Worker Status:
{LINE}
  worker-0: ready (pid: PID)
  worker-1: ready (pid: PID)
  worker-2: ready (pid: PID)

Stopping workers...
Done!
"""
    assert re.sub(r"pid: \d+", "pid: PID", output) == expected
    assert os.listdir(tmp_path) == []


async def test_a_named_directory_is_kept_and_found_again(tmp_path: Path) -> None:
    first = await run_example("workers", cwd=tmp_path)
    assert (tmp_path / "workers" / "worker-1" / "sandbox.json").is_file()
    second = await run_example("workers", cwd=tmp_path)

    assert "user-b     → always worker-1" in first
    assert "user-b     → always worker-1" in second


async def test_an_unusable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("not a directory")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / "setup_workers.py"),
        "workers",
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert error.decode().startswith("setup_workers: ")
    assert "is a file, not a directory" in error.decode()
    assert "Traceback" not in error.decode()
