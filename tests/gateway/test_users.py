"""Users over HTTP: the list, exports and forgetting, by operators and by users themselves.

What forgetting leaves on disk and what survives a crash is in `tests/router/test_forgetting.py`; archives of hostile trees,
in `tests/sandbox/test_archive.py`.
"""

from __future__ import annotations

import io
import json
import tarfile

import aiohttp
import pytest

from moltbot.gateway.server import Gateway
from tests.gateway.edge_support import ask, route_as, spelled, token_of
from tests.support import TOKEN, call, post, raw

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]


async def test_the_list_has_pages_and_a_user_sees_a_receipt_only(gateway: Gateway) -> None:
    for user in ("list-b", "list-a", "list-é"):
        assert (await post(gateway, "count", user)).status == 200
    pages, after = [], "list-"
    while True:
        page = (await call(gateway, "GET", "/api/users", params={"limit": "1", "after": after})).json
        pages += [user["userId"] for user in page["users"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert [user for user in pages if user.startswith("list-")] == ["list-a", "list-b", "list-é"]
    own = (await ask(gateway, "GET", "/api/users", await token_of(gateway, "list-a"))).json
    assert own["userId"] == "list-a"
    assert "directories" not in own
    assert "directories" in (await call(gateway, "GET", "/api/users?userId=list-a")).json


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=9999999999"]
)
async def test_a_page_has_bounds(gateway: Gateway, query: str) -> None:
    assert "limit" in (await call(gateway, "GET", f"/api/users?{query}")).problem(400, "invalid_request")


async def test_a_user_exports_what_is_theirs_and_nothing_else(gateway: Gateway) -> None:
    await post(gateway, "count", "own")
    token = await token_of(gateway, "own")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{gateway.url}/api/users/export") as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Disposition"] == 'attachment; filename="own.tar"'
        body = await response.read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        description = archive.extractfile("user.json")
        assert description is not None
        assert json.load(description)["userId"] == "own"
    for user in ("a bystander", "who is not there"):
        answer = await ask(gateway, "GET", "/api/users/export", token, params={"userId": user})
        answer.problem(403, "another_user")
    assert "name one user" in (await call(gateway, "GET", "/api/users/export")).problem(
        400, "invalid_request"
    )


async def test_an_export_has_no_head(gateway: Gateway) -> None:
    """It would send the archive all the same, and whatever comes next on that connection would be read as its answer."""
    await post(gateway, "count", "head")
    answer = await call(gateway, "HEAD", "/api/users/export?userId=head")
    assert answer.status == 405


async def test_a_user_may_forget_themselves_and_is_told_so(gateway: Gateway) -> None:
    await post(gateway, "count", "selfish")
    token = await token_of(gateway, "selfish", scopes=["route", "read", "admin"])
    answer = await ask(gateway, "DELETE", "/api/users", token, headers={"Idempotency-Key": "me"})
    assert (answer.status, answer.json) == (200, {"forgotten": True})
    (await ask(gateway, "GET", "/api/users", token)).problem(401, "unauthorized")
    (await call(gateway, "GET", "/api/users?userId=selfish")).problem(404, "not_found")


async def test_the_same_key_never_forgets_a_user_who_came_back(gateway: Gateway) -> None:
    await post(gateway, "count", "again")
    headers = {"Idempotency-Key": "forget again"}
    forget = [await call(gateway, "DELETE", "/api/users?userId=again", headers=headers)]
    assert (await post(gateway, "count", "again")).json["payload"] == 1
    forget.append(await call(gateway, "DELETE", "/api/users?userId=again", headers=headers))
    assert [answer.status for answer in forget] == [200, 200]
    assert forget[1].headers["Idempotency-Replayed"] == "true"
    assert (await post(gateway, "count", "again")).json["payload"] == 2


async def test_tokens_of_the_forgotten_are_void_and_the_user_may_come_back(gateway: Gateway) -> None:
    token = await token_of(gateway, "leaver")
    assert (await route_as(gateway, token, "count")).json["payload"] == 1
    assert (await call(gateway, "DELETE", "/api/users?userId=leaver")).status == 200
    (await route_as(gateway, token, "count")).problem(401, "unauthorized")
    assert (await post(gateway, "count", "leaver")).json["epoch"] == 2
    (await route_as(gateway, token, "count")).problem(401, "unauthorized")


async def test_who_never_came_but_has_a_token_can_be_forgotten(gateway: Gateway) -> None:
    token = await token_of(gateway, "invited", label="invited's laptop")
    assert (await call(gateway, "DELETE", "/api/users?userId=invited")).json == {"forgotten": True}
    (await ask(gateway, "GET", "/api/users", token)).problem(401, "unauthorized")
    assert "invited" not in (await call(gateway, "GET", "/api/tokens")).text
    (await call(gateway, "DELETE", "/api/users?userId=invited")).problem(404, "not_found")
    assert (await post(gateway, "count", "invited")).json["epoch"] == 1


async def test_a_body_of_many_names_with_one_twice_costs_no_time(gateway: Gateway) -> None:
    names = ",".join(f'"n{number}":0' for number in range(100_000))
    body = f'{{"type":"echo","userId":"x","payload":{{{names},"n99999":1}}}}'.encode()
    answer = await raw(gateway, spelled("POST /api/route", body, token=TOKEN))
    assert '"n99999" twice' in answer.problem(400, "invalid_request").replace("'", '"')
