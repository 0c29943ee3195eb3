"""Deletes one user's files from all workers' directories, and what was put aside from them before.

The workers may be hostile and own most of what is inside: every step goes by descriptor and follows no link, modes that
shut us out are changed, and deletion is left to a program that no depth of nesting can stop. What a worker's directories
are is in `directories.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from moltbot.core.user_key import user_key
from moltbot.sandbox.directories import TRASH, WRITABLE, is_worker_id, remove_trees

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAMED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class StillFilled(OSError):
    """All of the user's is put aside, but some of it cannot be deleted: perhaps a process still holds it and writes."""


async def delete_user_files(base: Path, user_id: str, tag: str) -> None:
    """Return when nothing of this user is in any worker's directories or in the trash; raises OSError.

    tag: stands for the user in the trash, so that another try finds what is theirs there and no more: what is others' may be
    filled by a worker that still holds it, for as long as it likes. No process of a worker may have the user loaded. Bounded in time; what was put aside stays in the trash for another try.
    """
    names = await asyncio.to_thread(_put_aside, base, user_key(user_id), tag)
    if not names:
        return
    await remove_trees([str(base / TRASH / name) for name in names])
    left = set(names) & set(await asyncio.to_thread(_in_trash, base))
    if left:
        raise StillFilled(0, f"{len(left)} directories that were put aside cannot be deleted")


def _put_aside(base: Path, key: str, tag: str) -> list[str]:
    """Out of the workers' reach in one step each; returns the names of all that is the user's in the trash then."""
    with _trash(base) as trash:
        for worker_id in filter(is_worker_id, os.listdir(base)):
            with _opened(base / worker_id) as root:
                for part in WRITABLE if root is not None else ():
                    with _opened(part, root) as folder:
                        _take(key, folder, trash, f"{worker_id}-{tag}")
                with _opened("temp", root) as temp:
                    for incarnation in os.listdir(temp) if temp is not None else ():
                        with _opened(incarnation, temp) as folder:
                            _take(key, folder, trash, f"{worker_id}-{tag}")
        return [name for name in os.listdir(trash) if f"-{tag}-" in name]


def _in_trash(base: Path) -> list[str]:
    with _trash(base) as trash:
        return os.listdir(trash)


@contextlib.contextmanager
def _trash(base: Path) -> Iterator[int]:
    """The trash, made anew if it is missing or something else stands there, which is put aside as at a worker's start."""
    path = base / TRASH
    with _opened(path) as found:
        if found is not None:
            yield found
            return
    with contextlib.suppress(FileNotFoundError):
        path.rename(base / f".{TRASH}-{secrets.token_hex(8)}")
    path.mkdir(mode=0o700)
    with _opened(path) as made:
        if made is None:
            raise OSError(errno.ENOTDIR, "the trash is replaced all the time")
        yield made


@contextlib.contextmanager
def _opened(name: str | Path, inside: int | None = None) -> Iterator[int | None]:
    """A folder, or None if there is none of this name: a link is none."""
    if inside is None and isinstance(name, str):
        yield None
        return
    try:
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=inside)
        except PermissionError:
            _unlock(name, inside)
            descriptor = os.open(name, _FOLDER, dir_fd=inside)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(key: str, folder: int | None, trash: int, prefix: str) -> None:
    if folder is None:
        return
    name = f"{prefix}-{secrets.token_hex(8)}"
    with contextlib.suppress(FileNotFoundError):
        try:
            os.rename(key, name, src_dir_fd=folder, dst_dir_fd=trash)
        except PermissionError:
            # A handler may take from us what we need: writing to the folder, and (for its `..`) to what is moved.
            with contextlib.suppress(OSError):  # then the second try says what is wrong
                os.fchmod(folder, 0o700)
                _unlock(key, folder)
            os.rename(key, name, src_dir_fd=folder, dst_dir_fd=trash)


def _unlock(name: str | Path, inside: int | None) -> None:
    """Give its owner, if that is who we are, all rights to a folder; one of mode 000 can only be named, not opened."""
    descriptor = os.open(name, _NAMED, dir_fd=inside)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", 0o700)
    finally:
        os.close(descriptor)
