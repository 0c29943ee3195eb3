"""A real gateway at one isolation level, and around it everything that an attempt could be after.

`World` has two workers with a user on each, and runs attempts as requests of the user on worker-0. What lies around them
is made by the gateway's own user, so that at the level `directories` nothing stands in the way: there nearly every attempt
succeeds, which shows that it is a real one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

from moltbot import Request
from moltbot.core.errors import IsolationUnavailable
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import create_gateway_router
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories, worker_name
from moltbot.sandbox.isolation.choice import choose_wall
from moltbot.sandbox.isolation.plan import Level
from moltbot.sandbox.launch import LaunchSpec, Word, WorkerSocket, launch_spec
from moltbot.sandbox.process import WorkerProcess
from tests.escape.here import PRELUDE, RUNNER, Verdict
from tests.escape.table import Attempt
from tests.escape.targets import (
    MARKER,
    VARIABLE,
    about_the_gateway,
    files,
    granted_folder,
    key,
    listeners,
    shared_memory,
)
from tests.fakes import PATIENCE

REQUIRED = "TEST_REQUIRE_ISOLATION"

_HANDLER = f"""{PRELUDE}

import json, subprocess, sys
import moltbot
from moltbot import handler

RUNNER = {RUNNER!r}

@handler("greet")
def greet(ctx, payload):
    print("precious words", flush=True)
    for place in (ctx.state_dir, ctx.cache_dir, ctx.temp_dir):
        (place / "precious").write_text(payload)
    return {{"worker": ctx.worker_id, "key": ctx.state_dir.name, "pid": os.getpid()}}

@handler("attempt")
def attempt(ctx, payload):
    facts = payload["facts"] | {{
        "state": str(ctx.state_dir), "temp": str(ctx.temp_dir), "code": os.path.dirname(moltbot.__file__),
        "handler": __file__, "guard": os.getppid(), "environment": dict(os.environ),
    }}
    if payload["by"] == "worker":
        return judge(payload["program"], facts)
    ended = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER], input=json.dumps({{"program": payload["program"], "facts": facts}}),
        capture_output=True, text=True, timeout=60,
    )
    if ended.returncode or not ended.stdout:
        return {{"outcome": "broken", "how": f"status {{ended.returncode}}: {{ended.stdout}} {{ended.stderr}}"}}
    return json.loads(ended.stdout)
"""


# --- the world -----------------------------------------------------------------------------------------


def unavailable(level: Level, error: IsolationUnavailable) -> NoReturn:
    """A level that this machine does not have is skipped, with the reason; where all of them are required, it fails."""
    reason = f"isolation level {level}: {error}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class World:
    """The gateway runs in a thread of its own, for as long as the tests of one level need it."""

    def __init__(self, level: Level, directory: Path) -> None:
        self.level = level
        self.directory = directory
        self.base = directory / "base"
        self.facts: dict[str, Any] = {}
        self.users: dict[str, str] = {}
        self._memory = ctypes.create_string_buffer(MARKER.encode())
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name=f"world-{level}")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._started.result(2 * PATIENCE)
        except BaseException:
            self._thread.join(PATIENCE)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def attempt(self, attempt: Attempt) -> Verdict:
        """Run one attempt on worker-0."""
        payload = {"program": attempt.program, "by": attempt.by, "facts": self.facts}
        return Verdict(**self._ask("attempt", self.users["worker-0"], payload))

    def alive(self) -> bool:
        """True if worker-0 and worker-1 are the processes that they were, and answer."""
        return all(
            self._ask("greet", user, MARKER)["pid"] == self.facts["inner_pids"][worker]
            for worker, user in self.users.items()
        )

    def _ask(self, kind: str, user: str, payload: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self._route(kind, user, payload), self._loop).result(PATIENCE)

    async def _route(self, kind: str, user: str, payload: Any) -> Any:
        return (await self._gateway.router.route(Request(kind, user, payload))).payload

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                await self._build(stack)
                self._started.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _build(self, stack: AsyncExitStack) -> None:
        author = self.directory / "author"
        author.mkdir()
        (author / "attempts.py").write_text(_HANDLER)
        (author / "attempts.py").chmod(0o644)
        granted = granted_folder(self.directory / "granted")
        settings = {
            "sandbox_base_dir": self.base,
            "worker_count": 2,
            "handler": str(author / "attempts.py"),
            "isolation": self.level.value,
            "read_only_paths": str(granted),
        }
        stack.enter_context(_variable(VARIABLE, MARKER))
        router = create_gateway_router(pool_config=settings)
        self._gateway = await stack.enter_async_context(Gateway(router, EdgeConfig()))
        outside = self.directory / "outside"
        self.facts = about_the_gateway() | files(outside) | await listeners(stack, outside)
        self.facts |= shared_memory(stack.enter_context(ExitStack()))
        self.facts["key"] = stack.enter_context(key())
        self.facts |= {
            "marker": MARKER,
            "granted": str(granted),
            "base": str(self.base),
            "own_root": "/sandbox" if self.level is Level.BUBBLEWRAP else str(self.base / "worker-0"),
            "port": self._gateway.port,
            "address": ctypes.addressof(self._memory),
        }
        await self._settle()

    async def _settle(self) -> None:
        """Find a user for each worker, and let it leave something precious there."""
        pids: dict[str, int] = {}
        for number in range(64):
            told = await self._route("greet", f"user-{number}", MARKER)
            worker = told["worker"]
            if worker not in self.users:
                self.users[worker], pids[worker] = f"user-{number}", told["pid"]
                if worker == "worker-1":
                    root = self.base / worker
                    self.facts["other"] = str(root)
                    self.facts["other_state"] = str(root / "state" / told["key"] / "precious")
            if len(self.users) == 2:
                break
        status = self._gateway.router.get_status()
        assert status is not None
        assert {worker.isolation for worker in status.workers} == {self.level.value}
        self.facts["inner_pids"] = pids
        self.facts["other_pid"] = next(w.pid for w in status.workers if w.worker_id == "worker-1")


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


# --- a worker of one program, for what a gateway never does --------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unconfined(LaunchSpec):
    """Started like a worker, but for its program."""

    program: str = ""

    @property
    def argv(self) -> tuple[Word, ...]:
        return (*self.prefix, sys.executable, "-I", "-c", self.program, WorkerSocket())


@asynccontextmanager
async def lone_worker(
    level: Level, directory: Path, program: str, *, boot: bool = True
) -> AsyncIterator[tuple[socket.socket, Path]]:
    """A worker behind the wall that runs `program` with our socket as descriptor 3; yields our end, and its directories.

    In its state is a folder `held` with a file `precious`. boot: else it runs at once, unconfined from inside, and the
    socket's number is its argument: that shows what the outer wall alone holds.
    """
    base = directory / "base"
    base.mkdir(mode=0o700)
    config = PoolConfig.read(
        {
            "workerCommand": [sys.executable, "-I", "-c", program],
            "isolation": level.value,
            "sandboxBaseDir": base,
        }
    )
    try:
        wall = (await choose_wall(config, base)).wall
    except IsolationUnavailable as error:
        unavailable(level, error)
    directories = WorkerDirectories(base, worker_name(0))
    owner = wall.owner(directories.worker_id)
    directories.create(owner)
    directories.open_temp(1, owner)
    for path in (held := directories.root / "state" / "held", held / "precious"):
        path.mkdir() if path == held else path.write_text(MARKER)
        os.chown(path, owner, owner if os.geteuid() == 0 else -1)
    spec = wall.wrap(launch_spec(directories, 1, config, {}, os.getpid()))
    if not boot:
        values = {field.name: getattr(spec, field.name) for field in fields(spec)}
        spec = _Unconfined(**values, program=program)
    ours, theirs = socket.socketpair()
    with ours, open(directory / "printed", "wb") as output:  # noqa: ASYNC230  # as good as in memory
        ours.settimeout(PATIENCE)
        with theirs:
            process = await WorkerProcess.spawn(spec, theirs, output.fileno(), output.fileno())
        try:
            yield ours, directories.root
        finally:
            process.kill_tree()
            async with asyncio.timeout(PATIENCE):
                await process.wait()


def told(sock: socket.socket, printed: Path) -> Mapping[str, Any]:
    """The next line of JSON that a lone worker wrote."""
    text = b""
    while not text.endswith(b"\n"):
        data = sock.recv(65536)
        assert data, f"the worker ended: {printed.read_text()}"
        text += data
    document: dict[str, Any] = json.loads(text)
    return document
