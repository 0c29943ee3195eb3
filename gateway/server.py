"""The gateway as a service: a port, the router behind it, and an orderly end.

The port is taken first, so a taken one is told before any worker starts. On stop the router drains while the port still
answers (503 for new requests, `/readyz` says draining), then the port closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from moltbot.core.errors import PortInUse, StartupError
from moltbot.core.service import Service
from moltbot.gateway.app import create_app
from moltbot.gateway.auth import OperatorAuth
from moltbot.gateway.origins import WILDCARDS, Origins
from moltbot.gateway.protocol import Protocol
from moltbot.gateway.tokens import TOKEN_FILE, check_token, load_or_create_token, read_token
from moltbot.router.gateway_router import GatewayRouter

CLOSE_SECONDS = 5.0
IDLE_SECONDS = 30.0  # for a connection that sends no request, or only a part of its head
MAX_CONNECTIONS = 10_000
_DESCRIPTORS_PER_WORKER = 8
_OWN_DESCRIPTORS = 100

log = logging.getLogger("moltbot.gateway")


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Where the gateway listens (port 0: any free one) and what it accepts. token: given directly, else from token_file, else from the base directory."""

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 10 << 20
    token: str | None = None
    token_file: Path | None = None


class Gateway(Service):
    """Serves `router` on one port; starting it starts the router, stopping it stops the router."""

    def __init__(self, router: GatewayRouter, config: EdgeConfig) -> None:
        super().__init__()
        self.router = router
        self._config = config
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.token = ""

    @property
    def port(self) -> int:
        """The port that is really used; 0 while there is none."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        host = self._config.host
        if host in WILDCARDS:
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def _start(self) -> None:
        config = self._config
        self._socket = bind(config.host, config.port)
        self.router.close_to_workers(self.port)
        await self.router.start()
        self.token = self._load_token()
        origins = Origins(config.host, config.allowed_hosts)
        if origins.any_host:
            log.warning(
                "listening on all addresses and answering to any Host: set allowed_hosts to the names in use"
            )
        app = create_app(
            self.router, auth=OperatorAuth(self.token), origins=origins, max_body=config.max_body
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"access_log": None}  # which aiohttp means, but does not declare
        options["keepalive_timeout"] = IDLE_SECONDS
        limit = connection_limit(self.router.config.worker_count)
        self._listener = await loop.create_server(
            lambda: Protocol(server, max_connections=limit, loop=loop, **options), sock=self._socket
        )
        self.router.announce(self.url)

    @property
    def token_source(self) -> str:
        """Where the operator's token is kept, in words."""
        if self._config.token is not None:
            return "the environment variable MOLTBOT_TOKEN"
        return str(self._config.token_file or self.router.config.sandbox_base_dir / TOKEN_FILE)

    def _load_token(self) -> str:
        if self._config.token is not None:
            return check_token(self._config.token, self.token_source)
        if self._config.token_file is not None:
            return read_token(self._config.token_file)
        return load_or_create_token(self.router.config.sandbox_base_dir / TOKEN_FILE)

    async def _stop(self) -> None:
        await self.router.stop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def connection_limit(workers: int) -> int:
    """How many connections may be open at once, so that descriptors are left for the workers and the database."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = _OWN_DESCRIPTORS + workers * _DESCRIPTORS_PER_WORKER
    return (
        MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, max(16, soft - reserved))
    )


def bind(host: str, port: int) -> socket.socket:
    """Take a port (0: any free one); raises PortInUse, naming the process that has it if that can be known."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartupError(
            f"cannot listen on host {host!r}: {error.strerror}: give an address of this machine"
        ) from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} is taken{_holder(port)}: stop it, or choose another with --port"
            ) from None
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another host or port"
        ) from None
    return sock


def _holder(port: int) -> str:
    """` by NAME (pid N)` for whoever listens there, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
