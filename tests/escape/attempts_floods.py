"""Floods: attempts of one worker to use up what all share. Each is bounded, in case nothing stops it.

A program runs behind the prelude of `siege_programs.py`, as a child of a handler of worker-0, while another
worker's user goes on. The programs: `flood_programs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moltbot.sandbox.isolation.plan import Level
from tests.escape.flood_programs import (
    CORE,
    DESCRIPTORS,
    FILL,
    FORKS,
    MANY_GROW,
    MEMFD,
    ONE_FILE,
    ONE_GROWS,
    PRINTS,
    PRIORITY,
    SPARSE_FILE,
    SPIN,
    THREADS,
    TMP_NAMES,
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a flood at one level. words: for people.

    says: what the program may say, and the worker lives: its errno, "killed" if it was, or "open".
    ends: the reasons for which the worker may be killed instead.
    """

    words: str
    says: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flood:
    """tries: what it is after, in words. taught_by: the CVE, report or manual page that taught it."""

    name: str
    tries: str
    taught_by: str
    program: str
    expected: Mapping[Level, Fate]
    settings: Mapping[str, Any] = field(default_factory=dict)


def everywhere(fate: Fate) -> dict[Level, Fate]:
    return dict.fromkeys(Level, fate)


def walled(bubblewrap: Fate, landlock: Fate, directories: Fate) -> dict[Level, Fate]:
    return {Level.BUBBLEWRAP: bubblewrap, Level.LANDLOCK: landlock, Level.DIRECTORIES: directories}


_COUNTED = Fate(
    "counted about once a second, and killed; where a cgroup is delegated, its pids.max comes first",
    says=("EAGAIN",),
    ends=("over_processes",),
)
_SAMPLED = Fate(
    "the tree is measured once a second, and killed; where a cgroup is delegated, memory.max comes first",
    says=("killed",),
    ends=("over_memory", "out_of_memory"),
)
_DENIED = Fate("no rule lets it write there", says=("EACCES",))
_SHARED = Fate("not stopped: all that this system user may write is open to it", says=("open",))
_FEW = {"max_processes": 32}
_SMALL = {"max_memory": "64MB"}

FLOODS = (
    Flood(
        "forks",
        "use up the machine's process numbers",
        "fork(2): EAGAIN; RLIMIT_NPROC in getrlimit(2), which does not bind uid 0",
        FORKS,
        walled(Fate("RLIMIT_NPROC of its own uid or namespace", says=("EAGAIN",)), _COUNTED, _COUNTED),
        _FEW,
    ),
    Flood(
        "threads",
        "the same with threads, which count as processes",
        "pthread_create(3): EAGAIN",
        THREADS,
        walled(Fate("RLIMIT_NPROC of its own uid or namespace", says=("EAGAIN",)), _COUNTED, _COUNTED),
        _FEW,
    ),
    Flood(
        "one process grows",
        "use up the machine's memory",
        "the out-of-memory killer takes the largest process, which may be the gateway",
        ONE_GROWS,
        everywhere(_SAMPLED),
        _SMALL,
    ),
    Flood(
        "many processes grow",
        "use up the memory with children that are each below the limit",
        "getrlimit(2): limits of memory are for each process",
        MANY_GROW,
        everywhere(_SAMPLED),
        _SMALL,
    ),
    Flood(
        "/dev/shm",
        "use up memory that is mapped by nobody",
        "shm_overview(7); FACTS: /dev/shm of bwrap is unsized unless told",
        FILL.format(place="/dev/shm"),
        walled(Fate("a tmpfs of its own with a size", says=("ENOSPC",)), _DENIED, _SHARED),
    ),
    Flood(
        "/tmp",
        "use up the memory behind a tmpfs, or the host's /tmp",
        "tmpfs(5): half of the memory unless a size is given",
        FILL.format(place="/tmp"),
        walled(Fate("a tmpfs of its own with a size", says=("ENOSPC",)), _DENIED, _SHARED),
    ),
    Flood(
        "names in /tmp",
        "use up the kernel's own memory by empty files, each about a kilobyte in no file's size",
        "tmpfs(5): nr_inodes is half of the pages of memory, whatever the size",
        TMP_NAMES,
        walled(
            Fate("counted as memory of the worker, which is measured once a second", ends=("over_memory",)),
            _DENIED,
            _SHARED,
        ),
        _SMALL,
    ),
    Flood(
        "memfd",
        "memory without a mapping or a name, which no measurement of mappings sees",
        "memfd_create(2)",
        MEMFD,
        walled(
            Fate("refused by seccomp", says=("ENOSYS",)),
            Fate("refused by seccomp", says=("ENOSYS",)),
            Fate("not stopped: no filter at this level", says=("open",)),
        ),
    ),
    Flood(
        "descriptors",
        "use up the machine's table of open files",
        "proc_sys_fs(5): file-max is for all",
        DESCRIPTORS,
        everywhere(Fate("RLIMIT_NOFILE", says=("EMFILE",))),
        {"max_open_files": 128},
    ),
    Flood(
        "one large file",
        "use up the disk with one file",
        "getrlimit(2): RLIMIT_FSIZE",
        ONE_FILE,
        everywhere(Fate("RLIMIT_FSIZE is max_disk", says=("EFBIG",))),
        {"max_disk": "20MB"},
    ),
    Flood(
        "one sparse file",
        "a file of a terabyte that costs nothing until somebody copies it",
        "lseek(2) on holes; copies that do not keep them",
        SPARSE_FILE,
        everywhere(Fate("RLIMIT_FSIZE is max_disk", says=("EFBIG",))),
        {"max_disk": "20MB"},
    ),
    Flood(
        "cpu",
        "take all cores",
        "sched(7): a new session has a scheduling group of its own",
        SPIN,
        everywhere(Fate("not stopped, but shared fairly: others go on", says=("spins",))),
    ),
    Flood(
        "output",
        "fill the disk by the log that the gateway writes",
        "container runtimes whose json-file log has no limit",
        PRINTS,
        everywhere(Fate("a budget a second, lines cut, files rotated", says=("printed",))),
    ),
    Flood(
        "core dumps",
        "write an image of memory to the disk, by raising its limit first",
        "core(5)",
        CORE,
        walled(
            Fate("the hard limit is 1 byte and no capability raises it", says=("refused",)),
            Fate("the hard limit is 1 byte and no capability raises it", says=("refused",)),
            Fate(
                "the hard limit is 1 byte, but capabilities that the gateway has may raise it",
                says=("open", "refused", "EPERM", "EACCES"),
            ),
        ),
    ),
    Flood(
        "priority",
        "come before the gateway and all others on every core",
        "setpriority(2): CAP_SYS_NICE",
        PRIORITY,
        walled(
            Fate("no capability", says=("EPERM",)),
            Fate("no capability", says=("EPERM",)),
            Fate(
                "capabilities that the gateway has may allow it", says=("open", "refused", "EPERM", "EACCES")
            ),
        ),
    ),
)
