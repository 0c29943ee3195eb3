"""Which paths of this machine a worker sees, and which grants are refused.

The same list serves every wall: bubblewrap binds these paths into an empty root, Landlock allows them in the real one. It
is computed once per pool, from the operator's settings; nothing a worker wrote is read for it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
import psutil

from moltbot.core.errors import SettingsError
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.launch import PACKAGE, absolute_handler, is_handler_file

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
"""Programs and libraries; what is a link here (as on every merged-/usr system) stays one."""

ETC = (
    # Certificates one by one: beside them lie the machine's private keys.
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/ca-certificates"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *(
        "/etc/os-release",
        "/etc/fonts",
        "/etc/localtime",
        "/etc/timezone",
        "/etc/mime.types",
        "/etc/services",
        "/etc/protocols",
    ),
)
RESOLVER = ("/etc/resolv.conf",)
"""Needed to find other machines by name: with `network = full` only."""

MASKED = ("/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/kallsyms", "/proc/sched_debug")
"""In no namespace: what of the gateway's user and of the kernel would show through."""

_OURS = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/sandbox")
"""What a wall puts there itself."""

_NEVER = {
    "/proc": "processes of the whole machine",
    "/sys": "the kernel's own settings",
    "/dev": "devices",
    "/run": "sockets of the machine's services",
    "/var/run": "sockets of the machine's services",
}
_UNSAFE_MOUNTS = frozenset({"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs"})
_MOST_ENTRIES = 200_000


@dataclass(frozen=True, slots=True)
class Grant:
    """A path that the operator gave. source: what it really is, found once; name: how workers call it."""

    name: Path
    source: Path


@dataclass(frozen=True, slots=True)
class View:
    """Absolute paths, each seen at its own name. masked: closed to it. code: our files that run in a worker,
    handler: the author's.
    """

    system: tuple[Path, ...]
    etc: tuple[Path, ...]
    masked: tuple[Path, ...]
    python: tuple[Path, ...]
    code: tuple[Path, ...]
    handler: tuple[Path, ...]
    read_only: tuple[Grant, ...]
    read_write: tuple[Grant, ...]

    @property
    def readable(self) -> tuple[Path, ...]:
        """All that is read-only, without our own code and without grants."""
        return (*self.system, *self.etc, *self.python, *self.handler)


def view_of(config: PoolConfig, base: Path) -> View:
    """Compute the view; raises SettingsError for a grant, a handler or a base directory that would open a wall."""
    view = View(
        system=_existing(SYSTEM),
        etc=_existing((*ETC, *RESOLVER) if config.network == "full" else ETC),
        masked=_existing(MASKED),
        python=interpreter_paths(),
        code=(PACKAGE / "__init__.py", (PACKAGE / "core").resolve(), (PACKAGE / "worker").resolve()),
        handler=(*_handler_paths(config.handler), *_command_paths(config.worker_command or ())),
        read_only=tuple(Grant(path, path.resolve()) for path in config.read_only_paths),
        read_write=tuple(Grant(path, path.resolve()) for path in config.read_write_paths),
    )
    for path in (*view.system, *view.etc, *view.python, *view.code):
        if _overlap(path, base):
            raise SettingsError(
                f"sandbox_base_dir = {base} and {path}, which every worker reads, lie in one another: choose another directory"
            )
    for path in view.handler:
        if _overlap(path, base):
            raise SettingsError(
                f"the handler's {path} and the base directory {base} lie in one another: move the handler elsewhere"
            )
    for grant in view.read_only:
        _check_grant("read_only_paths", grant, base)
    for index, grant in enumerate(view.read_write):
        _check_grant("read_write_paths", grant, base)
        for code in (*view.system, *view.python, *view.code, *view.handler):
            if _overlap(grant.source, code):
                raise _refused(
                    "read_write_paths", grant.name, f"workers run what is in {code}, and could change it"
                )
        # What lies in a folder that workers can change, they can exchange for a link to something else.
        for other in (*view.read_only, *view.read_write[index + 1 :]):
            if _overlap(grant.name, other.name) or _overlap(grant.source, other.source):
                raise _refused("read_write_paths", grant.name, f"it overlaps with {other.name}, granted too")
    return view


def interpreter_paths() -> tuple[Path, ...]:
    """Where this interpreter, its virtual environment and its packages are, as named and as they really are."""
    named = [Path(sys.base_prefix), Path(sys.prefix), Path(msgpack.__file__).parents[1]]
    found = _outermost([*named, *(path.resolve() for path in named)])
    return (*found, *(hop for hop in _links(Path(sys.executable)) if not _within_any(hop, found)))


def _links(path: Path) -> Iterable[Path]:
    """Every name on the way from a link to what it means."""
    for _ in range(40):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / os.readlink(path)


def _outermost(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Each path once, without those that lie in another one or in the system's own."""
    kept: list[Path] = []
    for path in sorted(dict.fromkeys(paths), key=lambda path: len(path.parts)):
        if not _within_any(path, (*kept, *map(Path, SYSTEM))):
            kept.append(path)
    return tuple(kept)


def _handler_paths(source: str | None) -> tuple[Path, ...]:
    """A handler file alone, whatever else is in its folder; of `module:name`, the top package."""
    if source is None:
        return ()
    if is_handler_file(source):
        path = Path(absolute_handler(source))
        return (path,) if path.is_file() else ()  # the worker says what is wrong with it
    try:
        spec = importlib.util.find_spec(source.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    places = spec.submodule_search_locations or [spec.origin or ""]
    return tuple(path for place in places if (path := Path(place)).is_absolute() and path.exists())


def _command_paths(command: Sequence[str]) -> tuple[Path, ...]:
    """The program and the files that a `worker_command` names."""
    found = []
    for index, word in enumerate(command):
        path = Path(shutil.which(word) or word) if index == 0 else Path(word)
        if path.is_absolute() and path.is_file():
            found += [*_links(path), path.resolve()]
    return _outermost(found)


def _check_grant(setting: str, grant: Grant, base: Path) -> None:
    path, real = grant.name, grant.source
    if not real.exists():
        raise SettingsError(f"{setting} names {path}, which does not exist: make it, or take it out")
    if _overlap(real, base):
        raise _refused(setting, path, f"it would expose the base directory {base} with all workers in it")
    for name, what in _NEVER.items():
        if _overlap(real, Path(name).resolve()):
            raise _refused(setting, path, f"it would expose {name}: {what}")
    if real == Path("/tmp") or any(_overlap(real, Path(name)) for name in _OURS):
        raise _refused(setting, path, "a wall puts files of its own there")
    for mount in psutil.disk_partitions(all=True):
        if mount.fstype in _UNSAFE_MOUNTS and Path(mount.mountpoint).is_relative_to(real):
            raise _refused(setting, path, f"{mount.fstype} is mounted at {mount.mountpoint}")
    _check_sockets(setting, path, real)


def _check_sockets(setting: str, path: Path, real: Path) -> None:
    """A socket is a door to whoever listens behind it, read-only or not."""
    waiting, seen = [str(real)], 0
    while waiting:
        place = waiting.pop()
        try:
            status = os.lstat(place)
            if stat.S_ISSOCK(status.st_mode) and _listens(place):
                raise _refused(setting, path, f"{place} is a socket, behind which something listens")
            if stat.S_ISDIR(status.st_mode):
                names = os.listdir(place)
                seen += len(names)
                waiting += [os.path.join(place, name) for name in names]
        except OSError:
            continue  # what we cannot read ourselves, a worker cannot either
        if seen <= _MOST_ENTRIES:
            continue
        if (
            setting == "read_write_paths"
        ):  # workers themselves may have made so many, and must not keep us from starting
            return
        raise _refused(
            setting, path, f"it holds more than {_MOST_ENTRIES} files, too many to look for sockets"
        )


def _listens(path: str) -> bool:
    """False for a socket that nobody listens on, as one that a worker of an earlier gateway left behind."""
    try:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)
            probe.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except OSError as error:
        return error.errno != errno.ECONNREFUSED
    finally:
        os.close(folder)
    return True


def _refused(setting: str, path: Path, why: str) -> SettingsError:
    return SettingsError(f"{setting} must not name {path}: {why}: name a smaller folder, or another one")


def _existing(paths: Iterable[str]) -> tuple[Path, ...]:
    return tuple(path for text in paths if (path := Path(text)).exists())


def _overlap(one: Path, other: Path) -> bool:
    """True if one of the two is, or lies in, the other; as named or as they really are."""
    return any(
        a.is_relative_to(b) or b.is_relative_to(a)
        for a, b in ((one, other), (one.resolve(), other.resolve()))
    )


def _within_any(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)
