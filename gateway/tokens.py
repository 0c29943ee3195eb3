"""The file of the operator's token: made at first start, readable by the operator only.

The command line reads it too, so nothing here imports the server. How a request shows the token is in `auth.py`.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from moltbot.core.errors import StartupError

TOKEN_FILE = "token"
_MIN_LENGTH = 16


def load_or_create_token(path: Path) -> str:
    """Return the token in `path`, made now if there is no such file; raises StartupError if others could read it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise StartupError(f"the token file {path} cannot be made: {error.strerror}") from None
    token = secrets.token_urlsafe(32)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


def read_token(path: Path) -> str:
    """Return the token in an existing file; raises StartupError if it is missing, unsafe or no token."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read(4096).strip() if stat.S_ISREG(status.st_mode) else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"the token file {path} cannot be read: {error}") from None
    if status.st_mode & 0o077:
        raise StartupError(
            f"others can read the token file {path}: run `chmod 600 {path}`, or remove it for a new token"
        )
    return check_token(text, f"the token file {path}")


def check_token(token: str, source: str) -> str:
    """Return `token` if it can be used as one; raises StartupError."""
    if len(token) < _MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise StartupError(
            f"{source} holds no token (at least {_MIN_LENGTH} ASCII characters without spaces): remove it for a new one"
        )
    return token
