"""What is known of a request's execution reaches the caller: through the client, and through `moltbot send --json`."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from moltbot import MoltbotError, Request, Unavailable
from moltbot.client.http import GatewayClient, GatewayError
from tests.fakes import PATIENCE
from tests.support import (
    BEHAVIOURS,
    TOKEN,
    Running,
    command,
    environment,
    gateway_in,
    log_lines,
    logged,
    moltbot,
    stage,
)

LOST = "the connection to the gateway ended before the answer: it may have run"


async def outcome(
    url: str, kind: str, payload: Any, *, stream: bool = False, token: str = TOKEN
) -> MoltbotError:
    """The error that a request ends with."""
    async with GatewayClient(url, token) as client:
        with pytest.raises(MoltbotError) as caught:
            if stream:
                async for _ in client.stream(Request(kind, "ada", payload)):
                    pass
            else:
                await client.route(Request(kind, "ada", payload))
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
async def test_the_verdict_of_the_gateway_is_passed_on(tmp_path: Path, stream: bool) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        for kind, payload, code, verdict in (
            ("story", {"fail": True}, "handler_error", "done"),
            ("nothing", None, "unknown_type", "not_started"),
            ("die", None, "worker_died", "maybe_ran"),
        ):
            error = await outcome(gateway.url, kind, payload, stream=stream)
            assert (error.code, error.verdict, error.retryable) == (code, verdict, False)
        error = await outcome(gateway.url, "echo", None, stream=stream, token="not-the-token-at-all")
        assert (error.code, error.verdict) == ("unauthorized", "not_started")


async def test_a_refusal_of_the_queue_did_not_start(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with (
        gateway_in(tmp_path / "base", max_queue_per_user=0) as gateway,
        GatewayClient(gateway.url, TOKEN) as client,
    ):
        holding = asyncio.create_task(client.route(Request("hold", "ada", {"stage": str(at)})))
        await logged(at, "begin ada 0")
        error = await outcome(gateway.url, "echo", 1)
        holding.cancel()
        assert (error.code, error.verdict, error.retryable) == ("user_queue_full", "not_started", True)


@pytest.mark.parametrize(
    ("status", "document", "verdict"),
    [
        (401, {}, "not_started"),
        (413, {"verdict": "nonsense"}, "not_started"),
        (500, {}, "maybe_ran"),
        (502, {"verdict": None}, "maybe_ran"),
        (503, {"verdict": "not_started"}, "not_started"),
        (499, {"verdict": "maybe_ran"}, "maybe_ran"),
        (200, {"verdict": ["done"]}, "maybe_ran"),
    ],
)
def test_without_a_verdict_only_what_the_edge_refused_is_sure(
    status: int, document: dict[str, Any], verdict: str
) -> None:
    assert GatewayError(status, document).verdict == verdict


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n"
VANISHING = {
    "before the answer": b"",
    "in the head": HEAD,
    "in the body": HEAD % b"application/json" + b'Content-Length: 100\r\n\r\n{"success": tr',
    "in the stream": HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n",
    "at the end of the stream": HEAD % b"text/event-stream" + b"Content-Length: 0\r\n\r\n",
    "with nonsense": HEAD % b"application/json" + b"Content-Length: 4\r\n\r\n{abc",
}


@asynccontextmanager
async def vanishing(answer: bytes | None) -> AsyncIterator[str]:
    """A gateway that reads a request, sends this much of an answer, and is gone; None: it never answers."""

    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        try:
            await reader.readuntil(b"}")
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await asyncio.gather(*(task for task in served if task is not None), return_exceptions=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", VANISHING)
async def test_a_gateway_that_vanishes_leaves_it_open(when: str, stream: bool) -> None:
    async with vanishing(VANISHING[when]) as url:
        error = await outcome(url, "agent", {}, stream=stream)
    assert isinstance(error, Unavailable)
    assert (error.message, error.verdict, error.retryable) == (LOST, "maybe_ran", False)


async def test_a_gateway_that_never_answers_leaves_it_open() -> None:
    async with vanishing(None) as url, GatewayClient(url, TOKEN, timeout=0.2) as client:
        with pytest.raises(Unavailable, match="it may have run") as caught:
            await client.route(Request("agent", "ada", {}))
    assert (caught.value.verdict, caught.value.retryable) == ("maybe_ran", False)


async def test_a_gateway_that_was_never_reached_did_not_start_it() -> None:
    error = await outcome("http://127.0.0.1:1", "agent", {})
    assert isinstance(error, Unavailable)
    assert (error.verdict, error.retryable) == ("not_started", True)


def told_by_send(home: Path, *words: str, **variables: str) -> dict[str, Any]:
    """The error document of `moltbot send --json`."""
    result = moltbot(home, "send", "ada", *words, "--json", **variables)
    assert (result.returncode, result.stderr) == (1, "")
    error: dict[str, Any] = json.loads(result.stdout)["error"]
    return error


def test_send_tells_the_verdict(tmp_path: Path) -> None:
    with Running(tmp_path, "-w", "1", "-s", "base", "--handler", BEHAVIOURS):
        for words, verdict in (
            (["--type", "story", "--payload", '{"fail": true}'], "done"),
            (["--type", "die", "--payload", "null"], "maybe_ran"),
            (["x", "--type", "nothing"], "not_started"),
        ):
            assert told_by_send(tmp_path, *words, "-s", "base")["verdict"] == verdict


def test_send_tells_that_the_queue_refused(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    flags = ["-w", "1", "-s", "base", "--handler", BEHAVIOURS]
    with Running(tmp_path, *flags, MOLTBOT_MAX_QUEUE_PER_USER="0"):
        payload = json.dumps({"stage": str(at)})
        holding = subprocess.Popen(
            command("send", "ada", "--type", "hold", "--payload", payload, "-s", "base"),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while "begin ada 0" not in log_lines(at):
            assert holding.poll() is None
        error = told_by_send(tmp_path, "hello", "-s", "base")
        holding.kill()
        holding.wait(PATIENCE)
    assert (error["code"], error["verdict"], error["retryable"]) == ("user_queue_full", "not_started", True)


@contextmanager
def in_a_thread(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_send_tells_that_the_gateway_vanished(tmp_path: Path) -> None:
    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            received = b""
            while b"hello" not in received:
                received += connection.recv(1 << 16)

    with in_a_thread(serve) as url:
        error = told_by_send(tmp_path, "hello", "--url", url, MOLTBOT_TOKEN=TOKEN)
    assert (error["detail"], error["verdict"], error["retryable"]) == (LOST, "maybe_ran", False)
