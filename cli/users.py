"""`moltbot users ...`: who is there and where they live; taking a user's data out, and forgetting a user."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway
from moltbot.cli.output import printable, progress, say, say_json, table
from moltbot.core.errors import InvalidRequest

User = Annotated[str, typer.Argument(help="The user's id.")]

app = typer.Typer(help="Users and the workers they live on.", rich_markup_mode=None, no_args_is_help=True)


@app.command(epilog="\b\nExample:\n  moltbot users where ada")
def where(
    user: User,
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
    for part, path in receipt.get("directories", {}).items():
        say(f"  {part:<8} {path}")


@app.command(
    "list", epilog="\b\nExamples:\n  moltbot users list\n  moltbot users list --after ada --limit 1000 --json"
)
def list_users(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Users on one page.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Begin after this id.")] = None,
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """List users, their workers and the size of their files, a page at a time."""

    async def ask(client: Any) -> Any:
        return await client.users(after=after, limit=limit)

    page = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if "users" not in page:
        raise InvalidRequest("a list of users is for operators: `moltbot users where ID` shows your own")
    if as_json:
        say_json(page)
        return
    from moltbot.core.units import approximate_size

    rows = [
        (
            printable(user["userId"]),
            user["workerId"],
            user["since"],
            "?" if user["size"] is None else approximate_size(user["size"]),
            _now(user),
        )
        for user in page["users"]
    ]
    nobody = "There are no users." if after is None else f"There are no users after {printable(repr(after))}."
    say(table(("USER", "WORKER", "SINCE", "SIZE", "NOW"), rows) if rows else nobody)
    if page["next"] is not None:
        say(f"There are more: --after {printable(repr(page['next']))}")


def _now(user: dict[str, Any]) -> str:
    if user["running"] or user["waiting"]:
        return f"{user['running']} running, {user['waiting']} waiting"
    return "in memory" if user["loaded"] else "-"


@app.command(epilog="\b\nExample:\n  moltbot users export ada -o ada.tar")
def export(
    user: User,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; by default ID.tar here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Write a user's state and sessions, with what is known of them, into a tar file; `-o -` is standard output."""
    from moltbot.core.user_key import check_user_id, user_key

    def fetch(file: BinaryIO) -> None:
        async def save(client: Any) -> None:
            await client.export(user, file)

        call_gateway(save, sandbox_dir=sandbox_dir, url=url, token_file=token_file)

    if output == Path("-"):
        fetch(sys.stdout.buffer)
        return
    target = output or Path(f"{user_key(check_user_id(user))}.tar")
    if target.exists() and not force:
        raise typer.BadParameter(
            f"{target} is there already: name another, or add --force", param_hint="'-o'"
        )
    part = target.with_name(f".{target.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise typer.BadParameter(f"{target} cannot be written: {error.strerror}", param_hint="'-o'") from None
    try:
        with open(descriptor, "wb") as file, progress("Exporting ...", quiet=as_json):
            fetch(file)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    size = target.stat().st_size
    if as_json:
        say_json({"userId": user, "file": str(target), "size": size})
        return
    from moltbot.core.units import approximate_size

    say(f"{user!r} is in {target} ({approximate_size(size)}).")


@app.command(epilog="\b\nExample:\n  moltbot users forget ada --yes")
def forget(
    user: User,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Delete a user: files, state, conversation, tokens, pin. It cannot be undone."""
    shown = printable(repr(user))
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise typer.BadParameter("this cannot be undone: add --yes", param_hint="'--yes'")
        typer.confirm(f"Delete everything of {shown}? It cannot be undone.", abort=True)

    async def ask(client: Any) -> Any:
        return await client.forget(user)

    with progress("Forgetting ...", quiet=as_json):
        done = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if as_json:
        say_json({"forgotten": done})
    else:
        say(f"{shown} is forgotten." if done else f"{shown} is being forgotten; it goes on by itself.")
