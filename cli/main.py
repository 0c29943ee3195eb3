"""The `moltbot` command: the tree of commands, and the one place where errors become exit statuses."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from moltbot import __version__
from moltbot.cli import config, doctor, gateway, init, sandbox, send, tokens, users, workers
from moltbot.cli.output import EXIT_INTERRUPTED, fail
from moltbot.core.errors import MoltbotError

app = typer.Typer(
    name="moltbot",
    help="One port for many users; every user pinned to a warm, sandboxed worker process.",
    epilog="\b\nExamples:\n  moltbot workers demo -w 3      see it work, nothing to set up\n"
    "  moltbot gateway                run it\n  moltbot send ada hello         talk to it",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(workers.app, name="workers")
app.add_typer(users.app, name="users")
app.add_typer(tokens.app, name="tokens")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(gateway.app, name="gateway")
app.add_typer(config.app, name="config")
app.command("init", epilog=init.EXAMPLES)(init.init)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("send", epilog=send.EXAMPLES)(send.send)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"moltbot {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def _open_standard_descriptors() -> None:
    """Where stdin, stdout or stderr came closed, the next socket would get that number, and what it is not used to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def main() -> None:
    """Run the command line; every expected error ends as one sentence and an exit status."""
    _open_standard_descriptors()
    try:
        app()
    except MoltbotError as error:
        sys.exit(fail(error, as_json="--json" in sys.argv))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
