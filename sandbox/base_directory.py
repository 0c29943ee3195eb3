"""The base directory of one gateway: claimed, locked, and safe to use.

It must be a real directory of ours that nobody else can enter, and one running gateway at a time holds it. The lock is on
the directory itself and ends with the process, so a killed gateway leaves nothing to clean. What is in a worker's
directory is in `directories.py`; the database, in `router/database.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

from moltbot.core.errors import BaseDirectoryError
from moltbot.sandbox.secret_file import TOKEN_FILE

GATEWAY_FILE = "gateway.json"
_KNOWN = (GATEWAY_FILE, "moltbot.db", TOKEN_FILE)
_MAX_ANNOUNCEMENT = 64 << 10
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_CHOOSE = "choose another directory with -s / sandbox_base_dir"


class BaseDirectory:
    """A claimed base directory; `claim` gets one, `release` gives it back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def claim(cls, path: Path) -> BaseDirectory:
        """Create `path` if need be, check it and lock it; raises BaseDirectoryError with the way out."""
        try:
            path = path.expanduser().absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            path = (
                path.parent.resolve() / path.name
            )  # /tmp is a link on some systems; only the last part must not be one
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            _check(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a ~name that nobody has
            raise _unusable(path, error) from None
        try:
            _lock(path, descriptor)
            base = cls(path, descriptor)
            base.announce(None)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise _unusable(path, error) from None
            raise
        return base

    def announce(self, url: str | None, certificate: str | None = None) -> None:
        """Write who holds the directory and where its gateway listens, for the command line to find.

        certificate: the SHA-256 of the one that it shows, in hexadecimal, if it speaks https.
        """
        content = {"pid": os.getpid(), "url": url}
        write_json(
            self.path / GATEWAY_FILE,
            content if certificate is None else content | {"certificate": certificate},
        )

    def release(self) -> None:
        """Give the directory back; may be repeated."""
        if self._descriptor < 0:
            return
        (self.path / GATEWAY_FILE).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def read_announcement(path: Path) -> dict[str, Any]:
    """What the gateway that holds (or held) the directory announced: `pid`, `url`, with https also `certificate`.

    Empty if there is nothing of that kind.

    Workers of today's isolation level could plant something there: no link is followed, no pipe waited for.
    """
    try:
        with open(os.open(path / GATEWAY_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = json.loads(
                file.read(_MAX_ANNOUNCEMENT) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
            )
    except (OSError, ValueError, RecursionError):
        return {}
    if (
        not isinstance(content, dict)
        or type(content.get("pid")) is not int
        or not 0 < content["pid"] < 1 << 31
    ):
        return {}
    url, certificate = content.get("url"), content.get("certificate")
    found = {"pid": content["pid"], "url": url if isinstance(url, str) else None}
    if isinstance(certificate, str) and _FINGERPRINT.fullmatch(certificate):
        found["certificate"] = certificate
    return found


def write_json(path: Path, content: Any) -> None:
    """Replace a small file of ours whole; readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise BaseDirectoryError(f"{path} is a link: name the directory itself, or {_CHOOSE}")
    if not stat.S_ISDIR(status.st_mode):
        raise BaseDirectoryError(f"{path} is a file, not a directory: remove it, or {_CHOOSE}")
    if status.st_uid != os.geteuid():
        raise BaseDirectoryError(f"{path} belongs to another user (uid {status.st_uid}): {_CHOOSE}")
    if status.st_mode & 0o077:
        # Tighten what is ours; but never somebody's home that was named by mistake.
        names = os.listdir(path)
        if names and not any(name in _KNOWN for name in names):
            raise BaseDirectoryError(
                f"{path} holds other files and is open to others: use an empty one, or {_CHOOSE}"
            )
        path.chmod(0o700)


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = read_announcement(path)
        where = f" at {holder['url']}" if holder.get("url") else ""
        raise BaseDirectoryError(
            f"{path} is in use by the running gateway with pid {holder.get('pid', '(unknown)')}{where}: stop it, or {_CHOOSE}",
            details={"pid": holder.get("pid"), "url": holder.get("url")},
        ) from None


def _unusable(path: Path, error: OSError | ValueError | RuntimeError) -> BaseDirectoryError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return BaseDirectoryError(f"there is no space left for {path}: free some, or {_CHOOSE}")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BaseDirectoryError(
            f"{path} is not writable ({os.strerror(code)}): change its permissions, or {_CHOOSE}"
        )
    if code in (errno.ENOTDIR, errno.EEXIST):
        return BaseDirectoryError(f"a part of {path} is a file, not a directory: {_CHOOSE}")
    return BaseDirectoryError(f"{path} cannot be used ({error}): {_CHOOSE}")
