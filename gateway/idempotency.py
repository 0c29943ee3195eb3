"""`Idempotency-Key`: the same request sent twice is done once, and both get the same answer.

A request with a key goes on when its client leaves, so that the next try finds the answer; only a stream ends with its
reader. What surely was not done (refused, or never started) is not kept: the key may begin again. The table of answers is
`outcomes.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from moltbot.core.errors import InvalidRequest, MoltbotError
from moltbot.core.keyed_hash import KeyedHash
from moltbot.core.user_key import check_user_id
from moltbot.gateway.access import Route
from moltbot.gateway.bodies import body_of
from moltbot.gateway.live import Live
from moltbot.gateway.outcomes import MAX_OUTCOME_BYTES, Key, Outcome, Outcomes
from moltbot.gateway.problems import Refused, code_of, response_of
from moltbot.gateway.visit import Visit

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_LENGTH = 255
ACCEPTED = 202

log = logging.getLogger("moltbot.gateway")


class Idempotency:
    """Runs keyed requests at most once; `close` ends those that go on without their client."""

    def __init__(self, outcomes: Outcomes, live: Live, keyed_hash: KeyedHash) -> None:
        self._outcomes = outcomes
        self._live = live
        self._hash = keyed_hash
        self._tasks: set[asyncio.Task[web.StreamResponse]] = set()

    async def run(self, request: web.Request, route: Route, visit: Visit) -> web.StreamResponse:
        """Answer a request that has the header: by its handler, or with what was answered before."""
        key, again = await self._key(request, route, visit)
        with contextlib.ExitStack() as held:
            held.enter_context(self._outcomes.kept_open())
            found = await self._outcomes.begin(key, again=again)
            if isinstance(found, Outcome):
                return _replay(found)
            if found != "begun":
                raise _refusal(found)
            if "text/event-stream" in request.headers.get("Accept", ""):
                return await self._work(request, route, visit, key)
            task = asyncio.create_task(self._detached(request, route, visit, key))
            until_its_end = held.pop_all()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_at)
        task.add_done_callback(lambda _: until_its_end.close())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._live.was_ended():  # it may not have had its first turn, and so not be known there
                task.cancel()
            raise

    async def close(self) -> None:
        """End what still runs, after the router has stopped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _key(self, request: web.Request, route: Route, visit: Visit) -> tuple[Key, bool]:
        given = request.headers.getall(HEADER)
        if len(given) != 1 or not 0 < len(given[0]) <= MAX_KEY_LENGTH or not _is_plain(given[0]):
            raise InvalidRequest(
                f"{HEADER} must be one header of 1 to {MAX_KEY_LENGTH} printable ASCII characters"
            )
        body = await body_of(request)
        fields = _fields(body)
        claim = fields.get("userId", fields.get("user_id"))
        if route.audience == "users":
            user_id = visit.speak_for(claim)
        else:  # a user that an operator makes a token for has not come themselves: nothing counts on them
            user_id = check_user_id(claim) if claim is not None else None
        if route.outcome_of == "caller":
            user_id = None
        if route.audience == "users" and user_id is not None:
            owner = self._hash.digest(user_id.encode(), "outcome's user")
        else:
            owner = self._hash.digest(visit.caller.id.encode(), "outcome's credential")
        asked = [request.method, request.path, sorted(request.query.items()), request.headers.get("Accept")]
        text = json.dumps(asked).encode() + b"\0" + body
        return (
            Key(
                owner,
                given[0],
                user_id,
                self._hash.digest(text, "outcome's request"),
            ),
            fields.get("idempotent") is True,
        )

    async def _detached(
        self, request: web.Request, route: Route, visit: Visit, key: Key
    ) -> web.StreamResponse:
        return await self._live.run(visit.caller, self._work(request, route, visit, key))

    async def _work(self, request: web.Request, route: Route, visit: Visit, key: Key) -> web.StreamResponse:
        """Run the handler and keep what it answers; an error that says it was not done releases the key."""
        visit.recorded = []
        try:
            response = await route.handler(request)
        except asyncio.CancelledError:
            await self._end_cancelled(key)
            raise
        except Exception as error:
            if visit.begun is not None:  # a stream whose reader left, or read nothing for too long
                await self._end_cancelled(key)
                raise
            if _was_not_done(error):
                with self._storing():
                    await self._outcomes.release(key)
                raise
            if not isinstance(error, MoltbotError):
                log.exception("%s %s failed", request.method, request.match_info.route)
            visit.code = code_of(error)
            response = response_of(error)
        with self._storing():
            if response.status == ACCEPTED:  # it is still under way: the same key asks again how far it is
                await self._outcomes.release(key)
            else:
                await self._outcomes.end(key, _outcome(response, visit))
        return response

    async def _end_cancelled(self, key: Key) -> None:
        body = response_of(
            Refused(
                499,
                "cancelled",
                "the request ended with its client, its credential or the gateway: it may have run",
            )
        )
        with self._storing():
            await self._outcomes.end(key, Outcome(body.status, body.content_type, _bytes(body)))

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """What cannot be kept stays unknown under its key; the answer itself is as true as it was."""
        try:
            yield
        except MoltbotError as error:
            log.warning("what became of a request with an %s could not be kept: %s", HEADER, error)


def _look_at(task: asyncio.Task[web.StreamResponse]) -> None:
    if not task.cancelled():
        task.exception()  # its client may have left: then nobody is told, and it is no reason for a warning


def _replay(outcome: Outcome) -> web.Response:
    if outcome.body is None:
        raise Refused(
            409,
            "outcome_not_kept",
            f"this request was done and answered with {outcome.status}, but its answer was over {MAX_OUTCOME_BYTES} bytes and is not kept",
        )
    return web.Response(
        status=outcome.status,
        body=outcome.body,
        headers={"Content-Type": outcome.content_type, REPLAYED: "true"},
    )


def _refusal(found: str) -> Refused:
    match found:
        case "different":
            return Refused(
                409,
                "idempotency_key_reused",
                f"this {HEADER} came with another request before: use a new one",
            )
        case "unfinished":
            return Refused(
                409,
                "idempotency_unfinished",
                "the request with this key is still under way: send it again later for its answer",
                retry_after=1.0,
            )
    return Refused(
        409,
        "idempotency_unknown",
        "the gateway ended while the request with this key ran, so it may have run: look, then use a new key if need be",
    )


def _was_not_done(error: Exception) -> bool:
    match error:
        case MoltbotError():
            return error.verdict == "not_started" and error.code != "internal"
        case Refused() | web.HTTPException():
            return True
    return False


def _outcome(response: web.StreamResponse, visit: Visit) -> Outcome:
    body = visit.stored_body
    if body is None and isinstance(response, web.Response):
        body = _bytes(response)
    elif body is None and visit.recorded is not None:
        body = b"".join(visit.recorded)
    return Outcome(response.status, response.headers.get("Content-Type", "application/octet-stream"), body)


def _bytes(response: web.Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b""


def _fields(body: bytes) -> dict[str, Any]:
    """The body as an object, where it is one: what is wrong with it, the route will say."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict):
            return found
    return {}


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()
