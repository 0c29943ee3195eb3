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
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self, get_args
from urllib.parse import quote

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

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        fingerprint: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        """fingerprint: SHA-256 (hexadecimal) of the one certificate to trust over https, whoever signed it; else the
        system's authorities are trusted, and those in `ca_file` (PEM).
        """
        self.url = url.rstrip("/")
        self._fingerprint = fingerprint
        self._ca_file = ca_file
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=10)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._trusted())
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=self._timeout, connector=connector
        )
        return self

    def _trusted(self) -> bool | ssl.SSLContext | aiohttp.Fingerprint:
        if self._fingerprint is not None:
            return aiohttp.Fingerprint(bytes.fromhex(self._fingerprint))
        if self._ca_file is None:
            return True
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(self._ca_file)
        except OSError:
            raise InvalidRequest(
                f"{os.fspath(self._ca_file)} holds no certificates: name a PEM file that can be read"
            ) from None
        return context

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

    async def users(self, *, after: str | None = None, limit: int | None = None) -> dict[str, Any]:
        """One page of users, in the order of their ids' bytes, from the first one after `after`."""
        params = {"after": after, "limit": None if limit is None else str(limit)}
        given = {name: value for name, value in params.items() if value is not None}
        return await self._call("GET", "/api/users", params=given)

    async def export(self, user_id: str, file: BinaryIO) -> None:
        """Write a user's archive (tar) into `file`."""
        async with self._request("GET", "/api/users/export", params={"userId": user_id}) as response:
            if response.status != 200:
                raise await _error(response)
            async for piece in response.content.iter_any():
                file.write(piece)

    async def forget(self, user_id: str) -> bool:
        """Forget a user; False if that is not done yet, and goes on."""
        answer = await self._call("DELETE", "/api/users", params={"userId": user_id})
        return answer.get("forgotten") is True

    async def create_token(
        self, user_id: str | None, scopes: Sequence[str], *, label: str = "", seconds: float | None = None
    ) -> dict[str, Any]:
        """Make a token for a user (None: an operator's) that ends in `seconds`; its text is in this answer only."""
        fields = {**_whose(user_id), "scopes": list(scopes), "label": label}
        if seconds is not None:
            fields["expiresIn"] = round(seconds * 1000)
        return await self._call("POST", "/api/tokens", json=fields)

    async def create_link(
        self, user_id: str | None, scopes: Sequence[str], *, label: str = ""
    ) -> dict[str, Any]:
        """Make a one-time link by which a browser signs in; `path` is relative to the gateway's address."""
        fields = {**_whose(user_id), "scopes": list(scopes), "label": label}
        return await self._call("POST", "/api/links", json=fields)

    async def tokens(self) -> dict[str, Any]:
        """The valid tokens, links and sessions, without their secrets."""
        return await self._call("GET", "/api/tokens")

    async def revoke_token(self, token_id: str) -> dict[str, Any]:
        """End one now."""
        return await self._call("DELETE", f"/api/tokens/{quote(token_id, safe='')}")

    async def log_level(self, level: str | None = None) -> dict[str, Any]:
        """The level of the gateway's log, changed before if one is given."""
        if level is None:
            return await self._call("GET", "/api/log-level")
        body = json.dumps({"level": level}).encode()
        return await self._call("PUT", "/api/log-level", data=body, headers=_JSON)

    async def health(self) -> dict[str, Any]:
        """The health document, also when it is bad news (503)."""
        async with self._request("GET", "/health") as response:
            return dict(await response.json())

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._request(method, path, **options) as response:
            if not response.ok:
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
        except (aiohttp.ServerFingerprintMismatch, aiohttp.ClientSSLError) as error:
            raise Unavailable(_distrust(self.url, error), retryable=False) from None
        except aiohttp.ClientConnectorError as error:
            why = (error.os_error.strerror or str(error.os_error)).lower()
            raise Unavailable(
                f"no gateway answers at {self.url} ({why}): is `moltbot gateway` running?"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise _lost() from None


def _whose(user_id: str | None) -> dict[str, Any]:
    return {"operator": True} if user_id is None else {"userId": user_id}


def _distrust(url: str, error: Exception) -> str:
    """Why nothing was sent."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return f"{url} shows another certificate than the gateway announced: it is not that gateway, try again if it renewed it"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "it cannot be verified"
        return f"the certificate of {url} is not trusted ({why}): name its authority's PEM file in MOLTBOT_CA"
    return f"{url} does not speak TLS as it should: is it https, or is it http?"


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
