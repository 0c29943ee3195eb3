"""One request at the edge: what the checks found out about it, for the routes, for headers and for the access log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from moltbot.gateway.access import Credential, check_claims
from moltbot.gateway.outcomes import MAX_OUTCOME_BYTES
from moltbot.gateway.problems import Refused
from moltbot.gateway.rates import Standing

if TYPE_CHECKING:
    from moltbot.gateway.edge import Edge


@dataclass(slots=True)
class Visit:
    """id: of the request, also in the header `X-Request-Id`. recorded: what a stream sent, kept only for replaying."""

    edge: Edge
    id: str
    credential: Credential | None = None
    """Who is asking; None on routes that anyone may ask."""
    claims: Sequence[str] = ()
    user_id: str | None = None
    worker_id: str | None = None
    incarnation: int | None = None
    code: str | None = None
    standings: list[Standing] = field(default_factory=list)
    counts_user: bool = True
    """Whether the request is one of its user's rate: theirs are, and what an operator runs for them."""
    body: bytes | None = None
    body_room: int = 0
    recorded: list[bytes] | None = None
    recorded_bytes: int = 0
    begun: web.StreamResponse | None = None
    """The answer whose head is sent, or about to be: no other one can follow."""
    stored_body: bytes | None = None
    """What is kept for replaying instead of the answer, where that holds a secret."""

    @property
    def caller(self) -> Credential:
        """Who is asking, on a route that asks for a credential."""
        if self.credential is None:
            raise RuntimeError("this route asks for no credential")
        return self.credential

    def speak_for(self, claim: object = None) -> str | None:
        """The user that this request is for; `claim`: the id that its body gives, if any.

        None if an operator named nobody. Raises Refused (403 for another user than the credential's, 429 beyond the
        user's rate) and InvalidRequest.
        """
        claims = self.claims if claim is None else (claim, *self.claims)
        user_id = check_claims(self.caller, claims)
        if user_id is not None and self.user_id is None:
            self.user_id = user_id
            if self.counts_user:
                self.count(self.edge.take_of_user(user_id))
        return user_id

    def record(self, data: bytes) -> None:
        """A stream sent `data`: keep it for replaying, if that is wanted and while it is not too much."""
        if self.recorded is not None:
            self.recorded.append(data)
            self.recorded_bytes += len(data)
            if self.recorded_bytes > MAX_OUTCOME_BYTES:
                self.recorded = None

    def count(self, standing: Standing | None) -> None:
        """Note how a bucket stands; raises Refused if it was empty."""
        if standing is None:
            return
        self.standings.append(standing)
        if standing.wait:
            raise Refused(
                429,
                "rate_limited",
                f"more than {standing.rate} requests of this {standing.name}: wait {standing.wait:.3g} s before sending more",
                retry_after=standing.wait,
            )


VISIT = web.RequestKey("visit", Visit)
