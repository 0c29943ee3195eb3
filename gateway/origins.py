"""Which names this gateway answers to: checks of Host (DNS rebinding) and Origin (other sites' pages in a browser)."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.hdrs import HOST, ORIGIN

from moltbot.gateway.problems import Refused

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_KNOWN = 100
WILDCARDS = frozenset({"0.0.0.0", "::", ""})


class Origins:
    """The allowed names; `any_host` when bound to all addresses without a list."""

    def __init__(self, bound: str, allowed_hosts: Iterable[str]) -> None:
        names = {name.lower().strip("[]") for name in allowed_hosts}
        self.any_host = bound in WILDCARDS and not names
        # Host headers that were looked at and are ours: parsing one takes a while.
        self._known: set[str] = set()
        self._names = frozenset(names | LOOPBACK_NAMES | ({bound.lower()} - WILDCARDS))

    def check(self, request: web.Request) -> None:
        """Raise Refused for a foreign Host (421) or Origin (403)."""
        hosts = request.headers.getall(HOST, [])
        if len(hosts) != 1 or hosts[0] not in self._known:
            self._check_host(hosts)
        if request.raw_path[:1] != "/":
            _check_absolute(request.raw_path, hosts[0])
        origins = request.headers.getall(ORIGIN, ())
        if len(origins) > 1:
            raise Refused(400, "duplicate_header", "the header Origin is given twice: give it once")
        origin = origins[0] if origins else None
        if origin is not None and not _is_ours(origin, hosts[0], secure=request.secure):
            raise Refused(403, "foreign_origin", "pages of another site may not call this gateway")

    def _check_host(self, hosts: list[str]) -> None:
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            raise Refused(400, "bad_host", "the request must have exactly one valid Host header")
        if not self.any_host and name not in self._names:
            raise Refused(
                421, "misdirected", "this gateway does not answer to that Host: add it to allowed_hosts"
            )
        if len(self._known) < _MAX_KNOWN:
            self._known.add(hosts[0])


def _is_ours(origin: str, host: str, *, secure: bool) -> bool:
    """Without TLS of our own a proxy in front may have it: then pages are https."""
    scheme, _, name = origin.lower().partition("://")
    return name == host.lower() and (scheme == "https" or (scheme == "http" and not secure))


def _check_absolute(target: str, host: str) -> None:
    """A target may repeat the whole address; then readers differ in whether it or Host is believed."""
    parts = urlsplit(target)
    if target != "*" and (parts.netloc.lower() != host.lower() or parts.scheme not in ("http", "https")):
        raise Refused(
            400, "bad_host", "the address in the request and its Host header differ: send the path only"
        )


def _host_name(host: str) -> str | None:
    """The name without the port, lower case; None if it is not a host."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
