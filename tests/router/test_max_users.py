"""The bound on users: new ones beyond it are refused, never more are let in, and nobody who is there loses anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moltbot import Reply, Request, TooManyUsers
from moltbot.gateway.problems import problem_of
from tests.support import check_sentence, router_in


async def test_one_too_many_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", max_users=2) as router:
        for user in ("ada", "ben"):
            await router.route(Request("count", user))
        with pytest.raises(TooManyUsers, match="moltbot users forget ID") as caught:
            await router.route(Request("count", "cy"))
        error = caught.value
        assert (error.code, error.retryable, error.verdict) == ("too_many_users", False, "not_started")
        assert problem_of(error)["status"] == 503
        check_sentence(error.message)
        assert router.get_worker_for_user("cy") is None
        assert (await router.route(Request("count", "ada"))).payload == 2
        await router.forget("ben")
        assert (await router.route(Request("count", "cy"))).payload == 1
        with pytest.raises(TooManyUsers):
            await router.route(Request("count", "ben"))


async def test_users_who_come_at_once_never_exceed_it(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=2, max_users=7) as router:
        requests = [Request("echo", f"user-{number % 20}") for number in range(60)]
        answers = await asyncio.gather(
            *(router.route(request) for request in requests), return_exceptions=True
        )
        served = {answer.user_id for answer in answers if isinstance(answer, Reply)}
        assert len(served) == 7
        assert {type(answer) for answer in answers} == {Reply, TooManyUsers}
        status = router.get_status()
        assert status is not None
        assert status.routing_table_size == 7


async def test_who_is_there_stays_when_it_is_lowered(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base") as router:
        for user in ("ada", "ben", "cy"):
            await router.route(Request("count", user))
    async with router_in(tmp_path / "base", max_users=1) as router:
        for user in ("ada", "ben", "cy"):
            assert (await router.route(Request("count", user))).payload == 2
        with pytest.raises(TooManyUsers):
            await router.route(Request("count", "dee"))
