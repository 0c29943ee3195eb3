"""`GatewayClient`: the gateway's HTTP interface as Python calls.

    async with GatewayClient("http://127.0.0.1:18789", token) as client:
        reply = await client.route(Request("agent", "ada", {"message": "hello"}))

Answers are the JSON documents of the reference; an error answer is raised as `GatewayError` with its code, sentence and
verdict. Without an answer: `Unavailable`, whose verdict tells a gateway that was never reached from one that was lost.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self, get_args

import aiohttp

from moltbot.core.errors import InvalidRequest, MoltbotError, Unavailable, Verdict
from moltbot.core.messages import Request

DEFAULT_TIMEOUT = 300.0
_JSON = {"Content-Type": "application/json"}


class GatewayError(MoltbotError):
    """An error that the gateway answered; `code`, `status` and `verdict` are as it gave them."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(
            str(document.get("detail", f"the gateway answered {status}")),
            retryable=bool(document.get("retryable", False)),
            retry_after=document.get("retryAfter"),
            worker=document.get("worker"),
            reason=document.get("reason"),
            verdict=_verdict(status, document),
            details=document.get("details"),
        )
        self.status = status
        self.code = str(document.get("code", "internal"))  # type: ignore[misc]  # the class's is only the default


class GatewayClient:
    """One gateway and one credential; `timeout` in seconds bounds every call."""

    def __init__(self, url: str, token: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=10)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def route(self, request: Request) -> dict[str, Any]:
        """Run a request and return the reply document."""
        return await self._call("POST", "/api/route", data=_body(request), headers=_JSON)

    async def stream(self, request: Request) -> AsyncGenerator[tuple[str, Any], None]:
        """Run a request and yield `(event, data)`: chunk, event, usage, and at last reply. Raises GatewayError."""
        headers = {**_JSON, "Accept": "text/event-stream"}
        async with self._request("POST", "/api/route", data=_body(request), headers=headers) as response:
            if response.status != 200:
                raise await _error(response)
            name = ""
            async for name, data in _events(response):
                if name == "error":
                    raise GatewayError(int(data.get("status", 500)), data)
                yield name, data
            if name != "reply":
                raise _lost()

    async def workers(self) -> dict[str, Any]:
        """The pool and its workers."""
        return await self._call("GET", "/api/workers")

    async def where(self, user_id: str) -> dict[str, Any]:
        """A user's receipt."""
        return await self._call("GET", "/api/users", params={"userId": user_id})

    async def health(self) -> dict[str, Any]:
        """The health document, also when it is bad news (503)."""
        async with self._request("GET", "/health") as response:
            return dict(await response.json())

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._request(method, path, **options) as response:
            if response.status != 200:
                raise await _error(response)
            return dict(await response.json())

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, **options: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        if self._session is None:
            raise RuntimeError("use the client in `async with`")
        try:
            async with self._session.request(method, self.url + path, **options) as response:
                yield response
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise InvalidRequest(
                f"{self.url} is not the address of a gateway: write it as http://127.0.0.1:18789"
            ) from None
        except aiohttp.ClientConnectorError as error:
            why = (error.os_error.strerror or str(error.os_error)).lower()
            raise Unavailable(
                f"no gateway answers at {self.url} ({why}): is `moltbot gateway` running?"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise _lost() from None


def _lost() -> Unavailable:
    """The request was sent, or may have been, and no whole answer came back."""
    return Unavailable(
        "the connection to the gateway ended before the answer: it may have run",
        retryable=False,
        verdict="maybe_ran",
    )


def _verdict(status: int, document: dict[str, Any]) -> Verdict:
    """The document's; where it has none, only what the edge refused (4xx) is sure not to have started."""
    for verdict in get_args(Verdict):
        if document.get("verdict") == verdict:
            return verdict  # type: ignore[no-any-return]
    return "not_started" if 400 <= status < 500 else "maybe_ran"


def _body(request: Request) -> io.BytesIO:
    """The request as JSON; as a file, for a large one would hold up the event loop in one piece."""
    fields = {
        "type": request.type,
        "userId": request.user_id,
        "payload": request.payload,
        "id": request.id,
        "timeout": request.timeout,
        "idempotent": request.idempotent,
        "meta": dict(request.meta),
    }
    return io.BytesIO(
        json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    )


async def _error(response: aiohttp.ClientResponse) -> GatewayError:
    try:
        document = json.loads(await response.text())
    except ValueError:
        document = None
    return GatewayError(response.status, document if isinstance(document, dict) else {})


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events whose data is JSON on one line, as the gateway writes them."""
    name, data = "message", ""
    async for raw in _lines(response):
        if raw.startswith("event: "):
            name = raw[7:]
        elif raw.startswith("data: "):
            data += raw[6:]
        elif not raw and data:
            yield name, json.loads(data)
            name, data = "message", ""


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Lines of any length: the stream reader's own line reading has a limit."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\r\n")
        for line in lines:
            yield line.decode()
