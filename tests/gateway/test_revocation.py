"""What ends with a credential, revoked or expired: requests under way, their streams, and their handlers; at once.

How tokens are made and listed is in `test_tokens.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from moltbot.gateway.access import Credential, Scope
from moltbot.gateway.live import Live
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE, FakeClock
from tests.gateway.edge_support import EVENTS, ask, cookie_of, create, link_of, route_as, sign_in
from tests.support import TOKEN, call, gateway_in, logged, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("revocation") / "stage")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def staged(place: Path) -> AsyncIterator[Gateway]:
    async with gateway_in(place.parent / "base") as running:
        yield running


@asynccontextmanager
async def streaming(
    gateway: Gateway, token: str, payload: dict[str, Any], **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream whose first event has come, so that more can only be cut off."""
    given = {"Authorization": f"Bearer {token}"} | EVENTS | headers
    body = {"type": "tell", "payload": payload}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/api/route", json=body, headers=given) as response,
    ):
        assert response.status == 200
        assert await response.content.readuntil(b"\r\n\r\n")
        yield response


async def revoke(gateway: Gateway, id: str, token: str = TOKEN, **headers: str) -> None:
    answer = await ask(gateway, "DELETE", f"/api/tokens/{id}", token, headers=headers)
    assert (answer.status, answer.json) == (200, {"revoked": True})


async def cut_off(response: aiohttp.ClientResponse) -> bool:
    """Read a stream to its end; True if that was no orderly one."""
    try:
        async with asyncio.timeout(PATIENCE):
            while await response.content.readany():
                pass
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError):
        return True
    return False


@pytest.mark.parametrize("key", ["", "a-key"])
async def test_an_open_stream_ends_and_its_handler_is_cancelled(
    staged: Gateway, place: Path, key: str
) -> None:
    user = f"ada{key}"
    made, other = await create(staged, userId=user), await create(staged, userId=f"ben{key}")
    keyed = {"Idempotency-Key": key} if key else {}
    async with (
        streaming(staged, made["token"], {"stage": str(place), "n": 1}, **keyed) as ended,
        streaming(staged, other["token"], {"stage": str(place), "n": 1}) as kept,
    ):
        await logged(place, f"begin {user} 1")
        await logged(place, f"begin ben{key} 1")
        await revoke(staged, made["id"])
        (await route_as(staged, made["token"], "echo")).problem(401, "unauthorized")
        assert await cut_off(ended)
        await logged(place, f"cancelled {user} 1")
        (place / f"go ben{key}").touch()  # the others' goes on to its end
        assert not await cut_off(kept)
    await logged(place, f"end ben{key} 1")
    again = await create(staged, userId=user)
    if key:
        answer = await route_as(
            staged, again["token"], "tell", payload={"stage": str(place), "n": 1}, headers=EVENTS | keyed
        )
        answer.problem(499, "cancelled")
        assert answer.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", [None, "k-1"])
async def test_a_request_under_way_ends(staged: Gateway, place: Path, key: str | None) -> None:
    user = f"hal{key}"
    made = await create(staged, userId=user)
    headers = {} if key is None else {"Idempotency-Key": key}
    payload = {"stage": str(place), "until": "never", "n": 2}
    under_way = asyncio.create_task(route_as(staged, made["token"], "hold", payload=payload, headers=headers))
    await logged(place, f"begin {user} 2")
    await revoke(staged, made["id"])
    with pytest.raises(aiohttp.ClientConnectionError):
        await under_way
    await logged(place, f"cancelled {user} 2")
    if key is not None:
        token = (await create(staged, userId=user))["token"]
        answer = await route_as(staged, token, "hold", payload=payload, headers=headers)
        assert "may have run" in answer.problem(499, "cancelled")


async def test_a_keyed_request_whose_client_has_left_ends_too(staged: Gateway, place: Path) -> None:
    made = await create(staged, userId="eve")
    payload = {"stage": str(place), "until": "never", "n": 3}
    headers = {"Idempotency-Key": "left"}
    under_way = asyncio.create_task(route_as(staged, made["token"], "hold", payload=payload, headers=headers))
    await logged(place, "begin eve 3")
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    await revoke(staged, made["id"])
    await logged(place, "cancelled eve 3")


async def test_a_token_that_expires_ends_its_stream(staged: Gateway, place: Path) -> None:
    made = await create(staged, userId="kim", expiresIn=1000)
    async with streaming(staged, made["token"], {"stage": str(place), "n": 4}) as response:
        assert await cut_off(response)
    await logged(place, "cancelled kim 4")
    (await route_as(staged, made["token"], "echo")).problem(401, "unauthorized")
    assert made["id"] not in (await call(staged, "GET", "/api/tokens")).text
    await create(staged, userId="kim")  # whoever comes next clears away what is over
    (await call(staged, "DELETE", f"/api/tokens/{made['id']}")).problem(404, "not_found")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "my-own"}])
async def test_whoever_revokes_their_own_token_is_answered(
    staged: Gateway, place: Path, headers: dict[str, str]
) -> None:
    made = await create(staged, operator=True, scopes=["admin", "route"])
    payload = {"stage": str(place), "until": "never", "n": len(headers)}
    other = asyncio.create_task(route_as(staged, made["token"], "hold", f"own{len(headers)}", payload))
    await logged(place, f"begin own{len(headers)} {len(headers)}")
    await revoke(staged, made["id"], made["token"], **headers)
    with pytest.raises(aiohttp.ClientConnectionError):
        await other
    (await ask(staged, "GET", "/api/tokens", made["token"])).problem(401, "unauthorized")


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "out"}])
async def test_signing_out_is_answered_and_ends_the_rest(staged: Gateway, headers: dict[str, str]) -> None:
    cookie = cookie_of(await sign_in(staged, await link_of(staged, userId="ada")))
    origin = {"Cookie": cookie, "Origin": staged.url} | headers
    answer = await ask(staged, "POST", "/api/logout", headers=origin)
    assert (answer.status, answer.json) == (200, {"signedOut": True})
    (await ask(staged, "POST", "/api/logout", headers=origin)).problem(401, "unauthorized")


async def test_two_revocations_at_once_are_both_answered(staged: Gateway) -> None:
    made = await create(staged, userId="ada")
    answers = await asyncio.gather(*(call(staged, "DELETE", f"/api/tokens/{made['id']}") for _ in range(8)))
    assert {answer.status for answer in answers} <= {200, 404}
    assert 200 in {answer.status for answer in answers}
    (await call(staged, "DELETE", f"/api/tokens/{made['id']}")).problem(404, "not_found")


@pytest.mark.parametrize("id", ["operator", "proxy", "nothing", "%00", "..%2f", "x" * 1000])
async def test_what_is_no_token_cannot_be_revoked(staged: Gateway, id: str) -> None:
    (await call(staged, "DELETE", f"/api/tokens/{id}")).problem(404, "not_found")


# --- the list of what is under way, with the time in the test's hand ---------------------------------

FOR_ADA = Credential("a", "ada", frozenset(Scope), expires_at=1_700_000_010.0)


async def work(live: Live, credential: Credential, ended: list[bool]) -> None:
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(live.was_ended())
            raise

    await live.run(credential, wait())


async def test_work_ends_at_the_moment_at_which_its_credential_does() -> None:
    clock = FakeClock()
    live, ended = Live(clock), list[bool]()
    tasks = [asyncio.create_task(work(live, FOR_ADA, ended)) for _ in range(3)]
    other = asyncio.create_task(work(live, Credential("b", "ben", frozenset(Scope)), ended))
    await asyncio.sleep(0)
    clock.advance(9.999)
    await asyncio.sleep(0)
    assert ended == []
    clock.advance(0.001)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ended == [True] * 3
    assert len(live) == 1
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert ended == [True] * 3 + [False]  # that was somebody who left
    assert (len(live), clock.pending) == (0, 0)


async def test_what_ended_by_itself_leaves_nothing_behind() -> None:
    clock = FakeClock()
    live = Live(clock)
    for _ in range(100):
        assert await live.run(FOR_ADA, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ValueError, match="no"):
            await live.run(FOR_ADA, fail())
    assert (len(live), clock.pending) == (0, 0)
    live.end("a")
    live.end("nobody")


async def fail() -> None:
    raise ValueError("no")


async def test_a_request_ends_its_own_credential_from_any_of_its_tasks() -> None:
    live, ended = Live(FakeClock()), list[bool]()
    other = asyncio.create_task(work(live, FOR_ADA, ended))
    await asyncio.sleep(0)

    async def inner() -> str:
        live.end("a")
        await asyncio.sleep(0)
        return "answered"

    async def outer() -> str:
        return await asyncio.create_task(live.run(FOR_ADA, inner()))

    assert await asyncio.create_task(live.run(FOR_ADA, outer())) == "answered"
    await asyncio.gather(other, return_exceptions=True)
    assert ended == [True]
