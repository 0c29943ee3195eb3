"""What the end-to-end tests share: routers and gateways in a test's own directory, and the command line as a process.

Waits for signals and for conditions are in `fakes.py`; the handlers that the workers run are in `handlers/`.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp

from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.server import Gateway
from moltbot.router.gateway_router import GatewayRouter, create_gateway_router
from tests.fakes import PATIENCE, eventually

HANDLERS = Path(__file__).parent / "handlers"
BEHAVIOURS = str(HANDLERS / "behaviours.py")
MISBEHAVIOURS = str(HANDLERS / "misbehaviours.py")
LEVELS = ("bubblewrap", "landlock", "directories")
STAGE = "stage"
TOKEN = "the-token-of-these-tests"


def pool_config(base: Path, **settings: Any) -> dict[str, Any]:
    """Small and quick: one worker that runs `behaviours.py`, behind the strongest wall there is, unless told otherwise."""
    plain = {"sandbox_base_dir": base, "worker_count": 1, "handler": BEHAVIOURS}
    return plain | {"read_write_paths": granted(base.parent)} | settings


def granted(directory: Path) -> list[Path]:
    """What of a test's own directory its workers may reach: the stage, if the test made one before."""
    return [place] if (place := directory / STAGE).exists() else []


@asynccontextmanager
async def router_in(base: Path, **settings: Any) -> AsyncIterator[GatewayRouter]:
    """A router that runs."""
    async with create_gateway_router(pool_config=pool_config(base, **settings)) as router:
        yield router


@asynccontextmanager
async def gateway_in(
    base: Path, *, edge: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway that listens on a free port."""
    router = create_gateway_router(pool_config=pool_config(base, **settings))
    async with Gateway(router, EdgeConfig(**(edge or {})), token=TOKEN) as gateway:
        yield gateway


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def problem(self, status: int, code: str) -> str:
        """Check that this is the problem with this status and code, told in one sentence; returns the sentence."""
        assert self.status == status, self.text
        assert self.headers["Content-Type"].startswith("application/problem+json")
        document = self.json
        assert document["status"] == status
        assert document["code"] == code
        assert document["type"] == f"urn:moltbot:problem:{code}"
        check_sentence(document["detail"])
        return str(document["detail"])


def check_sentence(text: str) -> None:
    """One line that a person can read, without a traceback or the inside of an object."""
    assert len(text) > 10
    assert "\n" not in text
    assert "Traceback" not in text
    assert " object at 0x" not in text


async def call(
    gateway: Gateway, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
) -> Answer:
    """One HTTP call with the operator's credential."""
    given = {"Authorization": f"Bearer {gateway.token}"} | dict(headers or {})
    if isinstance(options.get("data"), bytes):
        options["data"] = io.BytesIO(options["data"])  # aiohttp warns of large bodies in one piece
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, gateway.url + path, headers=given, **options) as response,
    ):
        return Answer(response.status, response.headers, await response.text())


async def post(gateway: Gateway, kind: str, user_id: Any, payload: Any = None, **fields: Any) -> Answer:
    """One `POST /api/route`."""
    body = {"type": kind, "userId": user_id, "payload": payload} | fields
    headers = {"Content-Type": "application/json"}
    return await call(gateway, "POST", "/api/route", data=json.dumps(body).encode(), headers=headers)


async def raw(gateway: Gateway, data: bytes) -> Answer:
    """Bytes as they are, on a connection of their own, which the answer must end or follow with a whole body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split(" ")[1])
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers.get("Content-Length", 0)))
    finally:
        writer.close()
    return Answer(status, headers, body.decode())


def request_bytes(
    body: bytes, *headers: str, host: str = "localhost", target: str = "POST /api/route"
) -> bytes:
    """An HTTP request in bytes, with the operator's credential and a JSON body."""
    lines = [
        f"{target} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stage(directory: Path) -> Path:
    """A directory in which test and handlers signal each other by files, see `handlers/behaviours.py`.

    It must be called `stage` and be made before the gateway, which is then told to let its workers in.
    """
    assert directory.name == STAGE
    directory.mkdir(exist_ok=True)
    (directory / "log").touch()
    directory.chmod(0o777)  # workers may have other uids than the gateway
    (directory / "log").chmod(0o666)
    return directory


def log_lines(directory: Path) -> list[str]:
    """What the handlers wrote down, in the order in which it happened."""
    return (directory / "log").read_text(encoding="utf-8").splitlines()


async def logged(directory: Path, line: str) -> None:
    """Wait until a handler has written `line`."""
    await eventually(lambda: line in log_lines(directory))


# --- the command line as a process -------------------------------------------------------------------


def environment(home: Path, **variables: str) -> dict[str, str]:
    """A clean environment whose home is the test's own directory."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOLTBOT_", "XDG_", "COVERAGE_", "PYTEST_"))
    }
    kept |= {"HOME": str(home), "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "TERM": "dumb"}
    if places := granted(home):
        kept["MOLTBOT_READ_WRITE_PATHS"] = ",".join(map(str, places))
    return kept | variables


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "moltbot", *arguments]


def moltbot(
    directory: Path, *arguments: str, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in `directory`."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory, **variables),
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def failed(result: subprocess.CompletedProcess[str], status: int) -> str:
    """Check that a command failed as it should: this status, and one line on stderr; returns the line."""
    assert result.returncode == status, result.stdout + result.stderr
    line = result.stderr.removesuffix("\n")
    check_sentence(line)
    assert line.startswith("moltbot: ")
    return line


class Running:
    """`moltbot gateway --json` as a process of its own, started and known by its document."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            command("gateway", "--port", "0", "--json", *arguments),
            cwd=directory,
            env=environment(directory, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.document: dict[str, Any] = {}

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:  # ends with the document, or with the process
            text += line
            if line == "}\n":
                break
        else:
            raise AssertionError(f"the gateway did not start: {text}{self.process.communicate()[1]}")
        self.document = json.loads(text)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [worker["pid"] for worker in self.document["status"]["workers"]]

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal; returns the exit status, and what was printed since the start."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err
