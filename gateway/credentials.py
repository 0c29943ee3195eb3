"""The credentials that are kept: tokens, one-time links and browsers' sessions; in `moltbot.db` as hashes, in memory to check.

The text of a token is shown once, when it is made: `mbt_<id>_<secret>`. Only the SHA-256 of the secret is kept; it has 256
bits of chance, so a slow hash would protect nothing. The operator's own token is a file, see `sandbox/secret_file.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from moltbot.core.clock import Clock
from moltbot.core.errors import InvalidRequest, NotFound, Unavailable
from moltbot.core.jsonable import from_timestamp, iso_time
from moltbot.core.service import Service
from moltbot.core.user_key import check_user_id
from moltbot.gateway.access import Credential, Scope, parse_scopes
from moltbot.router.database import WAIT, Database
from moltbot.router.schema import forgettings, tokens

T = TypeVar("T")
Kind = Literal["token", "link", "session"]

log = logging.getLogger("moltbot.gateway")

PREFIX = "mbt"
MAX_CREDENTIALS = 10_000
MAX_LABEL = 100
LINK_SECONDS = 300.0
SESSION_SECONDS = 12 * 3600.0
MAX_TOKEN_TEXT = 200
_TEXT = re.compile(rf"({PREFIX}_[0-9a-f]*_)[A-Za-z0-9_-]+")
_INSERT = insert(tokens)
_COUNT = select(func.count()).select_from(tokens)
_FORGETTING = select(forgettings.c.user_id).where(forgettings.c.user_id == bindparam("user_id"))
_NOBODY = hashlib.sha256(b"").digest()


@dataclass(frozen=True)
class Kept:
    """One kept credential, without its secret. Times are seconds since 1970."""

    id: str
    kind: Kind
    digest: bytes
    user_id: str | None
    scopes: frozenset[Scope]
    label: str
    created: float
    expires: float | None

    def to_json(self) -> dict[str, Any]:
        """For lists: all but the digest, in camelCase."""
        return {
            "id": self.id,
            "kind": self.kind,
            "userId": self.user_id,
            "scopes": [scope for scope in Scope if scope in self.scopes],
            "label": self.label,
            "createdAt": iso_time(from_timestamp(self.created)),
            "expiresAt": None if self.expires is None else iso_time(from_timestamp(self.expires)),
        }

    @cached_property
    def credential(self) -> Credential:
        """What a request shows by it."""
        return Credential(
            self.id, self.user_id, self.scopes, self.expires, from_cookie=self.kind == "session"
        )


class Credentials(Service):
    """All that are kept. on_end: told the id of each that ended before its time. Start the database before it."""

    def __init__(self, database: Database, clock: Clock, on_end: Callable[[str], None]) -> None:
        super().__init__()
        self._database = database
        self._clock = clock
        self._on_end = on_end
        self._kept: dict[str, Kept] = {}

    async def _start(self) -> None:
        self._kept = await self._database.transact(_load)

    async def _stop(self) -> None:
        self._kept = {}

    def check(self, text: str, kind: Kind) -> Credential | None:
        """The credential of a token's text, if it is one, of this kind and not over; the same time for each wrong one."""
        kept, digest = self._find(text, kind)
        good = hmac.compare_digest(digest, kept.digest if kept is not None else _NOBODY)
        return kept.credential if good and kept is not None else None

    def _find(self, text: str, kind: Kind) -> tuple[Kept | None, bytes]:
        prefix, _, rest = text[:MAX_TOKEN_TEXT].partition("_")
        id, _, secret = rest.partition("_")
        kept = self._kept.get(id) if prefix == PREFIX and secret else None
        if kept is not None and (kept.kind != kind or _is_over(kept, self._clock.time())):
            kept = None
        return kept, _digest(secret)

    def valid(self) -> list[Kept]:
        """Those that are not over, the oldest first."""
        now = self._clock.time()
        return sorted(
            (kept for kept in self._kept.values() if not _is_over(kept, now)), key=lambda kept: kept.created
        )

    async def create(
        self,
        kind: Kind,
        user_id: str | None,
        scopes: Iterable[str],
        *,
        label: str = "",
        seconds: float | None = None,
    ) -> tuple[Kept, str]:
        """Make a credential that ends in `seconds`, durable when this returns, and the text that shows it, given only here.

        Raises InvalidRequest, and Unavailable if there are too many or it cannot be stored.
        """
        if user_id is not None:
            check_user_id(user_id)
        now = self._clock.time()
        kept, text = _make(kind, user_id, parse_scopes(scopes), _check_label(label), now, seconds)

        def store(connection: Connection) -> None:
            connection.execute(delete(tokens).where(tokens.c.expires <= now))
            if connection.execute(_COUNT).scalar_one() >= MAX_CREDENTIALS:
                raise Unavailable(
                    f"there are {MAX_CREDENTIALS} tokens, links and sessions, the most allowed: revoke some, see `moltbot tokens list`",
                    retryable=False,
                )
            _insert(connection, kept)

        def note(_: None) -> None:
            for over in [other.id for other in self._kept.values() if _is_over(other, now)]:
                self._drop(over)
            self._kept[kept.id] = kept

        await self._commit(store, note)
        _log(kept, "made")
        return kept, text

    async def redeem(self, text: str) -> tuple[Kept, str] | None:
        """Turn a one-time link into a session, once; None if it is no link, or was used or is over.

        Raises Unavailable if that cannot be stored; the link is good then as before, unless the disk was only too slow.
        """
        link, digest = self._find(text, "link")
        if not hmac.compare_digest(digest, link.digest if link is not None else _NOBODY) or link is None:
            return None
        now = self._clock.time()
        session, session_text = _make("session", link.user_id, link.scopes, link.label, now, SESSION_SECONDS)

        def swap(connection: Connection) -> bool:
            if connection.execute(delete(tokens).where(tokens.c.id == link.id)).rowcount != 1:
                return False  # of two at the same time one comes first here
            _insert(connection, session)
            return True

        def note(swapped: bool) -> None:
            self._drop(link.id)
            if swapped:
                self._kept[session.id] = session

        if not await self._commit(swap, note):
            return None
        _log(session, f"made of link {link.id}")
        return session, session_text

    async def revoke(self, id: str) -> None:
        """End a credential now, with all that works for it; raises NotFound, and Unavailable if that cannot be stored."""
        kept = self._kept.get(id)
        if kept is None:
            raise NotFound(
                "there is no token with this id: `moltbot tokens list` shows them"
            )  # it may be a secret
        await self._commit(
            lambda connection: connection.execute(delete(tokens).where(tokens.c.id == id)),
            lambda _: self._drop(id),
        )
        _log(kept, "revoked")

    def forget_user(self, user_id: str) -> None:
        """End all of a user's; their rows were deleted with the user."""
        for kept in [kept for kept in self._kept.values() if kept.user_id == user_id]:
            self._drop(kept.id)

    async def reload(self) -> None:
        """Read all of them anew, and end those that are gone."""

        def note(kept: dict[str, Kept]) -> None:
            before, self._kept = self._kept, kept
            for id in before.keys() - kept.keys():
                self._on_end(id)

        await self._commit(_load, note)

    async def _commit(self, work: Callable[[Connection], T], note: Callable[[T], None]) -> T:
        """Run `work` in a transaction, and `note` its result as soon as it is durable.

        So memory follows the commits in their order, also when whoever waits for one is cancelled: a revocation whose
        client has left must not stay without effect.
        """
        future = self._database.submit(work)

        def done(future: asyncio.Future[T]) -> None:
            if not future.cancelled() and future.exception() is None:
                note(future.result())

        future.add_done_callback(done)
        await asyncio.wait({future}, timeout=WAIT)
        if not future.done():
            raise Unavailable(
                "the database does not answer, so this may have been done or not: see whether its disk is failing",
                verdict="maybe_ran",
            )
        return future.result()

    def _drop(self, id: str) -> None:
        if self._kept.pop(id, None) is not None:
            self._on_end(id)


def _is_over(kept: Kept, now: float) -> bool:
    return kept.expires is not None and kept.expires <= now


def without_secrets(text: str) -> str:
    """`text` with the secret part of every token in it left out: for logs of what strangers send."""
    return _TEXT.sub(r"\1…", text) if f"{PREFIX}_" in text else text


def _make(
    kind: Kind, user_id: str | None, scopes: frozenset[Scope], label: str, now: float, seconds: float | None
) -> tuple[Kept, str]:
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    expires = None if seconds is None else now + seconds
    return Kept(id, kind, _digest(secret), user_id, scopes, label, now, expires), f"{PREFIX}_{id}_{secret}"


def _log(kept: Kept, what: str) -> None:
    whose = "an operator's" if kept.user_id is None else "a user's"
    log.info("%s %s %s, %s (%s)", kept.kind, kept.id, what, whose, " ".join(sorted(kept.scopes)))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _check_label(label: str) -> str:
    if not isinstance(label, str) or len(label) > MAX_LABEL or not (label == "" or label.isprintable()):
        raise InvalidRequest(f"label must be printable text of at most {MAX_LABEL} characters")
    return label


def _row(kept: Kept) -> dict[str, object]:
    return {
        "id": kept.id,
        "kind": kept.kind,
        "digest": kept.digest,
        "user_id": None if kept.user_id is None else kept.user_id.encode(),
        "scopes": " ".join(sorted(kept.scopes)),
        "label": kept.label,
        "created": kept.created,
        "expires": kept.expires,
    }


def _insert(connection: Connection, kept: Kept) -> None:
    row = _row(kept)
    if connection.execute(_FORGETTING, row).first() is not None:
        raise Unavailable("this user is being forgotten: try again when that is done", retry_after=1.0)
    connection.execute(_INSERT, row)


def _load(connection: Connection) -> dict[str, Kept]:
    found = connection.execute(select(tokens))
    return {
        row.id: Kept(
            row.id,
            row.kind,
            row.digest,
            None if row.user_id is None else row.user_id.decode(),
            parse_scopes(row.scopes.split()),
            row.label,
            row.created,
            row.expires,
        )
        for row in found
    }
