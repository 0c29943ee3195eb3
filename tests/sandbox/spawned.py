"""A real worker process around a one-line program, started as the supervisor starts it; behind no wall unless given one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.plan import Wall
from moltbot.sandbox.launch import LaunchSpec, launch_spec
from moltbot.sandbox.process import Exit, WorkerProcess
from tests.fakes import PATIENCE


class Spawned:
    """The process, its socket (lines of JSON, for the programs of these tests) and what it printed."""

    def __init__(self, process: WorkerProcess, sock: socket.socket, output: Path) -> None:
        self.process = process
        self._sock = sock
        self._output = output
        self._rest = b""
        self._exit: Exit | None = None

    async def line(self) -> str:
        """The next line that the program wrote on descriptor 3."""
        async with asyncio.timeout(PATIENCE):
            while b"\n" not in self._rest:
                data = await asyncio.get_running_loop().sock_recv(self._sock, 65536)
                assert data, f"the program ended: {self.printed()}"
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    async def said(self) -> Any:
        return json.loads(await self.line())

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def at_end(self) -> bool:
        """Wait until nobody holds the other end of the socket."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self._sock, 1) == b""

    async def ended(self) -> Exit:
        """How it ended; asked a second time, the same."""
        async with asyncio.timeout(PATIENCE):
            self._exit = self._exit or await self.process.wait()
        return self._exit

    def printed(self) -> str:
        return self._output.read_text()

    def pids(self) -> set[int]:
        """The root of the tree and all below it."""
        guard = psutil.Process(self.process.root_pid)
        return {guard.pid, *(child.pid for child in guard.children(recursive=True))}


@asynccontextmanager
async def spawned(
    worker: WorkerDirectories, command: list[str], *, wall: Wall | None = None, **settings: Any
) -> AsyncIterator[Spawned]:
    """Run `command` as the worker's program; whatever a test does, its tree is gone afterwards."""
    spec = launch_spec(worker, 1, config_of(command, **settings), os.environ, os.getpid())
    async with spawned_from(spec if wall is None else wall.wrap(spec)) as child:
        yield child


@asynccontextmanager
async def spawned_from(spec: LaunchSpec) -> AsyncIterator[Spawned]:
    """Run exactly this."""
    ours, theirs = socket.socketpair()
    output = spec.directories.root.parent / "printed"
    with ours, open(output, "wb") as file:  # noqa: ASYNC230  # a file in memory, as good as
        ours.setblocking(False)
        with theirs:
            process = await WorkerProcess.spawn(spec, theirs, file.fileno(), file.fileno())
        child = Spawned(process, ours, output)
        try:
            yield child
        finally:
            process.kill()
            process.kill_tree()
            await child.ended()


def config_of(command: list[str], **settings: Any) -> PoolConfig:
    """The configuration of a pool whose workers run `command`."""
    return PoolConfig.read({"workerCommand": command, **settings})


def python(program: str) -> list[str]:
    """A command that runs a Python program."""
    return [sys.executable, "-c", program]


def made(base: Path, owner: int | None = None) -> WorkerDirectories:
    """The directories of `worker-0`, ready for its first incarnation; `owner`: a uid, ours unless given."""
    directories = WorkerDirectories(base, "worker-0")
    owner = os.geteuid() if owner is None else owner
    directories.create(owner)
    directories.open_temp(1, owner)
    return directories
