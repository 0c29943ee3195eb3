"""`moltbot config ...`: which settings are in force and why, what one means, and whether all of them are right.

How settings are read is in `settings.py`, how one is shown in `setting_table.py`. Whether workers can be walled off as the settings
ask is for `moltbot doctor`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moltbot.cli.connect import Json, default_gateway_directory
from moltbot.cli.output import say, say_json, table

if TYPE_CHECKING:
    from moltbot.cli.settings import Settings

app = typer.Typer(help="The settings.", rich_markup_mode=None, no_args_is_help=True)


@app.command(
    epilog="\b\nExamples:\n  moltbot config show\n  MOLTBOT_MAX_MEMORY=1GB moltbot config show --json"
)
def show(as_json: Json = False) -> None:
    """Show every setting in force, and where each comes from."""
    from moltbot.cli.setting_table import setting_rows, settings_document
    from moltbot.cli.settings import load_settings

    settings, sources = load_settings({})
    if "sandbox_base_dir" not in sources:  # whose default is the gateway's here, not the library's
        settings, _ = load_settings({"sandbox_base_dir": default_gateway_directory()})
    if as_json:
        say_json({"settings": settings_document(settings, sources)})
        return
    rows = [(row.name, row.value, row.source) for row in setting_rows(settings, sources)]
    say(table(["SETTING", "IN FORCE", "FROM"], rows))


@app.command(epilog="\b\nExamples:\n  moltbot config explain max_memory\n  moltbot config explain maxMemory")
def explain(
    key: Annotated[str, typer.Argument(help="A setting's name; camelCase does as well.")],
    as_json: Json = False,
) -> None:
    """Say what a setting means, what it may be, what is in force, and how to set it."""
    from pydantic.alias_generators import to_snake

    from moltbot.cli.settings import PREFIX, Settings
    from moltbot.sandbox.setting_kinds import unknown_setting

    name = to_snake(key.removeprefix(PREFIX).lower() if key.startswith(PREFIX) else key)
    if name not in Settings.model_fields:
        raise unknown_setting(key, Settings.model_fields, "config explain")
    facts = _facts(name)
    if as_json:
        say_json(facts)
        return
    width = max(map(len, facts))
    say(name)
    for title, text in list(facts.items())[1:]:
        say(f"  {title:<{width}}  {text}")


def _facts(name: str) -> dict[str, str]:
    from moltbot.cli.setting_table import allowed, flag, setting_rows, variable, way_to_write
    from moltbot.cli.settings import Settings, load_settings
    from moltbot.core.errors import SettingsError
    from moltbot.core.jsonable import camel_case
    from moltbot.sandbox.setting_kinds import show_value

    field = Settings.model_fields[name]
    default = show_value(field.default, field)
    try:
        row = next(row for row in setting_rows(*load_settings({})) if row.name == name)
        value, source = row.value, row.source
    except SettingsError as error:  # all the more reason to ask
        value, source = "none", error.message
    return {
        "name": name,
        "meaning": field.description or "",
        "default": "not set" if default == "-" else default,
        "value": "not set" if value == "-" else value,
        "source": source,
        "allowed": allowed(field),
        "written": way_to_write(field),
        "file": f"{name} = ..., or {camel_case(name)} = ..., in moltbot.toml",
        "environment": variable(name),
        "flag": flag(name),
    }


@app.command(
    epilog="\b\nExamples:\n  moltbot config check\n  moltbot config check deploy/moltbot.toml"
    "\n\nExit status 2 if something is wrong."
)
def check(
    file: Annotated[
        Path | None, typer.Argument(help="The file; moltbot.toml in this folder if not given.")
    ] = None,
) -> None:
    """Check moltbot.toml, the environment, and the files that they name."""
    from moltbot.cli.settings import FILE, load_settings

    with _instead_of_ours(file):
        settings, sources = load_settings({})
    check_files(settings, sources)
    name = str(file or FILE)
    in_file = sum(source == name for source in sources.values())
    variables = [source.split()[-1] for source in sources.values() if source.startswith("environment ")]
    read = f"{_settings(in_file)} from {name}" if file or os.path.exists(FILE) else f"no {FILE} here"
    also = f"{_settings(len(variables))} from the environment ({', '.join(variables)})" if variables else ""
    say(f"All right: {read}, {also or 'none from the environment'}; the others are defaults.")
    for each in settings.environment:
        if each not in os.environ:
            say(f"Note: environment names {each}, which is not set here: workers will not get it.")


def check_files(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raise SettingsError for a file that a setting names and that cannot be read."""
    from moltbot.core.errors import SettingsError, StartupError, quote
    from moltbot.gateway.tls import read_pair
    from moltbot.sandbox.secret_file import check_secret, read_secret

    for name, path in _named(settings):
        wanted = "be entered" if name.endswith("_paths") and os.path.isdir(path) else "be read"
        mode = os.R_OK | os.X_OK if wanted == "be entered" else os.R_OK
        reason = "it does not exist" if not os.path.exists(path) else f"it cannot {wanted} by this user"
        if not os.access(path, mode):
            where = sources.get(name, "default")
            raise SettingsError(
                f"{name} names {quote(str(path))} (from {where}), but {reason}: mend the path or the file"
            )
    if settings.worker_command and shutil.which(settings.worker_command[0]) is None:
        program = quote(settings.worker_command[0])
        raise SettingsError(
            f"worker_command names {program}, but there is no such program: install it, or mend it"
        )
    try:
        if "MOLTBOT_TOKEN" in os.environ:
            check_secret(os.environ["MOLTBOT_TOKEN"], "MOLTBOT_TOKEN")
        elif settings.token_file is not None:
            read_secret(settings.token_file)
        if settings.tls_cert is not None and settings.tls_key is not None:
            read_pair(settings.tls_cert, settings.tls_key)
    except StartupError as error:
        raise SettingsError(error.message) from None


def _named(settings: Settings) -> Iterator[tuple[str, Path]]:
    handler = settings.handler
    if handler is not None and (handler.endswith(".py") or ":" not in handler):
        yield "handler", Path(handler).expanduser()
    for name in ("tls_cert", "tls_key"):
        if (path := getattr(settings, name)) is not None:
            yield name, path
    for name in ("read_only_paths", "read_write_paths"):
        for path in getattr(settings, name):
            yield name, path


def _settings(count: int) -> str:
    return "1 setting" if count == 1 else f"{count} settings"


@contextlib.contextmanager
def _instead_of_ours(file: Path | None) -> Iterator[None]:
    """Read `file` where `moltbot.toml` would be read; for one command, which is all that this process runs."""
    from moltbot.cli import settings
    from moltbot.core.errors import SettingsError, quote

    if file is None:
        yield
        return
    if not file.exists():
        raise SettingsError(f"there is no file {quote(str(file))} to check: name one, or run `moltbot init`")
    ours, settings.FILE = settings.FILE, str(file)
    try:
        yield
    finally:
        settings.FILE = ours
