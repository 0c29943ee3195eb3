"""What the tests of honest programs share: workers at a given isolation level, and requests to them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from moltbot import GatewayRouter, Request
from moltbot.core.errors import HandlerError, IsolationUnavailable
from tests.support import router_in

HANDLERS = Path(__file__).parent / "handlers"
STRONGEST = "bubblewrap"


def handlers_in(name: str) -> list[str]:
    """The request types that a handler file registers, in their order."""
    return re.findall(r'^@handler\("(\w+)"\)$', (HANDLERS / name).read_text(encoding="utf-8"), re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Walled:
    """A router with one worker at a level."""

    router: GatewayRouter
    base: Path
    level: str

    async def ask(self, kind: str, payload: Any = None, *, user: str = "ada") -> Any:
        """The payload of one reply; a failure comes with the end of the worker's log."""
        try:
            return (await self.router.route(Request(kind, user, payload))).payload
        except HandlerError as error:
            error.add_note(self.log[-3000:])
            raise

    async def does(self, program: str, refusals: Mapping[str, str], payload: Any = None) -> None:
        """Run an honest program: it works, but at the level `landlock` fails as `refusals` say."""
        how = refusals.get(program) if self.level == "landlock" else None
        if how is None:
            await self.ask(program, payload)
        else:
            with pytest.raises(HandlerError, match=how):
                await self.ask(program, payload)

    @property
    def log(self) -> str:
        path = self.base / "worker-0" / "logs" / "worker.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def unavailable(why: str) -> NoReturn:
    """A level does not work on this machine: skip, or fail if the run demands it."""
    if os.environ.get("TEST_REQUIRE_ISOLATION") == "1":
        pytest.fail(why)
    pytest.skip(why)


@asynccontextmanager
async def walled(base: Path, level: str = STRONGEST, **settings: Any) -> AsyncIterator[Walled]:
    """A worker at this level; skips if the level does not work on this machine."""
    context = router_in(base, isolation=level, **settings)
    try:
        router = await context.__aenter__()
    except IsolationUnavailable as error:
        unavailable(str(error))
    try:
        yield Walled(router, base, level)
    finally:
        await context.__aexit__(None, None, None)


def needs(program: str) -> None:
    """Skip if the machine does not have this program."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
