"""`moltbot tokens ...`: credentials for users, programs and browsers.

While a gateway runs they are made and revoked through it, so that a revoked one ends at once; else in its base directory.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.cli.connect import Json, SandboxDir, TokenFile, Url, call_gateway, gateway_place
from moltbot.cli.output import printable, say, say_json, table

app = typer.Typer(
    help="Credentials for users, programs and browsers.", rich_markup_mode=None, no_args_is_help=True
)
User = Annotated[str | None, typer.Option("--user", metavar="ID", help="The one user it speaks for.")]
Operator = Annotated[bool, typer.Option("--operator", help="An operator's: it speaks for every user.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="NAME", help="route, jobs, read or admin; may be given several times."),
]
Label = Annotated[str, typer.Option("--label", help="A few words, shown in lists.")]


@app.command(
    epilog="\b\nExamples:\n  moltbot tokens create --user ada\n  moltbot tokens create --user ada --expires 30d --label laptop\n"
    "  moltbot tokens create --operator --scope read --label prometheus"
)
def create(
    user: User = None,
    operator: Operator = False,
    scope: Scopes = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help='Ends after, such as "30d" or "12h".')
    ] = None,
    label: Label = "",
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it, once. A user's is good for route, jobs and read unless told otherwise."""
    seconds = _seconds(expires)
    scopes = _scopes(user, operator, scope)

    async def ask(client: Any) -> Any:
        return await client.create_token(user, scopes, label=label, seconds=seconds)

    async def make(credentials: Any) -> Any:
        kept, text = await credentials.create("token", user, scopes, label=label, seconds=seconds)
        return {**kept.to_json(), "token": text}

    made = _act(ask, make, sandbox_dir, url, token_file, creates=True)
    if as_json:
        say_json({name: made[name] for name in ("id", "token", "userId", "scopes", "expiresAt", "label")})
        return
    ends = f"until {made['expiresAt']}" if made["expiresAt"] else "until it is revoked"
    directory, runs = gateway_place(sandbox_dir, url)
    if not runs:
        say(f"No gateway runs in {directory}; the token is kept there for the next start.")
    say(f"Token {made['id']} for {_whose(made)}, good for {', '.join(made['scopes'])}, {ends}:")
    say()
    say(f"  {made['token']}")
    say()
    place = f" -s {sandbox_dir}" if sandbox_dir is not None else ""
    say(f"It is shown only now. To end it: moltbot tokens revoke {made['id']}{place}")


@app.command("list", epilog="\b\nExample:\n  moltbot tokens list")
def list_tokens(
    sandbox_dir: SandboxDir = None, url: Url = None, token_file: TokenFile = None, as_json: Json = False
) -> None:
    """List the tokens, links and sessions that are valid, without their secrets."""

    async def ask(client: Any) -> Any:
        return (await client.tokens())["tokens"]

    async def read(credentials: Any) -> Any:
        return [kept.to_json() for kept in credentials.valid()]

    found = _act(ask, read, sandbox_dir, url, token_file)
    if as_json:
        say_json({"tokens": found})
        return
    rows = [
        (one["id"], one["kind"], _whose(one), " ".join(one["scopes"]), one["expiresAt"] or "-", one["label"])
        for one in found
    ]
    say(table(("ID", "KIND", "FOR", "SCOPES", "ENDS", "LABEL"), rows) if rows else "There are no tokens.")


@app.command(epilog="\b\nExample:\n  moltbot tokens revoke 3f9a1c0b77d2")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `moltbot tokens list` shows it.")],
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """End a token, link or session now, with what runs under it."""

    async def ask(client: Any) -> Any:
        return await client.revoke_token(token_id)

    async def remove(credentials: Any) -> Any:
        await credentials.revoke(token_id)
        return {"revoked": True}

    answer = _act(ask, remove, sandbox_dir, url, token_file)
    if as_json:
        say_json(answer)
    else:
        say(f"{token_id} is revoked.")


@app.command(epilog="\b\nExamples:\n  moltbot tokens link --operator\n  moltbot tokens link --user ada")
def link(
    user: User = None,
    operator: Operator = False,
    scope: Scopes = None,
    label: Label = "",
    sandbox_dir: SandboxDir = None,
    url: Url = None,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Make a link that signs a browser in, once, within five minutes. An operator's is good for everything unless told otherwise.

    The gateway must be running.
    """
    scopes = _scopes(user, operator, scope, everything=True)

    async def ask(client: Any) -> Any:
        made = await client.create_link(user, scopes, label=label)
        return {**made, "url": client.url + made["path"]}

    made = call_gateway(ask, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if as_json:
        say_json(made)
        return
    say(f"Open this in a browser before {made['expiresAt']}; it signs in {_whose(made)}, once:")
    say()
    say(f"  {made['url']}")


def _scopes(
    user: str | None, operator: bool, given: list[str] | None, *, everything: bool = False
) -> list[str]:
    """The scopes to ask for; raises typer's error of usage unless it is clear whose the token is to be."""
    from moltbot.gateway.access import ALL_SCOPES, USER_SCOPES

    if user is not None and operator:
        raise typer.BadParameter("give one of --user and --operator, not both", param_hint="'--user'")
    if user is None and not operator:
        raise typer.BadParameter("name the user with --user ID, or say --operator", param_hint="'--user'")
    if user == "":
        raise typer.BadParameter("it is empty: name the user", param_hint="'--user'")
    if given:
        return _known(given)
    if user is not None:
        return sorted(USER_SCOPES)
    if everything:
        return sorted(ALL_SCOPES)
    raise typer.BadParameter(
        "say what an operator's token is good for, such as --scope read", param_hint="'--scope'"
    )


def _known(scopes: list[str]) -> list[str]:
    from moltbot.core.errors import InvalidRequest
    from moltbot.gateway.access import parse_scopes

    try:
        parse_scopes(scopes)
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint="'--scope'") from None
    return scopes


def _seconds(expires: str | None) -> float | None:
    from moltbot.core.units import parse_duration

    if expires is None:
        return None
    try:
        seconds = parse_duration(expires) / 1000
    except ValueError:
        seconds = 0.0
    if seconds < 1 or expires.strip().isdecimal():  # thirty what?
        raise typer.BadParameter(
            'expected a time with its unit, such as "12h" or "30d"', param_hint="'--expires'"
        )
    return seconds


def _whose(token: dict[str, Any]) -> str:
    return "an operator" if token["userId"] is None else f"user {printable(repr(token['userId']))}"


def _act(
    online: Callable[[Any], Coroutine[Any, Any, Any]],
    offline: Callable[[Any], Coroutine[Any, Any, Any]],
    sandbox_dir: Path | None,
    url: str | None,
    token_file: Path | None,
    *,
    creates: bool = False,
) -> Any:
    """Ask the running gateway; where none runs, do it in the base directory, which is locked meanwhile."""
    from moltbot.cli.loops import run
    from moltbot.core.errors import BaseDirectoryError

    directory, runs = gateway_place(sandbox_dir, url)
    if runs:
        return call_gateway(online, sandbox_dir=sandbox_dir, url=url, token_file=token_file)
    if not creates and not directory.exists():
        raise BaseDirectoryError(
            f"there is no base directory {directory}: name the gateway's with -s, or start one with `moltbot gateway`"
        )
    return run(_with_credentials(directory, offline))


async def _with_credentials(directory: Path, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    from moltbot.core.clock import SystemClock
    from moltbot.gateway.credentials import Credentials
    from moltbot.router.database import Database
    from moltbot.sandbox.base_directory import BaseDirectory

    base = BaseDirectory.claim(directory)
    try:
        clock = SystemClock()
        async with (
            Database(base.path, clock) as database,
            Credentials(database, clock, lambda _: None) as credentials,
        ):
            return await work(credentials)
    finally:
        base.release()
