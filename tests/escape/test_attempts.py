"""Every attempt to escape, at every isolation level, from inside of a real worker behind a real gateway.

What an attempt must come to at a level is in the tables. At the level `directories` nearly all succeed: that is what shows
that they are attempts at all.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path

import pytest

from moltbot.sandbox.isolation.plan import Level
from tests.escape import (
    attempts_code,
    attempts_files,
    attempts_identity,
    attempts_ipc,
    attempts_kernel,
    attempts_machine,
    attempts_namespaces,
    attempts_network,
    attempts_processes,
    attempts_workers,
)
from tests.escape.harness import World, lone_worker, told
from tests.escape.table import Attempt
from tests.escape.targets import MARKER

ATTEMPTS = (
    *attempts_files.ATTEMPTS,
    *attempts_code.ATTEMPTS,
    *attempts_workers.ATTEMPTS,
    *attempts_processes.ATTEMPTS,
    *attempts_ipc.ATTEMPTS,
    *attempts_identity.ATTEMPTS,
    *attempts_network.ATTEMPTS,
    *attempts_namespaces.ATTEMPTS,
    *attempts_kernel.ATTEMPTS,
    *attempts_machine.ATTEMPTS,
)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_attempt(world: World, attempt: Attempt) -> None:
    expected = attempt.expected[world.level]
    verdict = world.attempt(attempt)
    assert verdict.outcome == expected.outcome, f"{attempt.tries}: {verdict} but {expected}"
    if expected.outcome == "refused":
        assert verdict.how in expected.how, f"{attempt.tries}: {verdict} but {expected}"


def test_the_gateway_and_its_workers_outlive_all_attempts(world: World) -> None:
    assert world.alive()


# --- what no request can try: a descriptor that the wall did not keep out -------------------------------

_GIVEN = """
import errno, json, os, socket
sock = socket.socket(fileno=3)
def tell(**what):
    sock.sendall(json.dumps(what).encode() + b"\\n")
def tried(name, descriptor):
    try:
        with open(os.open(name, os.O_RDONLY, dir_fd=descriptor)) as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno]
"""
_LEAKED = f"""{_GIVEN}
_, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
tell(found=tried("secret", descriptors[0]), up=tried("../beside", descriptors[0]))
"""
_HELD = f"""{_GIVEN}
place = os.environ["TMPDIR"] + "/../../state/held"
place = place if os.path.exists(place) else "/sandbox/state/held"
held = os.open(place, os.O_DIRECTORY)
tell(before=tried("precious", held))
sock.recv(1)
tell(after=tried("precious", held), later=tried("later", held))
"""

_CAPABILITIES = """
import json, os, sys
sock = int(sys.argv[1])
lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
held = [int(lines[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
os.write(sock, json.dumps({"held": held}).encode() + b"\\n")
os.read(sock, 1)
"""
_FOR_THE_CHANGE_OF_UID = 1 << 6 | 1 << 7 | 1 << 8  # CAP_SETGID, CAP_SETUID, CAP_SETPCAP

_levels = pytest.mark.parametrize(
    "level",
    [
        pytest.param(level, id=level.value, marks=pytest.mark.xdist_group(f"escape-{level}"))
        for level in Level
    ],
)


@_levels
async def test_a_leaked_directory_opens_nothing_below_it_nor_beside_it(level: Level, tmp_path: Path) -> None:
    """No namespace and no uid stops it: both files may be read by everybody. Landlock does, also inside of bubblewrap."""
    leaked = tmp_path / "leaked"
    leaked.mkdir(mode=0o755)
    for file in (leaked / "secret", tmp_path / "beside"):
        file.write_text(MARKER)
        file.chmod(0o644)
    descriptor = os.open(leaked, os.O_DIRECTORY | os.O_PATH)
    try:
        async with lone_worker(level, tmp_path, _LEAKED) as (sock, _):
            socket.send_fds(sock, [b"x"], [descriptor])
            found = await asyncio.to_thread(told, sock, tmp_path / "printed")
    finally:
        os.close(descriptor)
    got = MARKER if level is Level.DIRECTORIES else "EACCES"
    assert found == {"found": got, "up": got}


@_levels
async def test_a_held_directory_shows_nothing_of_what_was_copied_away_and_deleted(
    level: Level, tmp_path: Path
) -> None:
    """How a user's state has to move: the old worker's descriptor leads to a folder that is dead."""
    async with lone_worker(level, tmp_path, _HELD) as (sock, root):
        before = await _held(sock, tmp_path)
        moved = tmp_path / "base" / "moved"
        shutil.copytree(root / "state" / "held", moved)
        shutil.rmtree(root / "state" / "held")
        (moved / "later").write_text(MARKER)
        sock.sendall(b"x")
        after = await asyncio.to_thread(told, sock, tmp_path / "printed")
    assert before == {"before": MARKER}
    assert after == {"after": "ENOENT", "later": "ENOENT"}


async def test_a_held_directory_shows_what_is_written_after_a_rename(tmp_path: Path) -> None:
    """Why it must not move by rename: unwalled, the descriptor goes on to show what the next owner writes."""
    async with lone_worker(Level.DIRECTORIES, tmp_path, _HELD) as (sock, root):
        await _held(sock, tmp_path)
        (root / "state" / "held").rename(tmp_path / "base" / "moved")
        (tmp_path / "base" / "moved" / "later").write_text(MARKER)
        sock.sendall(b"x")
        after = await asyncio.to_thread(told, sock, tmp_path / "printed")
    assert after == {"after": MARKER, "later": MARKER}


async def _held(sock: socket.socket, tmp_path: Path) -> object:
    return await asyncio.to_thread(told, sock, tmp_path / "printed")


@pytest.mark.xdist_group("escape-bubblewrap")
async def test_bubblewrap_hands_on_no_capability_but_for_the_change_of_uid(tmp_path: Path) -> None:
    """Before the worker's own first instruction, which gives up the rest: neither relies on the other."""
    async with lone_worker(Level.BUBBLEWRAP, tmp_path, _CAPABILITIES, boot=False) as (sock, _):
        found = await asyncio.to_thread(told, sock, tmp_path / "printed")
        sock.sendall(b"x")
    allowed = _FOR_THE_CHANGE_OF_UID if os.geteuid() == 0 else 0
    assert [value & ~allowed for value in found["held"]] == [0, 0, 0, 0]
