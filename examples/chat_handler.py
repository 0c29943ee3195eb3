"""A chat handler: streams its answer, remembers the conversation, reports what it used. No network, same answer each time.

    moltbot gateway --handler examples/chat_handler.py
    moltbot send ada "My name is Ada"
    moltbot send ada "What is my name?"

`complete` stands where a language model would be called; everything else is what a real handler looks like.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from moltbot import Context, InvalidRequest, handler

REMEMBERED_TURNS = 20


@handler("agent")
async def agent(ctx: Context, payload: Any) -> AsyncIterator[str]:
    """Answer `{"message": text}` word by word."""
    message = payload.get("message") if isinstance(payload, dict) else None
    if not isinstance(message, str) or not message.strip():
        raise InvalidRequest('payload.message is missing: send {"message": "some text"}')
    ctx.state["turns"] = ctx.state.get("turns", 0) + 1
    history = ctx.session.last(REMEMBERED_TURNS)
    ctx.emit("thinking", {"turn": ctx.state["turns"], "remembered": len(history)})

    answer = ""
    async for piece in complete(history, message, ctx.state):
        answer += piece
        yield piece  # waits while the reader is slow, and ends here if the reader goes away

    # One entry for both sides, after the answer: an interrupted turn leaves no half of itself behind.
    ctx.session.append({"user": message, "assistant": answer})
    ctx.report_usage(input_words=len(message.split()), output_words=len(answer.split()))


@handler("history")
async def history(ctx: Context, payload: Any) -> list[dict[str, str]]:
    """Return the whole conversation, oldest turn first."""
    return ctx.session.read()


async def complete(history: list[dict[str, str]], message: str, facts: dict[str, Any]) -> AsyncIterator[str]:
    """Make up an answer from the conversation so far, one word at a time."""
    if message.lower().startswith("my name is "):
        facts["name"] = message[11:].strip(" .!")
        text = f"Nice to meet you, {facts['name']}."
    elif "my name" in message.lower():
        text = f"Your name is {facts['name']}." if "name" in facts else "You have not told me."
    elif history:
        text = f"You said: {message} Before that: {history[-1]['user']}"
    else:
        text = f"You said: {message} It is the first thing you tell me."
    for index, word in enumerate(text.split(" ")):
        yield word if index == 0 else f" {word}"
