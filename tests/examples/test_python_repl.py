"""`examples/python_repl.py`: variables live as long as the process, files longer, and users do not meet."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from moltbot import GatewayRouter, InvalidRequest, Request, RequestTimeout
from moltbot.core.events import WorkerChanged
from tests.examples.running import EXAMPLES, router_with, say

HANDLER = str(EXAMPLES / "python_repl.py")


async def run(router: GatewayRouter, code: str, user: str = "ada") -> dict[str, Any]:
    payload = (await say(router, user, code)).payload
    assert isinstance(payload, dict)
    return payload


async def kill_worker(router: GatewayRouter) -> None:
    """SIGKILL the only worker, and return when it is ready again."""
    status = router.get_status()
    assert status is not None
    assert status.workers[0].pid is not None
    with router.events() as events:
        os.kill(status.workers[0].pid, signal.SIGKILL)
        async for event in events:
            if isinstance(event, WorkerChanged) and event.state == "ready":
                return


async def test_gives_output_and_the_value_of_the_last_expression(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        assert await run(router, "x = 6 * 7") == {"stdout": "", "value": None, "error": None, "notice": None}
        assert await run(router, "print('hi')\nx") == {
            "stdout": "hi\n",
            "value": "42",
            "error": None,
            "notice": None,
        }
        assert (await run(router, "_ + 1"))["value"] == "43"
        assert (await run(router, "def f(): return x\nf()"))["value"] == "42"


async def test_a_crash_loses_variables_but_not_files(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        await run(router, "x = 42; (files / 'note').write_text('kept')")
        assert (await run(router, "x"))["value"] == "42"

        await kill_worker(router)

        answer = await run(router, "x")
        assert answer["error"] is not None
        assert "NameError: name 'x' is not defined" in answer["error"]
        assert "earlier variables are gone" in answer["notice"]
        assert "files are still there" in answer["notice"]
        answer = await run(router, "(files / 'note').read_text()")
        assert (answer["value"], answer["notice"]) == ("'kept'", None)


async def test_users_do_not_see_each_other(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        await run(router, "secret = 1; (files / 'secret').write_text('1')", "ada")
        answer = await run(router, "'secret' in globals(), list(files.iterdir())", "user-a")
        assert answer["value"] == "(False, [])"
        assert answer["notice"] is None


async def test_errors_are_told_with_the_users_own_lines_only(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        error = (await run(router, "def f():\n    return 1 / 0\nf()"))["error"]
        assert error == (
            "Traceback (most recent call last):\n"
            '  File "<your code>", line 3, in <module>\n'
            '  File "<your code>", line 2, in f\n'
            "ZeroDivisionError: division by zero\n"
        )
        assert "SyntaxError" in (await run(router, "x = = 1"))["error"]
        assert "SystemExit" in (await run(router, "import sys; sys.exit(3)"))["error"]
        unprintable = "class E(Exception):\n    def __str__(self): 1 / 0\nraise E"
        assert "E: <exception str() failed>" in (await run(router, unprintable))["error"]
        assert (await run(router, "1 + 1"))["value"] == "2"


async def test_output_and_values_are_bounded(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        answer = await run(router, "print('x' * 1_000_000)\n'y' * 1_000_000")
        for text in (answer["stdout"], answer["value"]):
            assert len(text) < 66_000
            assert text.endswith("... cut here, at 65536 characters")


async def test_an_endless_loop_is_interrupted_and_the_variables_stay(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        await run(router, "x = 42")
        with pytest.raises(RequestTimeout):
            await say(router, "ada", "while True: pass", timeout=300)
        assert (await run(router, "x"))["value"] == "42"
        status = router.get_status()
        assert status is not None
        assert status.workers[0].incarnation == 1


async def test_an_idle_user_is_unloaded(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER, user_idle_timeout=200) as router:
        with router.events() as events:
            await run(router, "x = 1")
            async for event in events:
                if event.name == "user-unloaded":
                    break
        assert "earlier variables are gone" in (await run(router, "1"))["notice"]


async def test_a_missing_message_is_the_callers_fault(tmp_path: Path) -> None:
    async with router_with(tmp_path, handler=HANDLER) as router:
        with pytest.raises(InvalidRequest, match=r"payload\.message is missing"):
            await router.route(Request("agent", "ada", {"code": "1"}))
