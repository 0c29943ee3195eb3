"""What every request passes, in this order: Host and Origin, credential, how often it came, scope, whose the request is
and how often that user's came; then its route.

Probes come with whatever Host their prober knows, usually an address, and learn one word: they pass without these checks.
While the gateway starts there is nothing yet to check a credential with: everything but the probes is told to wait. Every
error leaves as problem+json, and every request leaves a line in the access log.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets

from aiohttp import web
from aiohttp.hdrs import SERVER
from aiohttp.typedefs import Handler
from multidict import CIMultiDict, istr

from moltbot.core.clock import Clock
from moltbot.core.errors import MoltbotError, NotRunning
from moltbot.core.units import Rate
from moltbot.gateway.access import Credential, Route, Scope, check_access
from moltbot.gateway.access_log import AccessLog
from moltbot.gateway.auth import PROXY, Authenticator, check_site
from moltbot.gateway.bodies import BodyRoom
from moltbot.gateway.config import EdgeConfig
from moltbot.gateway.credentials import Credentials
from moltbot.gateway.heads import check_head
from moltbot.gateway.idempotency import HEADER as IDEMPOTENCY_KEY
from moltbot.gateway.idempotency import Idempotency
from moltbot.gateway.live import Live
from moltbot.gateway.origins import Origins
from moltbot.gateway.problems import CLIENT_CLOSED_REQUEST, Refused, code_of, response_of
from moltbot.gateway.rates import Buckets, Standing
from moltbot.gateway.visit import VISIT, Visit

log = logging.getLogger("moltbot.gateway")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
}
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}
_REQUEST_ID, _POLICY, _LIMIT = istr("X-Request-Id"), istr("RateLimit-Policy"), istr("RateLimit")


class Edge:
    """The middleware and what it knows. `open` lets requests with credentials in, once there is something to check them with."""

    def __init__(self, config: EdgeConfig, origins: Origins, clock: Clock) -> None:
        self.config = config
        self.live = Live(clock)
        self.body_room = BodyRoom()
        self.routes: dict[web.AbstractRoute, Route] = {}
        self._origins = origins
        self._clock = clock
        self._headers = CIMultiDict(_HEADERS if config.tls_cert is None else _HEADERS | _HSTS)
        self.access_log: AccessLog | None = None
        self._auth: Authenticator | None = None
        self._credentials: Credentials | None = None
        self._idempotency: Idempotency | None = None
        self._by_credential = _buckets("credential", config.rate_limit_credential, clock)
        self._by_user = _buckets("user", config.rate_limit_user, clock)
        self._id_prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def open(self, auth: Authenticator, credentials: Credentials, idempotency: Idempotency) -> None:
        """Let requests with credentials in."""
        self._auth, self._credentials, self._idempotency = auth, credentials, idempotency

    @property
    def credentials(self) -> Credentials:
        """Those that are kept; raises NotRunning while the gateway starts."""
        if self._credentials is None:
            raise starting()
        return self._credentials

    @property
    def opened(self) -> bool:
        """False while the gateway starts."""
        return self._auth is not None

    def take_of_user(self, user_id: str) -> Standing | None:
        """Count one request of a user; None if these are not counted."""
        return self._by_user.take(user_id) if self._by_user is not None else None

    def is_encrypted(self, request: web.Request) -> bool:
        """True if the browser speaks https, to us or, by its word, to a trusted proxy."""
        return self._auth is not None and self._auth.is_encrypted(request)

    def is_operator(self, request: web.Request) -> bool:
        """For what anyone may ask and operators learn more of: does the request show an operator's credential?"""
        route = self.routes.get(request.match_info.route)
        credential = self._auth.if_shown(request) if self._auth is not None else None
        return (
            credential is not None
            and credential.user_id is None
            and route is not None
            and route.scope in credential.scopes
        )

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        visit = request[VISIT] = Visit(self, f"{self._id_prefix}-{next(self._numbers)}")
        began = self._clock.monotonic()
        status = CLIENT_CLOSED_REQUEST
        try:
            response = await self._answer(request, visit, handler)
            status = response.status
            return response
        finally:
            self.body_room.taken -= visit.body_room
            self._note(request, visit, status, self._clock.monotonic() - began)

    async def _answer(self, request: web.Request, visit: Visit, handler: Handler) -> web.StreamResponse:
        try:
            return await self._check_and_run(request, visit, handler)
        except (MoltbotError, Refused, web.HTTPException) as error:
            visit.code = code_of(error)
            if isinstance(error, MoltbotError):
                visit.worker_id = error.worker
            begun = self._cut(request, visit)
            return begun if begun is not None else response_of(error)
        except asyncio.CancelledError:
            if not self.live.was_ended():
                visit.code = "cancelled"
                raise
            visit.code = "revoked"
            if request.transport is not None:
                request.transport.abort()  # whatever was streamed, no more of it
            raise
        except Exception as error:
            begun = self._cut(request, visit)
            if begun is not None and isinstance(error, ConnectionError | TimeoutError):
                visit.code = "cancelled"  # its reader left, or read nothing for too long
                return begun
            log.exception("%s %s failed", request.method, request.match_info.route)
            visit.code = "internal"
            return begun if begun is not None else response_of(error)

    def _cut(self, request: web.Request, visit: Visit) -> web.StreamResponse | None:
        """Close the connection of an answer that has begun: it can be neither finished nor replaced. Returns it."""
        if visit.begun is not None and request.transport is not None:
            request.transport.abort()
        return visit.begun

    async def _check_and_run(
        self, request: web.Request, visit: Visit, handler: Handler
    ) -> web.StreamResponse:
        check_head(request)
        route = self.routes.get(request.match_info.route)
        if route is None or not route.any_host:
            self._origins.check(request)
            check_site(request, route)
        if route is not None and route.audience == "anyone":
            return await handler(request)
        auth, idempotency = self._auth, self._idempotency
        if auth is None or idempotency is None:
            raise starting()
        credential = visit.credential = auth.require(request)
        if self._by_credential is not None:
            visit.count(self._by_credential.take(_bucket_of(credential)))
        if route is None:  # no such path, or no such method: only whoever may know is told
            return await handler(request)
        check_access(route, credential)
        visit.counts_user = credential.user_id is not None or route.scope is Scope.ROUTE
        visit.claims = auth.claimed_by_header(request)
        if request.rel_url.raw_query_string:
            visit.claims = [*visit.claims, *request.query.getall("userId", ())]
        if visit.claims or credential.user_id is not None:
            visit.speak_for()
        if route.changes and IDEMPOTENCY_KEY in request.headers:
            return await self.live.run(credential, idempotency.run(request, route, visit))
        return await self.live.run(credential, handler(request))

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put on every response what all have; called before its head is sent."""
        headers = response.headers
        headers.update(self._headers)
        if SERVER in headers:
            del headers[SERVER]
        visit = request.get(VISIT)
        if visit is None:
            return
        visit.begun = response
        headers[_REQUEST_ID] = visit.id
        if visit.standings:
            headers[_POLICY] = ", ".join([standing.policy for standing in visit.standings])
            headers[_LIMIT] = ", ".join([standing.limit for standing in visit.standings])

    def _note(self, request: web.Request, visit: Visit, status: int, seconds: float) -> None:
        if self.access_log is not None:
            self.access_log.note(
                visit.id,
                request.method,
                self._auth.without_secrets(request.path) if self._auth is not None else request.path,
                status,
                seconds * 1000,
                remote=request.remote,
                credential=visit.credential.id if visit.credential is not None else None,
                user_id=visit.user_id,
                worker=visit.worker_id,
                incarnation=visit.incarnation,
                code=visit.code,
            )


def _buckets(name: str, rate: Rate | None, clock: Clock) -> Buckets | None:
    return Buckets(name, rate, clock) if rate is not None else None


def _bucket_of(credential: Credential) -> str:
    return f"proxy {credential.user_id}" if credential.id == PROXY else credential.id


def starting() -> NotRunning:
    """The refusal of what comes before the workers run."""
    return NotRunning("the gateway is starting: send the request again in a moment", retry_after=1.0)
