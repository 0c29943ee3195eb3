"""`moltbot workers demo`: the story it tells is true, and when it is not, it says so."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import PATIENCE
from tests.support import command, environment, failed, moltbot

DEMO = ["workers", "demo", "-t", "1ms", "--port", "0"]


def test_the_demo_as_a_story(tmp_path: Path) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", "3", "-s", "base")
    assert (result.returncode, result.stderr) == (0, "")
    for text in (
        "1. Three users say hello",
        "user-a  ->  worker-0",
        "user-b  ->  worker-1",
        "user-c  ->  worker-2",
        "✓ user-a always reached worker-0",
        "3. SIGKILL to worker-1",
        "none failed",
        "worker-1 is back under its name",
        "user-b's 11 turns of conversation are all there",
        "3 of 3 workers ready",
        "All of it was true.",
        "All workers stopped.",
    ):
        assert text in result.stdout
    assert "✗" not in result.stdout
    assert "\x1b" not in result.stdout


def test_the_demo_as_json(tmp_path: Path) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", "3", "-s", "base", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["ok"] is True
    assert document["assignments"] == {"user-a": "worker-0", "user-b": "worker-1", "user-c": "worker-2"}
    assert len(document["checks"]) >= 8
    assert all(check["ok"] for check in document["checks"])
    assert document["crash"]["worker"] == "worker-1"
    assert document["crash"]["otherRequests"] > 0
    assert document["status"]["healthyWorkers"] == 3


@pytest.mark.parametrize("workers", ["1", "5"])
def test_the_demo_is_true_for_any_number_of_workers(tmp_path: Path, workers: str) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", workers, "-s", "base", "--json")
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["status"]["totalWorkers"] == int(workers)


def test_a_second_demo_in_the_same_directory_goes_on_from_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        result = moltbot(tmp_path, *DEMO, "-w", "3", "-s", "base", "--json")
        assert result.returncode == 0, result.stdout
    assert "user-b's 23 turns of conversation are all there" in result.stdout


UNTRUE = {
    "recovery": (
        "from moltbot.sandbox import directories\n"
        "from moltbot.worker import record\n"
        "import moltbot.cli.demo as demo\n"
        "async def no_turns(client, user): demo.calls = getattr(demo, 'calls', 0) + 1; return 10 + demo.calls\n"
        "demo._turns = no_turns\n"
    ),
    "stickiness": (
        "import itertools\n"
        "from moltbot.router.gateway_router import GatewayRouter\n"
        "from moltbot.router.directory import Directory, Pin\n"
        "turns = itertools.count()\n"
        "real = Directory.get\n"
        "def wandering(self, user_id):\n"
        "    pin = real(self, user_id)\n"
        "    return pin and pin._replace(worker_id=f'worker-{next(turns) % 3}')\n"
        "Directory.get = wandering\n"
    ),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_the_demo_of_a_broken_system_does_not_say_that_all_is_well(tmp_path: Path, name: str) -> None:
    program = UNTRUE[name] + "import sys; from moltbot.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, *DEMO, "-w", "3", "-s", "base"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "All of it was true" not in result.stdout


def fresh_directory(printed: str) -> Path:
    """The directory that a demo without -s made for itself."""
    [path] = re.findall(r"workers in (/tmp/moltbot-workers/demo-[0-9a-f]{8}) \.\.\.\n", printed)
    return Path(path)


def test_a_fresh_directory_is_removed_after_success(tmp_path: Path) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", "2")
    assert result.returncode == 0
    assert result.stdout.endswith("\nAll workers stopped.\n")
    assert not fresh_directory(result.stdout).exists()


def test_a_fresh_directory_is_kept_and_named_after_a_failure(tmp_path: Path) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", "1", MOLTBOT_HANDLER="no_such_file.py")
    path = fresh_directory(result.stdout)
    try:
        assert str(path) in failed(result, 1)
        assert result.stdout.endswith(f"\nIts directory is kept: {path}\n")
        assert (path / "worker-0" / "logs").is_dir()
    finally:
        shutil.rmtree(path)


def test_for_a_port_that_is_taken_no_directory_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = moltbot(tmp_path, "workers", "demo", "-w", "1", "-t", "1ms", "--port", port)
    failed(result, 1)
    assert not fresh_directory(result.stdout).exists()
    assert "is kept" not in result.stdout


def test_a_demo_whose_worker_does_not_come_back_fails(tmp_path: Path) -> None:
    result = moltbot(tmp_path, *DEMO, "-w", "3", "-s", "base", MOLTBOT_MAX_RESTART_ATTEMPTS="0")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "All of it was true" not in result.stdout


def test_a_taken_port_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = moltbot(tmp_path, "workers", "demo", "-w", "1", "-t", "1ms", "--port", port, "-s", "base")
        assert f"port {port} is taken by" in failed(result, 1)


@pytest.mark.xdist_group("port 18789")
def test_a_taken_port_that_was_not_asked_for_is_stepped_around(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        # If somebody else has it, it is taken as well as by us.
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", 18789)))
        result = moltbot(tmp_path, "workers", "demo", "-w", "1", "-t", "1ms", "-s", "base")
    assert result.returncode == 0, result.stderr
    assert "port 18789 is taken" in result.stdout
    assert "taking a free one" in result.stdout
    assert "http://127.0.0.1:18789" not in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_waits_for_ctrl_c_ends_by_it(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        command("workers", "demo", "-w", "1", "-t", "0", "--port", "0", "-s", "base"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Until then: "):
            break
    process.send_signal(number)
    rest, stderr = process.communicate(timeout=PATIENCE)
    assert "Stopping at Ctrl+C." in "".join(lines)
    assert rest == "All workers stopped.\nIts directory is kept: base\n"
    assert (process.returncode, stderr) == (0, "")


def test_a_demo_that_is_interrupted_ends_its_workers(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("workers", "demo", "-w", "3", "-t", "0", "--port", "0", "-s", "base"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2. "):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not (tmp_path / "base" / "gateway.json").exists()


def test_a_demo_whose_reader_goes_away_stops_without_a_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("workers", "demo", "-w", "1", "-t", "1ms", "--port", "0", "-s", "base"),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Starting")
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(PATIENCE) != 0
    assert "Traceback" not in stderr
    assert not (tmp_path / "base" / "gateway.json").exists()
