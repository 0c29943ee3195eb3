"""Who may do what: scopes, credentials, the table of routes, and the checks between them.

A credential with a user is that user's and speaks for nobody else; one without is an operator's and may speak for any. How
a credential is found in a request is in `auth.py`, how one is kept in `credentials.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from aiohttp import web

from moltbot.core.errors import InvalidRequest, quote
from moltbot.core.user_key import check_user_id
from moltbot.gateway.problems import Refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Audience = Literal["anyone", "users", "operators"]


class Scope(StrEnum):
    """What a credential is good for: running requests, durable jobs, reading, and changing what is there."""

    ROUTE = "route"
    JOBS = "jobs"
    READ = "read"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)
USER_SCOPES = frozenset({Scope.ROUTE, Scope.JOBS, Scope.READ})
"""What a user's token is good for unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Credential:
    """Who is asking. id: for logs and for revoking, never the secret. user_id: None for an operator. expires_at: seconds since 1970."""

    id: str
    user_id: str | None
    scopes: frozenset[Scope]
    expires_at: float | None = None
    from_cookie: bool = False


OPERATOR = Credential("operator", None, ALL_SCOPES)
"""Whoever has the operator's own token."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table of routes.

    audience: `anyone` needs no credential; `users` takes a user's credential for that user, and an operator's; `operators`
    takes no user's. any_host: answered whatever the Host. api: mounted below /api and /api/v1. head: GET answers HEAD too.
    outcome_of: whose the answer to a keyed request is: the user's whom it is for, or the caller's.
    """

    method: str
    path: str
    handler: Handler
    scope: Scope
    audience: Audience = "operators"
    any_host: bool = False
    api: bool = True
    head: bool = True
    outcome_of: Literal["user", "caller"] = "user"

    @property
    def changes(self) -> bool:
        """True if a request may change something, and so takes an Idempotency-Key."""
        return self.method not in ("GET", "HEAD")


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes with these names, at least one; raises InvalidRequest."""
    known = ", ".join(Scope)
    scopes = set()
    for name in names:
        if name not in ALL_SCOPES:
            raise InvalidRequest(f"{quote(name)} is not a scope: there are {known}")
        scopes.add(Scope(name))
    if not scopes:
        raise InvalidRequest(f"a token without scopes is good for nothing: give some of {known}")
    return frozenset(scopes)


def check_access(route: Route, credential: Credential) -> None:
    """Raise the 403 of a credential that is not good for this route."""
    if route.audience == "operators" and credential.user_id is not None:
        raise Refused(
            403, "forbidden", "this is for operators: a user's credential is good for that user's own data"
        )
    if route.scope not in credential.scopes:
        raise Refused(
            403,
            "missing_scope",
            f"this credential lacks the scope {route.scope}: use one that has it",
        )


def check_claims(credential: Credential, claims: Iterable[object]) -> str | None:
    """The one user that a request is for, by all that it says; None if it says nothing of a user.

    claims: user ids as they stand in body, query and header. Raises Refused (403) if a user's credential is used for
    another, and InvalidRequest if an operator's request names several.
    """
    user_id = credential.user_id
    for claim in claims:
        if user_id is None:
            user_id = check_user_id(claim)
        elif claim != user_id:
            if credential.user_id is None:
                raise InvalidRequest("the request names two different users: name one user, once")
            raise Refused(403, "another_user", "this credential speaks for its own user only")
    return user_id
