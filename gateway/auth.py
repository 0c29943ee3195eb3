"""From a request to the credential it shows: a bearer token, a trusted proxy's word, or a browser's session cookie.

Of several, this is the order: a bearer token counts before the proxy's word, and that before a cookie; a user whom the
proxy's header names must be the credential's in any case. What a credential is good for is in `access.py`; how the kept ones are
stored, in `credentials.py`. A valid credential always gets in: only failures are counted, per address of the caller.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from aiohttp import web
from aiohttp.hdrs import AUTHORIZATION
from multidict import istr

from moltbot.core.clock import Clock
from moltbot.core.errors import InvalidRequest
from moltbot.core.units import Rate
from moltbot.core.user_key import check_user_id
from moltbot.gateway.access import OPERATOR, USER_SCOPES, Credential, Route
from moltbot.gateway.config import EdgeConfig, Network
from moltbot.gateway.credentials import Credentials, without_secrets
from moltbot.gateway.problems import Refused
from moltbot.gateway.rates import Buckets

COOKIE = "moltbot-session"
PROXY = "proxy"
"""The id of the credential of every user whom a trusted proxy names."""
FAILURES = Rate(60, 60.0)
"""Failed authentications that one address may have answered with 401; after them it is 429."""
_FETCH_SITE = istr("Sec-Fetch-Site")
_OWN_SITES = frozenset({"same-origin", "none"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Authenticator:
    """Finds out who is asking."""

    def __init__(self, token: str, credentials: Credentials, config: EdgeConfig, clock: Clock) -> None:
        self._operator = token.encode()
        self._operator_text = token
        self._credentials = credentials
        self._proxies = config.trusted_proxies
        self._header = istr(config.proxy_user_header)
        self._failures = Buckets("failures", FAILURES, clock)

    def require(self, request: web.Request) -> Credential:
        """The request's credential; raises the 401, or after too many of them the 429, of one without."""
        credential = self.identify(request)
        if credential is None:
            self._count_failure(request)
            raise Refused(
                401,
                "unauthorized",
                "a valid credential is needed: send the header `Authorization: Bearer TOKEN`",
                {"WWW-Authenticate": 'Bearer realm="moltbot"'},
            )
        return credential

    def if_shown(self, request: web.Request) -> Credential | None:
        """The credential of a request that needs none, and is answered whatever it shows."""
        try:
            return self.identify(request)
        except (Refused, InvalidRequest):
            return None

    def _count_failure(self, request: web.Request) -> None:
        standing = self._failures.take(_origin_of(request))
        if standing.wait:
            raise Refused(
                429,
                "too_many_failures",
                "too many requests without a valid credential came from this address: wait, then send a valid one",
                retry_after=standing.wait,
            )

    def is_encrypted(self, request: web.Request) -> bool:
        """True if the browser speaks https, to us or, by its word, to a trusted proxy."""
        return request.secure or (
            self._from_proxy(request) and request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        )

    def identify(self, request: web.Request) -> Credential | None:
        """The credential, or None if there is none that is valid; raises Refused for one that contradicts itself."""
        headers = request.headers.getall(AUTHORIZATION, ())
        if headers:
            return self._bearer(headers[0]) if len(headers) == 1 else None
        if self._header in request.headers and self._from_proxy(request):
            return self._proxied(request)
        cookie = request.cookies.get(COOKIE)
        if cookie is None:
            return None
        credential = self._credentials.check(cookie, "session")
        if credential is not None:
            _check_same_site(request)
        return credential

    def without_secrets(self, text: str) -> str:
        """`text`, such as a path, for a log: credentials that were put into it by mistake are left out."""
        return without_secrets(text.replace(self._operator_text, "…"))

    def claimed_by_header(self, request: web.Request) -> Sequence[str]:
        """The users that the proxy's header names, whoever sent it: none of them may be another than the credential's."""
        return request.headers.getall(self._header, ())

    def _bearer(self, header: str) -> Credential | None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        given = given.strip()
        if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._operator):
            return OPERATOR
        return self._credentials.check(given, "token")

    def _from_proxy(self, request: web.Request) -> bool:
        if not self._proxies or request.transport is None:
            return False
        peer = request.transport.get_extra_info("peername")
        address = ip_address(peer[0].partition("%")[0]) if peer else None
        if address is None:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any(_contains(network, mapped or address) for network in self._proxies)

    def _proxied(self, request: web.Request) -> Credential:
        names = request.headers.getall(self._header)
        if len(names) != 1:
            raise Refused(400, "bad_identity", f"the proxy must send {self._header} exactly once")
        user_id = check_user_id(names[0])
        return Credential(PROXY, user_id, USER_SCOPES)


def _contains(network: Network, address: object) -> bool:
    return getattr(address, "version", None) == network.version and address in network


def _origin_of(request: web.Request) -> str:
    """Whom failures are counted for: the peer's address; of IPv6 the /64, which one caller has whole."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    if not peer:
        return ""
    address = ip_address(peer[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address  # else all of IPv4 would be one caller
    return str(address) if address.version == 4 else str(ip_network((address.packed[:8] + bytes(8), 64)))


def check_site(request: web.Request, route: Route | None) -> None:
    """Raise Refused (403) for what a browser sends in another page's name; its user may follow a link to a page of ours."""
    if request.headers.get(_FETCH_SITE, "none") in _OWN_SITES:
        return
    page = route is not None and not route.api and request.method in _SAFE_METHODS
    headers = request.headers
    if page and headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document":
        return
    raise Refused(403, "foreign_origin", "pages of another site may not call this gateway: open it by itself")


def _check_same_site(request: web.Request) -> None:
    """A cookie is sent by the browser whoever asks it to: a change must say that our own page asked."""
    if request.method in _SAFE_METHODS:
        return
    if request.headers.get("Origin") is None and request.headers.get("Sec-Fetch-Site") != "same-origin":
        raise Refused(
            403, "foreign_origin", "with a session cookie a change must come from this gateway's own page"
        )
