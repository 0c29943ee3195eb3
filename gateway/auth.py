"""The operator's token on every request; how its file is made and read is in `tokens.py`.

Tokens of users, scopes and sessions do not exist yet: whoever has this token may do everything, for every user.
"""

from __future__ import annotations

import hmac

from aiohttp import web

from moltbot.gateway.problems import Refused


class OperatorAuth:
    """Checks the `Authorization: Bearer` header."""

    def __init__(self, token: str) -> None:
        self._expected = token.encode()

    def allows(self, request: web.Request) -> bool:
        """True if the request carries the operator's token; takes the same time for every wrong one."""
        headers = request.headers.getall("Authorization", ())
        if len(headers) != 1:
            return False
        scheme, _, given = headers[0].partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), self._expected
        )

    def require(self, request: web.Request) -> None:
        """Raise the 401 of a request without a valid credential."""
        if not self.allows(request):
            raise Refused(
                401,
                "unauthorized",
                "a valid credential is needed: send the header `Authorization: Bearer TOKEN` with the operator's token",
                {"WWW-Authenticate": 'Bearer realm="moltbot"'},
            )
