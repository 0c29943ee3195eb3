"""`moltbot send USER TEXT`: one message to a user's agent, the answer as it comes."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway
from moltbot.cli.output import printable, say_json

EXAMPLES = (
    "\b\nExamples:\n  moltbot send ada 'what did I say?'\n  moltbot send ada history --type command --json"
    """\n  moltbot send ada --type session --payload '{"op": "list"}'"""
)

# Lines, columns, the spaces of some languages, and what joins their letters and their emoji.
_HARMLESS = "\n\t\u00a0\u202f\u3000\u200c\u200d"


def send(
    user: Annotated[str, typer.Argument(help="The user to speak as.")],
    text: Annotated[
        str | None, typer.Argument(help='The message: sent as {"message": TEXT}, or {TYPE: TEXT}.')
    ] = None,
    kind: Annotated[str, typer.Option("--type", help="Which handler answers.")] = "agent",
    payload: Annotated[
        str | None, typer.Option("--payload", metavar="JSON", help="The whole payload, instead of TEXT.")
    ] = None,
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Send a message as a user and print the answer while it is streamed."""
    from moltbot.core.messages import Request

    request = Request(kind, user, _payload(kind, text, payload))

    async def stream(client: Any) -> None:
        reply: dict[str, Any] = {}
        async for name, data in client.stream(request):
            if name == "chunk":
                print(_shown(data["data"]), end="", flush=True)
            elif name == "reply":
                reply = data
        if reply.get("payload") is not None:
            print(_shown(reply["payload"]), end="")
        print(flush=True)
        print(f"({reply.get('workerId')}, {reply.get('durationMs')} ms)", file=sys.stderr)

    async def route(client: Any) -> None:
        say_json(await client.route(request))

    call_gateway(route if as_json else stream, sandbox_dir=sandbox_dir, url=url, token_file=token_file)


def _payload(kind: str, text: str | None, payload: str | None) -> Any:
    """What to send; raises typer's error of usage unless there is exactly one of `text` and `payload`."""
    if payload is None:
        if text is None:
            raise typer.BadParameter("give the message, or --payload JSON", param_hint="'TEXT'")
        return {"message": text} if kind == "agent" else {kind: text}
    if text is not None:
        raise typer.BadParameter("give TEXT or --payload, not both", param_hint="'--payload'")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"this is not JSON: {error}", param_hint="'--payload'") from None


def _shown(data: Any) -> str:
    """Text as it is, anything else as JSON; in a terminal without what would play tricks on it."""
    text = data if isinstance(data, str) else json.dumps(data, indent=2, ensure_ascii=False)
    return printable(text, keep=_HARMLESS) if sys.stdout.isatty() else text
