"""The handlers of a worker without code, and what they say to a wrong payload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import InvalidRequest
from moltbot.worker.testing import HandlerTester


async def test_agent_answers_from_its_conversation_and_streams(tmp_path: Path) -> None:
    async with HandlerTester(None, tmp_path) as tester:
        first = await tester.call("agent", {"message": "hello there", "extra": 1})
        assert first.payload == "worker-0 here, turn 1 with you. You said: hello there"
        assert len(first.chunks) == 10
        assert first.usage == {"input_words": 2, "output_words": 10}
        second = await tester.call("agent", "plain text")
        assert second.payload.startswith("worker-0 here, turn 2 with you.")
        other = await tester.call("agent", "x", user_id="other")
        assert "turn 1" in other.payload


async def test_history_shows_both_sides_and_reset_forgets_them(tmp_path: Path) -> None:
    async with HandlerTester(None, tmp_path) as tester:
        reply = (await tester.call("agent", "hi")).payload
        history = (await tester.call("command", {"command": "history"})).payload
        assert history == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": reply}]
        assert (await tester.call("command", {"command": "reset"})).payload == {"reset": True}
        assert (await tester.call("command", {"command": "history"})).payload == []
        assert "turn 1" in (await tester.call("agent", "hi")).payload


async def test_the_conversation_survives_a_restart(tmp_path: Path) -> None:
    for turn in (1, 2):
        async with HandlerTester(None, tmp_path) as tester:
            assert f"turn {turn} " in (await tester.call("agent", "hi")).payload
    async with HandlerTester(None, tmp_path) as tester:
        assert len((await tester.call("command", {"command": "history"})).payload) == 4


async def test_whoami_tells_who_and_where(tmp_path: Path) -> None:
    async with HandlerTester(None, tmp_path) as tester:
        answer = await tester.call("command", {"command": "whoami"}, user_id="Ada")
    assert answer.payload == {"userId": "Ada", "workerId": "worker-0", "epoch": 1, "pid": os.getpid()}


async def test_session_keeps_values_per_user(tmp_path: Path) -> None:
    async with HandlerTester(None, tmp_path) as tester:

        async def session(op: str, **fields: Any) -> Any:
            return (await tester.call("session", {"op": op, **fields})).payload

        assert await session("list") == []
        assert await session("get", key="a") is None
        assert await session("set", key="b", value={"x": [1]}) == {"set": "b"}
        assert await session("set", key="a") == {"set": "a"}
        assert await session("list") == ["a", "b"]
        await tester.leave()
        assert await session("get", key="b") == {"x": [1]}
        assert await session("delete", key="b") == {"deleted": True}
        assert await session("delete", key="b") == {"deleted": False}
        other = await tester.call("session", {"op": "list"}, user_id="other")
        assert other.payload == []


async def test_health_answers_any_payload(tmp_path: Path) -> None:
    async with HandlerTester(None, tmp_path) as tester:
        payloads: list[Any] = [None, {}, "x", 5]
        for payload in payloads:
            answer = (await tester.call("health", payload)).payload
            assert (answer["ok"], answer["workerId"]) == (True, "worker-0")
            assert isinstance(answer["uptime"], int)


BAD: list[tuple[str, Any, str]] = [
    ("agent", None, "payload.message is missing"),
    ("agent", {}, "payload.message is missing"),
    ("agent", {"message": 5}, "payload.message is missing"),
    ("agent", {"message": None}, "payload.message is missing"),
    ("agent", ["message"], "payload.message is missing"),
    ("agent", b"message", "payload.message is missing"),
    ("command", None, "payload.command is missing"),
    ("command", "whoami", "payload.command is missing"),
    ("command", {"command": ["whoami"]}, "payload.command is missing"),
    ("command", {"command": "rm -rf"}, "unknown command 'rm -rf': there is whoami, history and reset"),
    ("command", {"command": "x" * 5000}, "unknown command 'xxxxx"),
    ("session", {}, "payload.op is missing"),
    ("session", {"op": "get"}, "payload.key is missing"),
    ("session", {"op": "get", "key": 5}, "payload.key is missing"),
    ("session", {"op": "set", "value": 5}, "payload.key is missing"),
    ("session", {"op": "drop", "key": "a"}, "unknown op 'drop': there is get, set, delete and list"),
]


@pytest.mark.parametrize(("kind", "payload", "sentence"), BAD, ids=range(len(BAD)))
async def test_a_wrong_payload_is_told_in_one_short_sentence(
    tmp_path: Path, kind: str, payload: Any, sentence: str
) -> None:
    async with HandlerTester(None, tmp_path) as tester:
        with pytest.raises(InvalidRequest) as caught:
            await tester.call(kind, payload)
        assert caught.value.message.startswith(sentence)
        assert len(caught.value.message) < 200
        # Nothing of it stays.
        assert (await tester.call("command", {"command": "history"})).payload == []
        assert "turn 1" in (await tester.call("agent", "hi")).payload
