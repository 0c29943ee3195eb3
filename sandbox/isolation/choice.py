"""Which wall works on this machine: the strongest in which a real worker comes up and is found to be walled.

What each wall is, is in its own module; what a person can do about a level that does not work, in `remedies.py`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moltbot.core.errors import (
    BaseDirectoryError,
    IsolationUnavailable,
    ProtocolError,
    SettingsError,
    clean_text,
)
from moltbot.core.frames import PROTOCOL_VERSION
from moltbot.core.framing import Decoder, encode
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import PROBE, WorkerDirectories, remove_trees, worker_name
from moltbot.sandbox.isolation.bubblewrap import BubblewrapWall
from moltbot.sandbox.isolation.directories import DirectoriesWall
from moltbot.sandbox.isolation.landlock import LandlockWall
from moltbot.sandbox.isolation.plan import Ground, Level, Wall
from moltbot.sandbox.isolation.programs import find_bwrap
from moltbot.sandbox.isolation.view import View, view_of
from moltbot.sandbox.isolation.witness import shortcomings
from moltbot.sandbox.launch import hello_config, launch_spec
from moltbot.sandbox.process import WorkerProcess, worker_sockets
from moltbot.sandbox.setting_kinds import MAX_WORKERS

PROBE_SECONDS = 20.0
_OUTPUT_SHOWN = 600

_shown: set[Hashable] = set()
"""What has worked in this process needs no second probe; that it holds is checked for every worker."""


@dataclass(frozen=True, slots=True)
class Choice:
    """passed_over: stronger levels that do not work here, with the reasons."""

    wall: Wall
    passed_over: tuple[str, ...]


async def choose_wall(config: PoolConfig, base: Path, gateway_ports: tuple[int, ...] = ()) -> Choice:
    """Return the wall to use; raises SettingsError for impossible grants, IsolationUnavailable if no allowed level works."""
    view = await asyncio.to_thread(view_of, config, base)
    ground = Ground(base, gateway_ports, first_uid(config.worker_uids, base))
    reasons: list[str] = []
    for wall in candidates(config, ground, view):
        if not is_allowed(wall.level, config):
            continue
        check_handler_readable(wall, view)
        reason = await probe(wall, config)
        if reason is None:
            return Choice(wall, tuple(reasons))
        reasons.append(f"{wall.level} does not work here ({reason})")
    raise IsolationUnavailable(
        f"{'; '.join(reasons)}: `moltbot doctor` says what would help"
        f"{'' if config.isolation == 'auto' else ', or set isolation = auto'}",
        details={"reasons": reasons},
    )


def recorded_wall(config: PoolConfig, directories: WorkerDirectories, base: Path) -> tuple[Wall, PoolConfig]:
    """The wall behind which a worker was last started, and the settings that it was made from; tries nothing.

    Raises BaseDirectoryError if it cannot be made again here.
    """
    record = directories.read_record()
    config = PoolConfig.read(config.model_dump(exclude_unset=True) | record.settings, source="sandbox.json")
    ground = Ground(base, (), first_uid(config.worker_uids, base))
    for wall in candidates(config, ground, view_of(config, base)):
        same_owner = wall.owner(directories.worker_id) == record.owner
        if wall.level == record.level and record.program in (None, str(wall.program)) and same_owner:
            return wall, config
    raise BaseDirectoryError(
        f"{directories.worker_id} was last started at isolation level {record.level} with uid {record.owner}, which is not what "
        "this user and these settings give: run this as the gateway's user, with the gateway's settings"
    )


def candidates(config: PoolConfig, ground: Ground, view: View) -> Iterator[Wall]:
    """Every wall there is, strongest first; bubblewrap once for each program that could be used."""
    programs: list[Path | None] = [*find_bwrap()]
    for bwrap in programs or [None]:
        yield BubblewrapWall.of(config, ground, view, bwrap)
    yield LandlockWall.of(config, ground, view)
    yield DirectoriesWall(ground)


def is_allowed(level: Level, config: PoolConfig) -> bool:
    """True if `isolation` and `min_isolation` let a gateway run at this level."""
    return level.at_least(Level(config.min_isolation)) and config.isolation in ("auto", level)


def first_uid(uids: tuple[int, int], base: Path) -> int:
    """The first of a block of uids for the workers of this base directory; gateways side by side rarely share one."""
    blocks = (uids[1] - uids[0] + 1) // MAX_WORKERS
    return uids[0] + zlib.crc32(os.fsencode(base)) % blocks * MAX_WORKERS


def check_handler_readable(wall: Wall, view: View) -> None:
    """An author's private file is no reason for a weaker wall but an error with a simple remedy: raises SettingsError."""
    if wall.owner(worker_name(0)) == os.geteuid():
        return
    for path in view.handler:
        wanted = 0o5 if path.is_dir() else 0o4
        if path.stat().st_mode & wanted != wanted:
            raise SettingsError(
                f"{path} cannot be read by the workers, which have uids of their own: chmod -R o+rX {path}"
            )


async def probe(wall: Wall, config: PoolConfig) -> str | None:
    """Run a real worker in the wall; None if it came up and is walled, else why not, in one line."""
    obstacle = wall.obstacle()
    if obstacle is not None or wall.level is Level.DIRECTORIES:
        return obstacle
    key = _key(wall)
    if key in _shown:
        return None
    reason = await _try(wall, config)
    if reason is None:
        _shown.add(key)
    return reason


def _key(wall: Wall) -> Hashable:
    """The same but for the directory, on the same disk."""
    assert isinstance(wall, BubblewrapWall | LandlockWall)
    return wall.level, wall.program, wall.network, wall.view, os.stat(wall.ground.base).st_dev


async def _try(wall: Wall, config: PoolConfig) -> str | None:
    plain = PoolConfig.read({"max_processes": config.max_processes, "max_open_files": config.max_open_files})
    folder = wall.ground.base / f"{PROBE}{secrets.token_hex(8)}"
    directories = WorkerDirectories(folder, worker_name(0))
    folder.mkdir(mode=0o700)
    try:
        owner = wall.owner(directories.worker_id)
        try:
            directories.create(owner)
            directories.open_temp(1, owner)
        except BaseDirectoryError as error:
            return f"uid {owner} cannot be given a directory: {error.message}"
        with tempfile.TemporaryFile() as output:
            reason = await _run(wall, directories, plain, output.fileno())
            output.seek(0)
            printed = " ".join(output.read(4 * _OUTPUT_SHOWN).decode(errors="replace").split())
        return f"{reason}: {clean_text(printed)[:_OUTPUT_SHOWN]}" if reason and printed else reason
    finally:
        await remove_trees([str(folder)])


async def _run(wall: Wall, directories: WorkerDirectories, config: PoolConfig, output: int) -> str | None:
    spec = wall.wrap(launch_spec(directories, 1, config, {}, os.getpid()))
    ours, theirs = worker_sockets()
    with ours:
        with theirs:
            try:
                process = await WorkerProcess.spawn(spec, theirs, output, output)
            except OSError as error:
                return f"it cannot be started ({error.strerror})"
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if not await _greet(ours, hello_config(spec.places, config)):
                    return "a worker in it ended at once"
            process.identify()
            if process.worker_pid is None:
                return "the worker's process is not found from outside"
            return "; ".join(shortcomings(process.worker_pid, wall.evidence(directories.worker_id))) or None
        except TimeoutError:
            return f"a worker in it was not ready within {PROBE_SECONDS:.0f} s"
        finally:
            process.kill()
            await process.wait()


async def _greet(sock: socket.socket, config: dict[str, object]) -> bool:
    """Say hello and wait for the worker to be ready; False if it ended."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    hello = {"kind": "hello", "v": PROTOCOL_VERSION, "worker_id": worker_name(0), "incarnation": 1}
    decoder = Decoder()
    try:
        await loop.sock_sendall(sock, encode(hello | {"config": config}))
        while data := await loop.sock_recv(sock, 65536):
            decoder.feed(data)
            while found := decoder.next_frame():
                if found[0].get("kind") == "ready":
                    return True
    except (OSError, ProtocolError):
        pass
    return False
