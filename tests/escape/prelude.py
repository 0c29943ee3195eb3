"""What the programs of the attempts find ready when they run inside of a worker.

The text of this file goes into the worker; it needs the standard library only. Tests import it as well, to see what
their own process may do: a worker that nobody walls in may do the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket  # noqa: F401  # for the programs, as all of this
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

# System calls by name: their numbers on x86-64 and on aarch64. Written down apart from those of the filter.
CALLS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "capget": (125, 90),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fanotify_init": (300, 262),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "semctl": (66, 191),
    "semget": (64, 190),
    "setns": (308, 268),
    "sethostname": (170, 161),
    "shmctl": (31, 195),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}

LOOPBACK = "127.0.0.1"
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Refused(Exception):
    """The attempt failed, in a way that is no error of a system call."""


class Escaped(Exception):
    """The attempt got what it wanted."""


def refused(word: str) -> NoReturn:
    raise Refused(word)


def escaped(what: object) -> NoReturn:
    raise Escaped(str(what)[:300])


def checked(result: int) -> int:
    """The result of a function of libc; raises OSError if it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name: str, *arguments: Any) -> int:
    """A system call past every wrapper; raises OSError."""
    number = CALLS[name][platform.machine() == "aarch64"]
    whole = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(int(libc.syscall(ctypes.c_long(number), *whole)))


@contextlib.contextmanager
def kernel_answers(*names: str) -> Iterator[None]:
    """The arguments are nonsense on purpose: one of these errors shows that nothing stopped the call on its way."""
    try:
        yield
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) in names:
            escaped(f"the kernel judged the arguments: {error.strerror}")
        raise


def judge(program: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """Run one attempt; how it ended."""
    try:
        exec(compile(program, "attempt", "exec"), dict(globals(), facts=facts))  # noqa: S102  # our own text
    except Refused as word:
        return {"outcome": "refused", "how": str(word)}
    except Escaped as what:
        return {"outcome": "open", "how": str(what)}
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0)
        if name is not None:
            return {"outcome": "refused", "how": name, "detail": str(error)}
        return {"outcome": "broken", "how": traceback.format_exc()}
    except BaseException:
        return {"outcome": "broken", "how": traceback.format_exc()}
    return {"outcome": "broken", "how": "it ended without a verdict"}
