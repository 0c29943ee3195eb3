"""How a command finds the running gateway and the operator's token.

Address: --url, else MOLTBOT_URL, else what the gateway announced in its base directory. Token: --token-file, else
MOLTBOT_TOKEN, else the base directory's file. Over https the announced gateway must show the certificate it announced; any
other one must be signed by an authority of the system, or of the file in MOLTBOT_CA.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from moltbot.core.errors import StartupError, Unavailable

SandboxDir = Annotated[
    Path | None, typer.Option("-s", "--sandbox-dir", help="Base directory of the gateway.")
]
Url = Annotated[
    str | None, typer.Option("--url", help="Address of the gateway, instead of the one it announced.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the token to use; the operator's by default.")
]
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
    from moltbot.client.http import GatewayClient, GatewayError
    from moltbot.sandbox.secret_file import TOKEN_FILE, check_secret, read_secret

    directory = _directory(sandbox_dir)
    address, fingerprint = url or os.environ.get("MOLTBOT_URL"), None
    if not address:
        address, fingerprint = _announced(directory)
    source = str(token_file or directory / TOKEN_FILE)
    if token_file is None and "MOLTBOT_TOKEN" in os.environ:
        source = "MOLTBOT_TOKEN"
        token = check_secret(os.environ["MOLTBOT_TOKEN"], source)
    elif token_file is None and address and not os.path.exists(source):
        raise StartupError(f"no token for {address}: name its file with --token-file, or set MOLTBOT_TOKEN")
    else:
        token = read_secret(Path(source))

    async def session() -> Any:
        async with GatewayClient(
            address, token, fingerprint=fingerprint, ca_file=os.environ.get("MOLTBOT_CA")
        ) as client:
            return await work(client)

    try:
        return run(session())
    except GatewayError as error:
        if error.code == "unauthorized":
            error.message = (
                f"the token in {source} is not valid there (over, revoked, or another gateway's): use another"
            )
        raise


def gateway_place(sandbox_dir: Path | None, url: str | None) -> tuple[Path, bool]:
    """The base directory that is meant, and whether a gateway is to be asked: one was named, or runs there."""
    directory = _directory(sandbox_dir)
    if url or os.environ.get("MOLTBOT_URL"):
        return directory, True
    try:
        _announced(directory)
    except Unavailable:
        return directory, False
    return directory, True


def _directory(sandbox_dir: Path | None) -> Path:
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings({"sandbox_base_dir": sandbox_dir})
    return settings.sandbox_base_dir if "sandbox_base_dir" in sources else default_gateway_directory()


def _announced(directory: Path) -> tuple[str, str | None]:
    """The address of the running gateway, and the fingerprint of its certificate if it has one."""
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
    return url, holder.get("certificate")
