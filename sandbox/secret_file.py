"""Small files that hold one secret each, readable by the gateway's user only: the operator's token, the key of hashes."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from moltbot.core.errors import StartupError

TOKEN_FILE = "token"  # of the operator
KEY_FILE = "key"  # of the hashes that stand for users in logs and after they were forgotten
MIN_LENGTH = 16
_MAX_BYTES = 4096


def load_or_create_secret(path: Path) -> str:
    """Return the secret in `path`, made now if there is no such file; raises StartupError if others could read it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return read_secret(path)
    except OSError as error:
        raise StartupError(f"{path} cannot be made: {error.strerror}") from None
    secret = secrets.token_urlsafe(32)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    return secret


def read_secret(path: Path) -> str:
    """Return the secret in an existing file; raises StartupError if it is missing, unsafe or no secret."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            text = file.read(_MAX_BYTES).strip() if stat.S_ISREG(status.st_mode) else ""
    except OSError as error:
        raise StartupError(
            f"{path} cannot be read ({(error.strerror or str(error)).lower()}): name the file that holds the secret"
        ) from None
    except UnicodeDecodeError:
        text = ""
    if status.st_mode & 0o077:
        raise StartupError(f"others can read {path}: run `chmod 600 {path}`, or remove it for a new one")
    return check_secret(text, str(path))


def check_secret(secret: str, source: str) -> str:
    """Return `secret` if it can be used as one; raises StartupError."""
    if len(secret) < MIN_LENGTH or not secret.isascii() or not secret.isprintable() or " " in secret:
        raise StartupError(
            f"{source} holds no secret, which is {MIN_LENGTH} or more ASCII characters without spaces: put one there"
        )
    return secret
