"""`Idempotency-Key` and the end of a gateway: orderly, by SIGKILL, with requests under way and with none.

What a key does while the gateway runs is in `test_idempotency.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.fakes import all_gone, watch
from tests.gateway.edge_support import EVENTS, ask, route_as
from tests.support import BEHAVIOURS, TOKEN, Answer, Running, gateway_in, log_lines, logged, stage

KEY = "Idempotency-Key"


class At(NamedTuple):
    """A gateway in a process of its own."""

    url: str


def is_replay(answer: Answer) -> bool:
    return answer.headers.get("Idempotency-Replayed") == "true"


async def test_answers_outlive_an_orderly_stop(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        first = await route_as(gateway, TOKEN, "count", "ada", headers={KEY: "plain"})
        stream = await route_as(gateway, TOKEN, "story", "ada", {}, headers=EVENTS | {KEY: "stream"})
    async with gateway_in(tmp_path / "base") as gateway:
        second = await route_as(gateway, TOKEN, "count", "ada", headers={KEY: "plain"})
        assert (second.text, is_replay(second)) == (first.text, True)
        again = await route_as(gateway, TOKEN, "story", "ada", {}, headers=EVENTS | {KEY: "stream"})
        assert (again.text, is_replay(again)) == (stream.text, True)


async def test_what_runs_when_the_gateway_stops_is_ended_and_kept(tmp_path: Path) -> None:
    """Its client has left already: nobody but the next try will ever read the answer."""
    place = stage(tmp_path / "stage")
    payload = {"stage": str(place), "n": 1}
    async with gateway_in(tmp_path / "base") as gateway:
        under_way = asyncio.create_task(
            route_as(gateway, TOKEN, "hold", "ada", payload, headers={KEY: "held"})
        )
        await logged(place, "begin ada 1")
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
        stopping = asyncio.create_task(gateway.stop())
        while not gateway.router.draining:
            await asyncio.sleep(0)
        (place / "go").touch()
        await stopping
    assert log_lines(place) == ["begin ada 1", "end ada 1"]
    async with gateway_in(tmp_path / "base") as gateway:
        answer = await route_as(gateway, TOKEN, "hold", "ada", payload, headers={KEY: "held"})
        assert (answer.status, is_replay(answer)) == (200, True)


async def test_what_does_not_end_in_time_is_known_to_have_been_ended(tmp_path: Path) -> None:
    place = stage(tmp_path / "stage")
    payload = {"stage": str(place), "n": 1, "until": "never"}
    async with gateway_in(tmp_path / "base", drain_timeout=100) as gateway:
        under_way = asyncio.create_task(
            route_as(gateway, TOKEN, "hold", "ada", payload, headers={KEY: "held"})
        )
        await logged(place, "begin ada 1")
        await gateway.stop()
        [ended] = await asyncio.gather(under_way, return_exceptions=True)
    async with gateway_in(tmp_path / "base") as gateway:
        answer = await route_as(gateway, TOKEN, "hold", "ada", payload, headers={KEY: "held"})
        assert answer.status >= 400
        assert log_lines(place).count("begin ada 1") == 1
        if isinstance(ended, Answer) and is_replay(answer):
            assert answer.text == ended.text


def run(tmp_path: Path) -> Running:
    arguments = ("-w", "1", "-s", str(tmp_path / "base"), "--handler", BEHAVIOURS)
    return Running(tmp_path, *arguments, MOLTBOT_TOKEN=TOKEN)


async def test_after_a_kill_what_was_answered_is_replayed_and_what_was_not_is_unknown(tmp_path: Path) -> None:
    place = stage(tmp_path / "stage")

    def held(name: str, **more: Any) -> tuple[dict[str, str], dict[str, Any]]:
        payload = {"stage": str(place), "n": name}
        return {KEY: name}, {"type": "hold", "userId": name, "payload": payload} | more

    requests = {"plain": held("plain"), "twice": held("twice", idempotent=True)}

    async def send(at: At, name: str) -> Answer:
        headers, body = requests[name]
        return await ask(at, "POST", "/api/route", TOKEN, json=body, headers=headers)

    with run(tmp_path) as gateway:
        at = At(gateway.document["url"])
        done = await route_as(at, TOKEN, "count", "ada", headers={KEY: "done"})
        assert done.status == 200
        under_way = [asyncio.create_task(send(at, name)) for name in requests]
        for name in requests:
            await logged(place, f"begin {name} {name}")
        workers = watch(*gateway.pids)
        gateway.process.kill()
        ended = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(error, aiohttp.ClientConnectionError) for error in ended)
        assert await all_gone(workers) == []
    (place / "go").touch()
    with run(tmp_path) as gateway:
        at = At(gateway.document["url"])
        again = await route_as(at, TOKEN, "count", "ada", headers={KEY: "done"})
        assert (again.text, is_replay(again)) == (done.text, True)
        for _ in range(2):
            answer = await send(at, "plain")
            assert "may have run" in answer.problem(409, "idempotency_unknown")
            assert not answer.json["retryable"]
        headers, body = requests["plain"]
        changed = await ask(
            at, "POST", "/api/route", TOKEN, json=body | {"idempotent": True}, headers=headers
        )
        changed.problem(409, "idempotency_key_reused")  # and so the word cannot be given afterwards
        first, second = await send(at, "twice"), await send(at, "twice")
        assert (first.status, is_replay(first)) == (200, False)
        assert (second.text, is_replay(second)) == (first.text, True)
    begun = [line for line in log_lines(place) if line.startswith("begin")]
    assert sorted(begun) == ["begin plain plain", "begin twice twice", "begin twice twice"]


async def test_the_word_idempotent_alone_runs_nothing_twice(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base") as gateway:
        answers = [
            await route_as(gateway, TOKEN, "count", "ada", headers={KEY: "k"}, idempotent=True)
            for _ in range(2)
        ]
        assert [answer.json["payload"] for answer in answers] == [1, 1]
