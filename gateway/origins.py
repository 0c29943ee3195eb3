"""Which names this gateway answers to: checks of Host (DNS rebinding) and Origin (other sites' pages in a browser)."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from moltbot.gateway.problems import Refused

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})


class Origins:
    """The allowed names; `any_host` when bound to all addresses without a list."""

    def __init__(self, bound: str, allowed_hosts: Iterable[str]) -> None:
        names = {name.lower().strip("[]") for name in allowed_hosts}
        self.any_host = bound in WILDCARDS and not names
        self._names = frozenset(names | LOOPBACK_NAMES | ({bound.lower()} - WILDCARDS))

    def check(self, request: web.Request) -> None:
        """Raise Refused for a foreign Host (421) or Origin (403)."""
        hosts = request.headers.getall("Host", [])
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None:
            raise Refused(400, "bad_host", "the request must have exactly one valid Host header")
        if not self.any_host and name not in self._names:
            raise Refused(
                421, "misdirected", "this gateway does not answer to that Host: add it to allowed_hosts"
            )
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2].lower() != hosts[0].lower():
            raise Refused(403, "foreign_origin", "pages of another site may not call this gateway")


def _host_name(host: str) -> str | None:
    """The name without the port, lower case; None if it is not a host."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
