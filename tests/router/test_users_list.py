"""The list of users: every one once, in byte order, with what they do now and what they hold on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from moltbot import InvalidRequest, NotRunning, Request, create_gateway_router
from moltbot.router import users_list
from tests.fakes import eventually
from tests.support import logged, pool_config, router_in, stage

IDS = ["a", "B", "é", "a/b", "a_b", "\U0001f980", "..", "b\0", "zz", "a b", "﹍"]


async def test_pages_hold_every_user_once_in_byte_order(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=2) as router:
        await asyncio.gather(*(router.route(Request("count", user)) for user in IDS))
        found, after = [], None
        while True:
            page = await router.list_users(after, 3)
            found += [user.user_id for user in page.users]
            assert len(page.users) <= 3
            if page.next is None:
                break
            after = page.next
        assert found == sorted(IDS, key=str.encode)
        assert (await router.list_users(found[-1])).users == []
        assert (await router.list_users(None, len(IDS))).next is None
        assert [user.user_id for user in (await router.list_users("a/", 1)).users] == ["a/b"], (
            "a cursor need be nobody"
        )


async def test_what_is_told_of_a_user(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("leave_traces", "ada", "x"))
        [ada] = (await router.list_users()).users
        receipt = router.where("ada")
        assert (ada.worker_id, ada.epoch, ada.since, ada.why) == ("worker-0", 1, receipt.since, receipt.why)
        assert (ada.loaded, ada.running, ada.waiting, ada.forgetting) == (True, 0, 0, False)
        assert ada.size is not None
        (tmp_path / "base" / "worker-0" / "cache" / "ada" / "large").write_bytes(b"x" * 1_000_000)
        larger = (await router.list_users()).users[0].size
        assert larger is not None
        assert larger - ada.size >= 1_000_000
        requests = [
            asyncio.create_task(router.route(Request("hold", "ada", {"stage": str(at), "n": number})))
            for number in range(3)
        ]
        await logged(at, "begin ada 0")
        await eventually(lambda: router.where("ada").waiting == 2)
        document = (await router.list_users()).to_json()
        assert document["next"] is None
        assert {"userId": "ada", "workerId": "worker-0", "running": 1, "waiting": 2}.items() <= document[
            "users"
        ][0].items()
        (at / "go").touch()
        await asyncio.gather(*requests)


@pytest.mark.parametrize("limit", [0, -1, 1001, True, "5"])
async def test_impossible_limits_and_cursors(tmp_path: Path, limit: Any) -> None:
    router = create_gateway_router(pool_config(tmp_path / "base"))
    with pytest.raises(NotRunning):
        await router.list_users()
    async with router:
        with pytest.raises(InvalidRequest, match="from 1 to 1000"):
            await router.list_users(None, limit)
        with pytest.raises(InvalidRequest, match="empty"):
            await router.list_users("", 1)


async def test_sizes_that_take_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_list, "MEASURE_SECONDS", 0.0)
    async with router_in(tmp_path / "base") as router:
        await router.route(Request("count", "ada"))
        assert [user.size for user in (await router.list_users()).users] == [None]
