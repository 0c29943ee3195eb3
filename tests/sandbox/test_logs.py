"""What workers print: tagged, escaped, bounded, and no worker can stop the log of another."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moltbot.core.clock import SystemClock
from moltbot.sandbox import logs as logs_module
from moltbot.sandbox.logs import LOG_BACKUPS, MAX_LINE_BYTES, MAX_LOG_BYTES, LogPump
from moltbot.sandbox.pool_log import pool_log_handler
from tests.fakes import PATIENCE, eventually


@pytest.fixture
def pump() -> Iterator[LogPump]:
    pump = LogPump(SystemClock())
    pump.start()
    yield pump
    pump.stop()


def log_of(tmp_path: Path, worker: str = "worker-0") -> Path:
    (tmp_path / worker).mkdir(exist_ok=True)
    return tmp_path / worker / "worker.log"


def write(descriptor: int, data: bytes) -> None:
    """Write all and close, as a process that ends."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.close(descriptor)


def lines(path: Path) -> list[str]:
    """The log without its time stamps."""
    text = path.read_text() if path.exists() else ""
    stamped = text.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ #", line) for line in stamped), stamped
    return [line.split(" ", 1)[1] for line in stamped]


def printed(pump: LogPump, path: Path, data: bytes) -> list[str]:
    """What becomes of `data` on standard output of incarnation 1."""
    stdout, stderr = pump.attach(path, 1)
    os.close(stderr)
    write(stdout, data)
    pump.stop()
    return lines(path)


def total(path: Path) -> int:
    return sum(file.stat().st_size for file in path.parent.iterdir())


# --- what lands where -------------------------------------------------------------------------------------------


async def test_both_streams_land_with_stamp_incarnation_and_name(pump: LogPump, tmp_path: Path) -> None:
    path = log_of(tmp_path)
    for incarnation in (7, 8):
        stdout, stderr = pump.attach(path, incarnation)
        write(stdout, b"hello\nworld\n")
        write(stderr, b"oh no\n")
    await eventually(lambda: len(lines(path)) == 6)
    assert sorted(lines(path)) == sorted(
        f"#{incarnation} {line}" for incarnation in (7, 8) for line in ("out hello", "out world", "err oh no")
    )


def test_the_order_of_a_stream_is_kept(pump: LogPump, tmp_path: Path) -> None:
    found = printed(pump, log_of(tmp_path), b"".join(b"%d\n" % number for number in range(2000)))
    assert found == [f"#1 out {number}" for number in range(2000)]


def test_control_characters_are_escaped_and_tabs_and_letters_are_not(pump: LogPump, tmp_path: Path) -> None:
    found = printed(pump, log_of(tmp_path), "\x1b[2J\rroot#\x00\x7f\x9b tab\there äöü 🙂\n".encode())
    assert found == ["#1 out \\x1b[2J\\x0droot#\\x00\\x7f\\x9b tab\there äöü 🙂"]


def test_what_is_no_utf_8_is_shown_as_bytes(pump: LogPump, tmp_path: Path) -> None:
    assert printed(pump, log_of(tmp_path), b"caf\xe9 \xff\n") == ["#1 out caf\\xe9 \\xff"]


@pytest.mark.parametrize("ended", [b"", b"\n"], ids=["unended", "ended"])
def test_a_very_long_line_comes_in_pieces_and_is_not_held_in_memory(
    pump: LogPump, tmp_path: Path, ended: bytes
) -> None:
    found = printed(pump, log_of(tmp_path), b"x" * (300 << 10) + ended)
    assert "".join(line.removeprefix("#1 out ") for line in found) == "x" * (300 << 10)
    assert max(map(len, found)) < 10 * MAX_LINE_BYTES


def test_the_log_file_is_ours_alone(pump: LogPump, tmp_path: Path) -> None:
    path = log_of(tmp_path)
    printed(pump, path, b"hello\n")
    assert path.stat().st_mode & 0o777 == 0o600


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(5))
def test_stop_reads_what_is_left_also_a_line_without_an_end(
    pump: LogPump, tmp_path: Path, attempt: int
) -> None:
    path = log_of(tmp_path)
    stdout, stderr = pump.attach(path, 1)
    write(stdout, b"first\nlast words")
    os.write(stderr, b"of one who lives on")
    pump.stop()
    os.close(stderr)
    assert sorted(lines(path)) == ["#1 err of one who lives on", "#1 out first", "#1 out last words"]


def test_stop_may_be_repeated_and_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    pump = LogPump(SystemClock())
    pump.start()
    ends = pump.attach(log_of(tmp_path), 1)
    pump.stop()
    pump.stop()
    for end in ends:
        os.close(end)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert "worker-logs" not in {thread.name for thread in threading.enumerate()}


# --- bounds -------------------------------------------------------------------------------------------------------


def test_rotation_keeps_a_bounded_number_of_bounded_files(
    pump: LogPump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "MAX_LOG_BYTES", 300_000)
    path = log_of(tmp_path)
    printed(pump, path, b"".join(b"line %d\n" % number for number in range(40_000)))
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "worker.log",
        *(f"worker.log.{number}" for number in range(1, LOG_BACKUPS + 1)),
    ]
    assert total(path) <= 300_000 * (LOG_BACKUPS + 1)
    assert lines(path)[-1] == "#1 out line 39999"


async def test_a_flood_is_bounded_counted_and_does_not_hold_up_another_worker(
    pump: LogPump, tmp_path: Path
) -> None:
    noisy, quiet = log_of(tmp_path, "worker-0"), log_of(tmp_path, "worker-1")
    flood, unused = pump.attach(noisy, 1)
    os.close(unused)
    flooding = threading.Thread(target=write, args=(flood, (b"y" * 99 + b"\n") * 500_000))
    flooding.start()
    while flooding.is_alive():
        stdout, stderr = pump.attach(quiet, 1)
        os.close(stderr)
        count = len(lines(quiet))
        write(stdout, b"still here\n")
        await eventually(lambda count=count: len(lines(quiet)) > count)  # type: ignore[misc]
    flooding.join(PATIENCE)
    pump.stop()
    assert total(noisy) <= MAX_LOG_BYTES * (LOG_BACKUPS + 1)
    text = "".join(file.read_text() for file in noisy.parent.iterdir())
    dropped = sum(map(int, re.findall(r"\.\.\. (\d+) bytes were dropped here", text)))
    kept = text.count("y") * 100 // 99
    assert dropped > 0
    assert dropped + kept == pytest.approx(50_000_000, abs=10_000), "each byte is kept or counted"


# --- what a worker may have planted ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "directory"])
def test_what_was_planted_in_place_of_a_log_is_not_followed_and_stops_nobody(
    pump: LogPump, tmp_path: Path, kind: str
) -> None:
    path, other = log_of(tmp_path, "worker-0"), log_of(tmp_path, "worker-1")
    outside = tmp_path / "outside"
    match kind:
        case "link":
            outside.write_text("kept")
            path.symlink_to(outside)
        case "dangling link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    for log in (path, other):
        stdout, stderr = pump.attach(log, 1)
        os.close(stderr)
        write(stdout, b"hello\n")
    stopper = threading.Thread(target=pump.stop, daemon=True)
    stopper.start()
    stopper.join(10)
    assert not stopper.is_alive(), "a pipe that nobody reads must not hold up the log of all"
    assert lines(other) == ["#1 out hello"]
    assert not outside.exists() or outside.read_text() == "kept"


def test_the_pools_own_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-pool.log").symlink_to(tmp_path / "outside")
    handler = pool_log_handler(tmp_path / "logs")
    handler.handle(logging.makeLogRecord({"msg": "hello"}))
    handler.close()
    assert not (tmp_path / "outside").exists()


def test_the_pools_own_log_has_time_level_and_name(tmp_path: Path) -> None:
    handler = pool_log_handler(tmp_path / "logs")
    handler.handle(logging.makeLogRecord({"msg": "hello", "name": "moltbot.x", "levelname": "INFO"}))
    handler.close()
    assert (tmp_path / "logs" / "worker-pool.log").read_text().endswith(" INFO moltbot.x hello\n")
