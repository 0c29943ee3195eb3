"""A real worker process around a one-line program, started as the supervisor starts it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.launch import launch_spec
from moltbot.sandbox.process import Exit, WorkerProcess
from tests.fakes import PATIENCE


class Spawned:
    """The process, its socket (lines of JSON, for the programs of these tests) and what it printed."""

    def __init__(self, process: WorkerProcess, sock: socket.socket, output: Path) -> None:
        self.process = process
        self._sock = sock
        self._output = output
        self._rest = b""

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
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def printed(self) -> str:
        return self._output.read_text()

    def pids(self) -> set[int]:
        """The guard and all below it."""
        guard = psutil.Process(self.process.guard_pid)
        return {guard.pid, *(child.pid for child in guard.children(recursive=True))}


@asynccontextmanager
async def spawned(worker: WorkerDirectories, command: list[str], **settings: Any) -> AsyncIterator[Spawned]:
    """Run `command` as the worker's program; whatever a test does, its tree is gone afterwards."""
    config = PoolConfig.read({"workerCommand": command, **settings})
    spec = launch_spec(worker, 1, config, os.environ, os.getpid())
    ours, theirs = socket.socketpair()
    output = worker.root.parent / "printed"
    with ours, open(output, "wb") as file:  # noqa: ASYNC230  # a file in memory, as good as
        ours.setblocking(False)
        with theirs:
            process = await WorkerProcess.spawn(spec, theirs, file.fileno(), file.fileno())
        child = Spawned(process, ours, output)
        try:
            yield child
        finally:
            process.kill_tree()
            await child.ended()
