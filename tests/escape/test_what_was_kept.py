"""What somebody keeps after its worker has ended: pipes into the log, and sockets in a folder that workers may write to."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.clock import SystemClock
from moltbot.core.errors import SettingsError
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.plan import Level
from moltbot.sandbox.isolation.view import view_of
from moltbot.sandbox.logs import LogPump
from tests.fakes import eventually
from tests.legit.walls import walled
from tests.support import BEHAVIOURS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SETTINGS = ["read_only_paths", "read_write_paths"]

# --- pipes that somebody keeps ------------------------------------------------------------------------------


@pytest.fixture
def pump() -> Iterator[LogPump]:
    pump = LogPump(SystemClock())
    pump.start()
    yield pump
    pump.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_pipes_of_an_ended_incarnation_are_closed_whoever_holds_them(
    pump: LogPump, tmp_path: Path
) -> None:
    path, beside, held = tmp_path / "worker.log", tmp_path / "beside.log", []
    other = pump.attach(beside, 1)
    os.write(pump.attach(path, 1)[0], b"x\n")
    await eventually(path.exists)
    before = descriptors()
    for incarnation in range(2, 20):
        out, err = pump.attach(path, incarnation)
        held += [out, err]
        os.write(out, f"early {incarnation}\nand half a line".encode())
    await eventually(lambda: "early 19" in path.read_text())
    await eventually(lambda: descriptors() <= before + len(held))
    for incarnation in range(2, 19):
        assert f"#{incarnation} out early {incarnation}\n" in path.read_text()
        assert f"#{incarnation} out and half a line\n" in path.read_text()
    for descriptor in held[:-2]:
        with pytest.raises(BrokenPipeError):
            os.write(descriptor, b"late")
    os.write(held[-1], b"still heard\n")
    os.write(other[0], b"another worker\n")
    await eventually(lambda: "#19 err still heard" in path.read_text())
    await eventually(lambda: beside.exists() and "another worker" in beside.read_text())
    for descriptor in (*held, *other):
        os.close(descriptor)


async def test_who_writes_into_them_all_the_time_does_not_end_the_log(pump: LogPump, tmp_path: Path) -> None:
    path, beside, floods = tmp_path / "worker.log", tmp_path / "beside.log", []
    [thread] = (thread for thread in threading.enumerate() if thread.name == "worker-logs")
    other = pump.attach(beside, 1)
    for incarnation in range(1, 40):
        for descriptor in pump.attach(path, incarnation):
            flood = threading.Thread(target=write_until_closed, args=(descriptor,), daemon=True)
            flood.start()
            floods.append(flood)
    for descriptor in pump.attach(path, 40):
        os.close(descriptor)
    os.write(other[0], b"another worker\n")
    await eventually(
        lambda: not thread.is_alive() or (beside.exists() and "another worker" in beside.read_text())
    )
    assert thread.is_alive(), "else nothing that any worker prints is read again"
    await eventually(lambda: not any(flood.is_alive() for flood in floods))
    for descriptor in other:
        os.close(descriptor)


def write_until_closed(descriptor: int) -> None:
    try:
        while True:
            os.write(descriptor, b"x\n")
    except BrokenPipeError:
        os.close(descriptor)


# --- sockets that nobody listens on -------------------------------------------------------------------------


def grant(tmp_path: Path, setting: str, folder: Path) -> None:
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"sandbox_base_dir": base, setting: [folder]}
    view_of(PoolConfig.read(settings), base)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("depth", [1, 30], ids=["near", "with a long path"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "packets"])
def test_a_socket_is_a_door_only_while_somebody_listens(
    tmp_path: Path, setting: str, depth: int, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = tmp_path / "granted"
    folder = granted.joinpath(*["folder"] * depth)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert (len(bytes(folder / "door")) > 108) is (depth == 30) or depth == 1
    with socket.socket(socket.AF_UNIX, kind) as door:
        door.bind("door")
        door.listen(0)
        for _ in range(3):  # the later ones find no place in the queue
            with pytest.raises(SettingsError, match="is a socket, behind which something listens"):
                grant(tmp_path, setting, granted)
    grant(tmp_path, setting, granted)


@pytest.mark.parametrize("level", [Level.BUBBLEWRAP, Level.LANDLOCK])
async def test_a_pool_starts_with_a_socket_that_was_left_behind(
    tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = tmp_path / "granted"
    granted.mkdir()
    monkeypatch.chdir(granted)
    settings: dict[str, Any] = {"handler": BEHAVIOURS, "read_write_paths": [granted]}
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("door")
        door.listen()
        with pytest.raises(SettingsError, match="behind which something listens"):
            async with walled(tmp_path / "base", level, **settings):
                pass
    async with walled(tmp_path / "base", level, **settings) as worker:
        assert worker.router.get_status() is not None
