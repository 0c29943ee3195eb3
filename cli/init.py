"""`moltbot init`: a `moltbot.toml` that explains itself, made from the settings' own names, defaults and descriptions."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from moltbot.cli.output import say

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

EXAMPLES = (
    "\b\nExamples:\n  moltbot init\n  moltbot init --force     replace the file that is here"
    "\n\nThen `moltbot config check` says whether all is right, and `moltbot gateway` runs it."
)
START = ("worker_count",)
"""What stands uncommented, at the top."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Workers and their code": (
        "worker_count",
        "handler",
        "worker_command",
        "environment",
        "sandbox_base_dir",
    ),
    "Users and queues": (
        *(
            "user_concurrency",
            "max_concurrent",
            "max_queue_per_user",
            "max_queue_per_worker",
            "queue_timeout",
        ),
        *("request_timeout", "max_users", "user_idle_timeout", "durable_state"),
    ),
    "Workers' limits": (
        *("max_memory", "soft_memory", "max_requests", "max_processes", "max_open_files", "max_disk"),
        "max_inodes",
    ),
    "Health and restarts": (
        *("heartbeat_interval", "max_loop_lag", "boot_timeout", "drain_timeout"),
        *("restart_delay", "max_restart_attempts", "restart_window"),
    ),
    "Isolation": (
        *("isolation", "min_isolation", "network", "read_only_paths", "read_write_paths", "worker_uids"),
    ),
    "Logs": ("log_format", "log_level", "log_user_ids", "access_log"),
    "The port": (
        *("host", "port", "allowed_hosts", "token_file", "tls_cert", "tls_key", "trusted_proxies"),
        *("proxy_user_header", "max_body", "max_connections", "body_timeout", "send_timeout"),
        *("rate_limit_credential", "rate_limit_user"),
    ),
}
OTHERS = "Others"
"""For settings that are in no group yet."""

_INSTEAD = {
    "handler": "my_agent.py",
    "worker_command": ("node", "worker.js"),
    "soft_memory": 400 << 20,
    "max_users": 1000,
    "max_connections": 1000,
}
"""Examples for settings that are unset by default, where one of the right kind would tell little."""
_HEAD = """\
# Settings of the gateway that `moltbot gateway` starts in this folder.
#
# A flag is stronger than the environment (MOLTBOT_WORKER_COUNT=8), and that is stronger than this file. What is commented
# out shows the default, or an example where nothing is set by default. `moltbot config check` checks this file,
# `moltbot config show` says what is in force and why, `moltbot config explain NAME` what a setting means.
"""


def init(
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is here already.")] = False,
) -> None:
    """Write a moltbot.toml into this folder, with every setting explained and commented out."""
    from moltbot.cli.settings import FILE

    _write(FILE, settings_file(), force=force)
    say(f"Wrote {FILE}: change what you like, then run `moltbot config check` and `moltbot gateway`.")


def settings_file() -> str:
    """The whole file."""
    from moltbot.cli.settings import Settings

    fields = Settings.model_fields
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, OTHERS: tuple(name for name in fields if name not in grouped)}
    parts = [_HEAD, *(_lines(name, fields[name], sign="") for name in START)]
    for title, names in groups.items():
        known = [name for name in names if name in fields and name not in START]
        if known:
            parts.append(f"\n# --- {title} {'-' * (90 - len(title))}\n")
            parts += [_lines(name, fields[name]) for name in known]
    return "".join(parts)


def _lines(name: str, field: FieldInfo, sign: str = "#") -> str:
    from moltbot.cli.setting_table import allowed, example, toml_value

    possible = allowed(field)
    note = "" if possible in ("any", "true or false") else f" ({possible})"
    if name == "sandbox_base_dir":
        note = " [while it is not set, `moltbot gateway` keeps them in your data directory]"
    value = field.default
    if value is None:
        value = _INSTEAD.get(name, example(field))
        note += " [not set by default]"
    return f"\n# {field.description}{note}\n{sign}{name} = {toml_value(value, field)}\n"


def _write(path: str, text: str, *, force: bool) -> None:
    """Make the file, or put it in the place of one; what a link there leads to is never touched. Raises StartupError."""
    from moltbot.core.errors import StartupError

    new = f".{path}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(new, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
        try:
            if force:
                os.replace(new, path)
            else:
                os.link(new, path)  # whole at once, and only where nothing is
        finally:
            if os.path.lexists(new):
                os.unlink(new)
    except FileExistsError:
        raise StartupError(
            f"{path} is here already: change it, or run `moltbot init --force` to replace it"
        ) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written here: {error.strerror}: use another folder") from None
