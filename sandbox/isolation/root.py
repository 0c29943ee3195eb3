"""The root of a worker's filesystem: built from an empty one, with the paths of a `View` and nothing else.

Words for `bwrap`, as plain data. The order matters: what is mounted later lies on top.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from moltbot.sandbox.isolation.view import View
from moltbot.sandbox.launch import Attached, LaunchSpec, Places, Word

INSIDE = Path("/sandbox")
PLACES = Places(
    sessions=INSIDE / "sessions",
    state=INSIDE / "state",
    cache=INSIDE / "cache",
    temp=INSIDE / "temp",
    home=INSIDE / "temp" / ".home",
    code=INSIDE / "lib",
)
TMP_SIZE = 64 << 20
SHM_SIZE = 64 << 20
MADE_FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts")
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"

_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


def root_words(view: View, spec: LaunchSpec, uid: int, hosts: str) -> Iterator[Word]:
    """Mount the root of one worker. uid: its own; hosts: the text of /etc/hosts, to which its own name is added."""
    # /tmp comes first, for what is bound may lie below it.
    yield from ("--perms", "1777", "--size", str(TMP_SIZE), "--tmpfs", "/tmp")
    yield from ("--proc", "/proc", "--dev", "/dev")
    for path in view.masked:
        yield from ("--ro-bind", "/dev/null", str(path))
    yield from ("--perms", "1777", "--size", str(SHM_SIZE), "--tmpfs", "/dev/shm")
    folders = _Folders()
    for path in view.readable:
        yield from folders.read_only(path)
    for grants, how in ((view.read_only, "--ro-bind"), (view.read_write, "--bind")):
        for grant in grants:
            yield from folders.above(grant.name)
            yield from (how, str(grant.source), str(grant.name))
    yield from folders.above(Path("/etc/passwd"))
    for name, text in _data_files(uid, spec.directories.worker_id, hosts).items():
        # Mounted, not written: whatever is there already is covered, never changed.
        yield from ("--perms", "0644", "--ro-bind-data", Attached(text.encode()), name)
    yield from _own_words(view, spec, folders)
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/")


def _own_words(view: View, spec: LaunchSpec, folders: _Folders) -> Iterator[Word]:
    """The worker's directories one by one (never their parent, in which a link could be swapped), and our code."""
    directories = spec.directories
    yield from folders.above(PLACES.state)
    for inside, outside in (
        (PLACES.sessions, directories.root / "sessions"),
        (PLACES.state, directories.root / "state"),
        (PLACES.cache, directories.root / "cache"),
        (PLACES.temp, directories.temp(spec.incarnation)),
    ):
        yield from ("--bind", str(outside), str(inside))
    yield from ("--ro-bind", str(directories.root / "logs"), str(INSIDE / "logs"))
    package = PLACES.code / "moltbot"
    yield from folders.above(package / "core")
    for path in view.code:
        yield from ("--ro-bind", str(path), str(package / path.name))


def _data_files(uid: int, worker_id: str, hosts: str) -> dict[str, str]:
    users = {0: "root", 65534: "nobody", uid: "worker"}
    return {
        "/etc/passwd": "".join(
            f"{name}:x:{number}:{number}::{PLACES.home if number == uid else '/'}:/bin/sh\n"
            for number, name in users.items()
        ),
        "/etc/group": "".join(f"{name}:x:{number}:\n" for number, name in users.items()),
        "/etc/nsswitch.conf": _NSSWITCH,
        "/etc/hosts": f"{hosts.rstrip()}\n127.0.1.1 {worker_id}\n",
    }


class _Folders:
    """The root under construction: which folders are there already."""

    def __init__(self) -> None:
        self._made = {Path("/"), Path("/tmp"), Path("/dev"), Path("/proc")}
        self._bound: list[Path] = []

    def above(self, path: Path) -> Iterator[str]:
        """bwrap would make missing folders 0700: nobody but root could pass."""
        for folder in reversed(path.parents):
            if folder not in self._made and not self._is_bound(folder):
                self._made.add(folder)
                yield from ("--perms", "0755", "--dir", str(folder))

    def read_only(self, path: Path) -> Iterator[str]:
        if self._is_bound(path):
            return
        yield from self.above(path)
        if path.is_symlink() and str(path.parent) == "/":
            yield from ("--symlink", os.readlink(path), str(path))
            return
        self._bound.append(path)
        yield from ("--ro-bind", str(path), str(path))

    def _is_bound(self, path: Path) -> bool:
        return any(path.is_relative_to(bound) for bound in self._bound)
