"""How a command finds the running gateway and the operator's token.

Address: --url, else MOLTBOT_URL, else what the gateway announced in its base directory. Token: --token-file, else
MOLTBOT_TOKEN, else the base directory's file.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.core.errors import Unavailable

SandboxDir = Annotated[
    Path | None, typer.Option("-s", "--sandbox-dir", help="Base directory of the gateway.")
]
Url = Annotated[
    str | None, typer.Option("--url", help="Address of the gateway, instead of the one it announced.")
]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File with the operator's token.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def default_gateway_directory() -> Path:
    """Where `moltbot gateway` keeps its workers unless told otherwise: the user's data directory."""
    import platformdirs

    return platformdirs.user_data_path("moltbot") / "workers"


def call_gateway(
    work: Callable[[Any], Awaitable[Any]],
    *,
    sandbox_dir: Path | None,
    url: str | None,
    token_file: Path | None,
) -> Any:
    """Run `work(client)` against the running gateway; raises a MoltbotError with the way out if there is none."""
    from moltbot.cli.loops import run
    from moltbot.client.http import GatewayClient
    from moltbot.gateway.tokens import TOKEN_FILE, check_token, read_token

    directory = _directory(sandbox_dir)
    address = url or os.environ.get("MOLTBOT_URL") or _announced(directory)
    if token_file is None and "MOLTBOT_TOKEN" in os.environ:
        token = check_token(os.environ["MOLTBOT_TOKEN"], "MOLTBOT_TOKEN")
    else:
        token = read_token(token_file or directory / TOKEN_FILE)

    async def session() -> Any:
        async with GatewayClient(address, token) as client:
            return await work(client)

    return run(session())


def _directory(sandbox_dir: Path | None) -> Path:
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings({"sandbox_base_dir": sandbox_dir})
    return settings.sandbox_base_dir if "sandbox_base_dir" in sources else default_gateway_directory()


def _announced(directory: Path) -> str:
    import psutil

    from moltbot.sandbox.base_directory import read_announcement

    holder = read_announcement(directory)
    url, pid = holder.get("url"), holder.get("pid")
    if (
        not isinstance(url, str)
        or type(pid) is not int
        or not 0 < pid < 1 << 31
        or not psutil.pid_exists(pid)
    ):
        raise Unavailable(
            f"no gateway is running in {directory}: start one with `moltbot gateway`, or name it with --url or -s"
        )
    return url
