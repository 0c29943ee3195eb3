"""The first requests of a new user keep their order, whatever the pin's way to the disk does to them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from moltbot import Request, create_gateway_router
from moltbot.core.errors import UserQueueFull
from moltbot.core.events import UserPinned

HANDLER = """
from moltbot import handler

@handler("note")
async def note(ctx, payload):
    ctx.session.append(payload)

@handler("notes")
async def notes(ctx, payload):
    return ctx.session.read()
"""


async def test_nobody_overtakes_first_requests_whose_pin_has_just_become_known(tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(HANDLER)
    config = {"workerCount": 2, "sandboxBaseDir": tmp_path / "base", "handler": str(tmp_path / "notes.py")}
    async with create_gateway_router(config) as router:
        with router.events() as events:
            first = [
                asyncio.create_task(router.route(Request("note", "new", number))) for number in range(10)
            ]
            async for event in events:
                if isinstance(event, UserPinned):
                    break
            later = [
                asyncio.create_task(router.route(Request("note", "new", number))) for number in range(10, 20)
            ]
        await asyncio.gather(*first, *later)
        reply = await router.route(Request("notes", "new"))
        assert reply.payload == list(range(20))


async def test_the_first_requests_of_a_user_are_bounded_too(tmp_path: Path) -> None:
    config = {"workerCount": 1, "sandboxBaseDir": tmp_path, "maxQueuePerUser": 3}
    async with create_gateway_router(config) as router:
        requests = [router.route(Request("health", "new")) for _ in range(50)]
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert refused
        assert {type(error) for error in refused} == {UserQueueFull}
        assert (await router.route(Request("health", "new"))).success
