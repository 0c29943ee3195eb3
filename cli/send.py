"""`moltbot send USER TEXT`: one message to a user's agent, the answer as it comes."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway
from moltbot.cli.output import say_json

EXAMPLES = (
    "\b\nExamples:\n  moltbot send ada 'what did I say?'\n  moltbot send ada history --type command --json"
)


def send(
    user: Annotated[str, typer.Argument(help="The user to speak as.")],
    text: Annotated[str, typer.Argument(help="The message.")],
    kind: Annotated[str, typer.Option("--type", help="Which handler answers.")] = "agent",
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Send a message as a user and print the answer while it is streamed."""
    from moltbot.core.messages import Request

    payload = {"message": text} if kind == "agent" else {kind: text}
    request = Request(kind, user, payload)

    async def stream(client: Any) -> None:
        reply: dict[str, Any] = {}
        async for name, data in client.stream(request):
            if name == "chunk":
                print(data["data"], end="", flush=True)
            elif name == "reply":
                reply = data
        if reply.get("payload") is not None:
            print(_shown(reply["payload"]), end="")
        print(flush=True)
        print(f"({reply.get('workerId')}, {reply.get('durationMs')} ms)", file=sys.stderr)

    async def route(client: Any) -> None:
        say_json(await client.route(request))

    call_gateway(route if as_json else stream, sandbox_dir=sandbox_dir, url=url, token_file=token_file)


def _shown(payload: Any) -> str:
    """Text as it is, anything else as JSON."""
    return payload if isinstance(payload, str) else json.dumps(payload, indent=2, ensure_ascii=False)
