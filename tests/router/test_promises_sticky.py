"""Promise 1, sticky: at any instant a user is owned by exactly one worker, and no restart of anything changes a pin."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from moltbot import GatewayRouter, Request, WorkersMissing, create_gateway_router
from tests.fakes import PATIENCE, all_gone, change_to, pids_outside, watch
from tests.support import Running, environment, moltbot, pool_config, router_in, stage

USERS = [f"user-{number}" for number in range(12)]


async def homes(router: GatewayRouter) -> dict[str, str]:
    """Who really answers each user."""
    replies = [await router.route(Request("whoami", user)) for user in USERS]
    assert [reply.worker_id for reply in replies] == [reply.payload["worker"] for reply in replies]
    assert [reply.user_id for reply in replies] == [reply.payload["user"] for reply in replies] == USERS
    return {reply.user_id: reply.worker_id for reply in replies}


async def test_a_user_always_reaches_the_same_process(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        seen: dict[str, set[Any]] = {user: set() for user in USERS}
        for _ in range(5):
            for reply in await asyncio.gather(*(router.route(Request("whoami", user)) for user in USERS)):
                seen[reply.user_id].add((reply.worker_id, reply.payload["life"]))
        assert all(len(places) == 1 for places in seen.values())
        assert len(set.union(*seen.values())) == 3
        assert {worker for places in seen.values() for worker, _ in places} == {
            "worker-0",
            "worker-1",
            "worker-2",
        }


async def test_the_three_users_of_the_guide_get_one_worker_each(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        for user in ("user-a", "user-b", "user-c"):
            await router.route(Request("echo", user))
        assert [router.where(user).worker_id for user in ("user-a", "user-b", "user-c")] == [
            "worker-0",
            "worker-1",
            "worker-2",
        ]


async def test_a_workers_restart_changes_no_pin(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        before = await homes(router)
        receipts = {user: (router.where(user).epoch, router.where(user).since) for user in USERS}
        with router.events() as events:
            status = router.get_status()
            assert status is not None
            assert status.workers[1].pid is not None
            os.kill(status.workers[1].pid, signal.SIGKILL)
            await change_to(events, "backoff", worker="worker-1")
            assert {user: router.get_worker_for_user(user) for user in USERS} == before
            assert await homes(router) == before
        assert {user: (router.where(user).epoch, router.where(user).since) for user in USERS} == receipts


async def test_a_gateways_restart_changes_no_pin(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        before = await homes(router)
    async with router_in(tmp_path / "base", worker_count=3) as router:
        assert {user: router.get_worker_for_user(user) for user in USERS} == before
        assert await homes(router) == before


async def test_the_same_router_started_again_keeps_every_pin(tmp_path: Path) -> None:
    router = create_gateway_router(pool_config=pool_config(tmp_path / "base", worker_count=2))
    async with router:
        before = await homes(router)
    async with router:
        assert await homes(router) == before


async def test_a_grown_pool_changes_no_pin(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=2) as router:
        before = await homes(router)
    async with router_in(tmp_path / "base", worker_count=5) as router:
        assert await homes(router) == before
        newcomer = await router.route(Request("whoami", "a newcomer"))
        assert newcomer.worker_id not in {"worker-0", "worker-1"}  # they have their share already


async def test_concurrent_first_requests_of_one_user_make_one_pin(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=4) as router:
        replies = await asyncio.gather(*(router.route(Request("whoami", "new")) for _ in range(20)))
        assert len({(reply.worker_id, reply.epoch, reply.payload["life"]) for reply in replies}) == 1
        status = router.get_status()
        assert status is not None
        assert status.routing_table_size == 1


async def test_fewer_workers_than_own_users_are_refused_by_name(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3) as router:
        await homes(router)
    smaller = create_gateway_router(pool_config=pool_config(tmp_path / "base", worker_count=1))
    with pytest.raises(
        WorkersMissing, match=r"worker-1 \(\d users\), worker-2 \(\d users\); start with all of them: -w 3"
    ):
        await smaller.start()
    async with router_in(tmp_path / "base", worker_count=3) as router:
        assert len(await homes(router)) == len(USERS)


async def test_a_smaller_pool_starts_if_nobody_lives_on_the_missing_workers(tmp_path: Path) -> None:
    async with router_in(tmp_path / "base", worker_count=3):
        pass
    async with router_in(tmp_path / "base", worker_count=1) as router:
        assert (await router.route(Request("echo", "ada", 1))).worker_id == "worker-0"


EMBEDDING = """
import asyncio, json, sys
from moltbot import Request, create_gateway_router

async def main():
    router = create_gateway_router(pool_config=json.loads(sys.argv[1]))
    await router.start()
    homes = {}
    for number in range(6):
        user = f"user-{number}"
        for _ in range(number + 1):
            reply = await router.route(Request("count", user))
        homes[user] = reply.worker_id
    family = (await router.route(Request("family", "user-0"))).payload
    status = router.get_status()
    pids = [worker.pid for worker in status.workers]
    asyncio.create_task(router.route(Request("hold", "user-1", {"stage": sys.argv[2]})))
    print(json.dumps({"homes": homes, "pids": pids, "family": family}), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_after_kill_9_no_process_is_left_and_every_user_is_found_again(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    config = pool_config(tmp_path / "base", worker_count=3)
    program = [sys.executable, "-c", EMBEDDING, json.dumps(config, default=str), str(at)]
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE, env=environment(tmp_path)
    )
    assert process.stdout is not None
    told = json.loads(await process.stdout.readline())
    starter = told["pids"][int(told["homes"]["user-0"].removeprefix("worker-"))]
    family = pids_outside(starter, *told["family"])  # what a handler started in new sessions, and its worker
    assert family[-1] == starter
    watched = watch(*told["pids"], *family)
    process.kill()
    await process.wait()
    assert await all_gone(watched) == []
    async with router_in(tmp_path / "base", worker_count=3) as router:
        for number in range(6):
            user = f"user-{number}"
            reply = await router.route(Request("count", user))
            assert reply.worker_id == told["homes"][user]
            assert reply.payload == number + 2
            conversation = (await router.route(Request("history", user))).payload
            assert conversation == [{"count": count} for count in range(1, number + 3)]


async def test_after_kill_9_of_the_command_the_next_one_goes_on(tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    with Running(tmp_path, "-w", "2", "-s", base) as gateway:
        answer = moltbot(tmp_path, "send", "ada", "hello", "-s", base)
        assert answer.stdout == "worker-1 here, turn 1 with you. You said: hello\n", answer.stderr
        watched = watch(*gateway.pids)
        gateway.process.kill()
        gateway.process.wait(PATIENCE)
        assert await all_gone(watched) == []
    with Running(tmp_path, "-w", "2", "-s", base):
        answer = moltbot(tmp_path, "send", "ada", "again", "-s", base)
        assert answer.stdout == "worker-1 here, turn 2 with you. You said: again\n", answer.stderr
