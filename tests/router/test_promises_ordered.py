"""Promise 2, ordered: what is in a lane runs in arrival order, one at a time by default; lanes are served fairly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from pathlib import Path

from moltbot import GatewayRouter, NotFound, Request, WorkerDied
from tests.fakes import change_to, eventually
from tests.support import log_lines, logged, router_in, stage


def send(kind: str, user: str, at: Path, number: int, **fields: object) -> Request:
    return Request(kind, user, {"stage": str(at), "n": number} | fields)


def by_user(lines: list[str]) -> dict[str, list[str]]:
    """Each user's own lines, in order; lines are `what user n`."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        what, user, number = line.split(" ")
        found[user].append(f"{what} {number}")
    return found


def one_after_the_other(count: int) -> list[str]:
    return [f"{what} {number}" for number in range(count) for what in ("begin", "end")]


async def test_each_user_is_served_in_arrival_order_under_load(tmp_path: Path) -> None:
    at, users, each = stage(tmp_path / "stage"), [f"user-{n}" for n in range(8)], 25
    async with router_in(tmp_path / "base", worker_count=2, max_concurrent=4) as router:
        work = [router.route(send("step", user, at, n)) for n in range(each) for user in users]
        replies = await asyncio.gather(*work)
    assert [reply.payload for reply in replies] == [n for n in range(each) for _ in users]
    assert by_user(log_lines(at)) == {user: one_after_the_other(each) for user in users}


async def test_a_users_requests_never_overlap_but_those_of_others_do(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base") as router:
        held = [asyncio.create_task(router.route(send("hold", "ada", at, n))) for n in range(3)]
        await logged(at, "begin ada 0")
        await router.route(send("step", "ben", at, 0))
        assert log_lines(at) == ["begin ada 0", "begin ben 0", "end ben 0"]
        (at / "go").touch()
        await asyncio.gather(*held)
    assert by_user(log_lines(at))["ada"] == one_after_the_other(3)


async def test_user_concurrency_lets_that_many_of_one_user_run_at_once(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", user_concurrency=2) as router:
        held = [asyncio.create_task(router.route(send("hold", "ada", at, n))) for n in range(4)]
        await logged(at, "begin ada 1")
        receipt = router.where("ada")
        assert (receipt.running, receipt.waiting) == (2, 2)
        assert log_lines(at) == ["begin ada 0", "begin ada 1"]
        (at / "go").touch()
        await asyncio.gather(*held)
    begun = [line for line in log_lines(at) if line.startswith("begin")]
    assert begun == [f"begin ada {n}" for n in range(4)]


async def test_a_user_with_many_requests_delays_another_by_one_at_most(tmp_path: Path) -> None:
    at = stage(tmp_path / "stage")
    async with router_in(tmp_path / "base", max_concurrent=1) as router:
        await router.route(Request("echo", "modest"))  # from now on nothing comes before their lane
        first = asyncio.create_task(router.route(send("hold", "greedy", at, 0)))
        await logged(at, "begin greedy 0")
        many = [asyncio.create_task(router.route(send("step", "greedy", at, n))) for n in range(1, 20)]
        await asyncio.sleep(0)  # they all are in their lane now
        other = asyncio.create_task(router.route(send("step", "modest", at, 0)))
        await asyncio.sleep(0)
        (at / "go").touch()
        await asyncio.gather(first, other, *many)
    begun = [line for line in log_lines(at) if line.startswith("begin")]
    assert begun.index("begin modest 0") <= 2
    assert [line for line in begun if "greedy" in line] == [f"begin greedy {n}" for n in range(20)]


async def test_requests_that_were_not_started_keep_their_order_over_a_crash(tmp_path: Path) -> None:
    at, users = stage(tmp_path / "stage"), ("ada", "ben")
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        running = [asyncio.create_task(router.route(send("hold", user, at, 0))) for user in users]
        for user in users:
            await logged(at, f"begin {user} 0")
        waiting = [
            asyncio.create_task(router.route(send("step", user, at, n)))
            for n in range(1, 9)
            for user in users
        ]
        await router.route(Request("whoami", "cy"))
        pid = pid_of(router)
        with router.events() as events:
            os.kill(pid, signal.SIGKILL)
            await change_to(events, "ready")
        for error in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(error, WorkerDied)
            assert error.verdict == "maybe_ran"
        replies = await asyncio.gather(*waiting)
        assert [reply.payload for reply in replies] == [n for n in range(1, 9) for _ in users]
    assert by_user(log_lines(at)) == {user: ["begin 0", *one_after_the_other(9)[2:]] for user in users}


async def test_requests_written_to_a_stopped_worker_are_settled_or_run_again_in_order(tmp_path: Path) -> None:
    """What the worker's socket took is maybe_ran; what it did not take is not_started, and runs by itself."""
    at, big, users = stage(tmp_path / "stage"), "x" * 300_000, [f"user-{n}" for n in range(10)]
    async with router_in(tmp_path / "base", restart_delay=0) as router:
        await router.route(Request("whoami", "ada"))
        pid = pid_of(router)
        with router.events() as events:
            os.kill(pid, signal.SIGSTOP)
            first, second = (
                [asyncio.create_task(router.route(send("step", user, at, n, big=big))) for user in users]
                for n in range(2)
            )
            await eventually(
                lambda: sum(router.where(user).waiting for user in users if knows(router, user)) == 10
            )
            os.kill(pid, signal.SIGKILL)
            await change_to(events, "ready")
        results = await asyncio.gather(*first, return_exceptions=True)
        assert [reply.payload for reply in await asyncio.gather(*second)] == [1] * 10
    died = [result for result in results if isinstance(result, WorkerDied)]
    assert {error.verdict for error in died} == {"maybe_ran"}
    assert 0 < len(died) < 10
    assert not [result for result in results[len(died) :] if isinstance(result, BaseException)]
    for index, user in enumerate(users):
        both = one_after_the_other(2)
        assert by_user(log_lines(at))[user] == (both[2:] if index < len(died) else both)


def pid_of(router: GatewayRouter) -> int:
    """The only worker's."""
    status = router.get_status()
    assert status is not None
    assert status.workers[0].pid is not None
    return status.workers[0].pid


def knows(router: GatewayRouter, user: str) -> bool:
    try:
        router.where(user)
    except NotFound:
        return False
    return True
