"""The gateway as a service: a port, the router behind it, and an orderly end.

The port is taken first, so a taken one is told before any worker starts. On stop the router drains while the port still
answers (503 for new requests, `/readyz` says draining), then the port closes. Connections are let in by `listening.py`,
certificates are read in `tls.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from functools import partial
from ipaddress import collapse_addresses
from typing import Any

from aiohttp import web

from moltbot.core.errors import MoltbotError, StartupError
from moltbot.core.events import PoolEvent, Subscription, UserForgotten
from moltbot.core.service import Service
from moltbot.gateway import listening
from moltbot.gateway.access_log import AccessLog
from moltbot.gateway.app import create_app
from moltbot.gateway.auth import Authenticator
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.credentials import Credentials
from moltbot.gateway.edge import Edge
from moltbot.gateway.idempotency import Idempotency
from moltbot.gateway.origins import WILDCARDS, Origins
from moltbot.gateway.outcomes import Outcomes
from moltbot.gateway.protocol import Protocol, noting_work
from moltbot.gateway.tls import TLS, Tls
from moltbot.router.gateway_router import GatewayRouter
from moltbot.sandbox.log_lines import shown_user
from moltbot.sandbox.secret_file import TOKEN_FILE, check_secret, load_or_create_secret, read_secret

CLOSE_SECONDS = 5.0
RETRY_SECONDS = 1.0
PURGE_SECONDS = 3600.0

log = logging.getLogger("moltbot.gateway")


class Gateway(Service):
    """Serves `router` on one port; starting it starts the router, stopping it stops the router."""

    def __init__(self, router: GatewayRouter, config: EdgeConfig, *, token: str | None = None) -> None:
        """token: the operator's, given directly; else it is read from `token_file` or kept in the base directory."""
        super().__init__()
        self.router = router
        self._given_token = token
        self._config = config
        self._socket: socket.socket | None = None
        self._runner: web.AppRunner | None = None
        self._listener: listening.Listener | None = None
        self._tls: Tls | None = None
        self._idempotency: Idempotency | None = None
        self._access_log: AccessLog | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self.seats: listening.Seats | None = None
        self.edge: Edge | None = None
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
        scheme = "http" if self._config.tls_cert is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def fingerprint(self) -> str | None:
        """The SHA-256 of the certificate that new connections get, in hexadecimal; None without https."""
        return self._tls.pair.fingerprint if self._tls is not None else None

    async def _start(self) -> None:
        config, router = self._config, self.router
        _check_proxies(config)
        if config.tls_cert is not None and config.tls_key is not None:
            self._tls = Tls(config.tls_cert, config.tls_key, router.clock)
        sock = self._socket = listening.bind(config.host, config.port)
        router.close_to_workers(self.port)
        origins = Origins(config.host, config.allowed_hosts)
        _warn(config, origins, sock)
        edge = self.edge = Edge(config, origins, router.clock)
        await self._listen(edge, sock)  # while the workers start, probes get an answer
        await router.start()
        self.token = self._load_token()
        database = router.database
        credentials = Credentials(database, router.clock, edge.live.end)
        await credentials.start()
        outcomes = Outcomes(database, router.clock)
        self._idempotency = Idempotency(outcomes, edge.live, router.keyed_hash)
        edge.open(
            Authenticator(self.token, credentials, config, router.clock), credentials, self._idempotency
        )
        if config.access_log:
            self._access_log = edge.access_log = self._open_access_log()
        self._watch(self._end_tokens_of_forgotten(credentials, router.events()))
        self._watch(self._purge_hourly(outcomes))
        if self._tls is not None:
            self._watch(self._tls.watch(self._announce))
        self._announce()

    def _open_access_log(self) -> AccessLog:
        router, pool = self.router, self.router.config
        opened = AccessLog(
            pool.sandbox_base_dir / "logs",
            router.clock,
            log_format=pool.log_format,
            shown_user=partial(shown_user, router.keyed_hash, pool.log_user_ids),
        )
        opened.start()
        return opened

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        watcher = asyncio.create_task(work)
        watcher.add_done_callback(_tell_end)
        self._watchers.append(watcher)

    def _announce(self) -> None:
        self.router.announce(self.url, self.fingerprint)

    async def _end_tokens_of_forgotten(
        self, credentials: Credentials, events: Subscription[PoolEvent]
    ) -> None:
        with events:
            async for event in events:
                if isinstance(event, UserForgotten):
                    credentials.forget_user(event.user_id)
                if events.take_lost():
                    while not await self._reloaded(credentials):
                        await self.router.clock.sleep(RETRY_SECONDS)

    async def _purge_hourly(self, outcomes: Outcomes) -> None:
        while True:
            await self.router.clock.sleep(PURGE_SECONDS)
            try:
                await outcomes.purge()
            except MoltbotError as error:
                log.error(
                    "old answers to keyed requests are not deleted yet, the next try is in an hour: %s", error
                )

    async def _reloaded(self, credentials: Credentials) -> bool:
        try:
            await credentials.reload()
        except MoltbotError as error:
            log.error(
                "credentials cannot be read anew, those of forgotten users may still be good: %s", error
            )
            return False
        return True

    async def _listen(self, edge: Edge, sock: socket.socket) -> None:
        config = self._config
        seats = self.seats = listening.Seats(
            listening.connection_limit(self.router.config.worker_count, config.max_connections)
        )
        app = create_app(self.router, edge, config)
        app[listening.SEATS] = seats
        app[TLS] = self._tls
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_handler = noting_work(server.request_handler)
        idle_seconds, send_timeout = listening.IDLE_SECONDS, config.send_timeout / 1000
        self._listener = listening.Listener(
            sock,
            seats,
            lambda seat: Protocol(server, seat, send_timeout=send_timeout, idle_seconds=idle_seconds),
            self._tls.context if self._tls is not None else None,
        )
        self._listener.start()

    @property
    def token_source(self) -> str:
        """Where the operator's token is kept, in words."""
        if self._given_token is not None:
            return "the environment variable MOLTBOT_TOKEN"
        return str(self._config.token_file or self.router.config.sandbox_base_dir / TOKEN_FILE)

    def _load_token(self) -> str:
        if self._given_token is not None:
            return check_secret(self._given_token, self.token_source)
        if self._config.token_file is not None:
            return read_secret(self._config.token_file)
        return load_or_create_secret(self.router.config.sandbox_base_dir / TOKEN_FILE)

    async def _stop(self) -> None:
        async with contextlib.AsyncExitStack() as last_first:  # each is put away even if another cannot be
            last_first.callback(self._let_go)
            if self._access_log is not None:
                last_first.push_async_callback(self._access_log.stop)
            if self._runner is not None:
                last_first.push_async_callback(self._runner.cleanup)
            if self._listener is not None:
                last_first.push_async_callback(self._listener.stop)
            if self._idempotency is not None:
                last_first.push_async_callback(self._idempotency.close)
            last_first.push_async_callback(self._end_watchers)
            last_first.push_async_callback(self.router.stop)

    async def _end_watchers(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._listener = self._runner = None
        self._idempotency = self._access_log = self._tls = None


def _tell_end(watcher: asyncio.Task[None]) -> None:
    if not watcher.cancelled() and watcher.exception() is not None:
        log.error("a part of the gateway ended that should not: restart it", exc_info=watcher.exception())


def _check_proxies(config: EdgeConfig) -> None:
    """Refuse to believe everybody: then whoever writes the header would be any user."""
    for version in (4, 6):
        networks = [network for network in config.trusted_proxies if network.version == version]
        if any(network.prefixlen == 0 for network in collapse_addresses(networks)):  # type: ignore[type-var]
            raise StartupError(
                f"trusted_proxies has every IPv{version} address, so anybody could be any user: "
                "name the addresses of your proxies only"
            )


def _warn(config: EdgeConfig, origins: Origins, sock: socket.socket) -> None:
    """What is allowed, but rarely meant."""
    if origins.any_host:
        log.warning(
            "listening on all addresses and answering to any Host: set allowed_hosts to the names in use"
        )
    if config.tls_cert is None and not config.trusted_proxies and not listening.is_loopback(sock):
        log.warning(
            "tokens and requests travel unencrypted to %s: set tls_cert and tls_key, "
            "or put a proxy with https in front and name it in trusted_proxies",
            config.host or "all addresses",
        )
