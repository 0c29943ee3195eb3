"""`moltbot users ...`: where users live."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway
from moltbot.cli.output import say, say_json

app = typer.Typer(help="Users and the workers they live on.", rich_markup_mode=None, no_args_is_help=True)


@app.command(epilog="\b\nExample:\n  moltbot users where ada")
def where(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Say which worker a user lives on, since when and why."""

    async def ask(client: Any) -> Any:
        return await client.where(user)

    receipt = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if as_json:
        say_json(receipt)
        return
    loaded = "in memory" if receipt["loaded"] else "on disk only"
    say(f"{receipt['userId']!r} lives on {receipt['workerId']} ({receipt['workerState']}), {loaded}")
    say(f"  since    {receipt['since']}, epoch {receipt['epoch']}")
    say(f"  because  {receipt['why']}")
    say(
        f"  now      {receipt['running']} running, {receipt['waiting']} waiting, {receipt['overdue']} overdue so far"
    )
    for part, path in receipt["directories"].items():
        say(f"  {part:<8} {path}")
