"""The system calls that a worker may not make: one table, a rule a line, each with its error and its reason.

The table is a list of refusals: what is not in it is allowed, because handlers run programs that nobody
here knows. Only calls newer than the table are refused unseen (`LAST_KNOWN`). It is data; the program for the
kernel is made in `seccomp.py`. Which files, ports and processes a call may reach is not judged here, but in
`bubblewrap.py` and `landlock.py`.

Numbers are those of Linux's own tables, x86-64 first, then aarch64; None where the machine has no such call.
"""

from __future__ import annotations

from dataclasses import dataclass

# The newest call that was judged for this table, file_setattr. From 424 on both machines count alike.
LAST_KNOWN = 469

# Linux's numbers: the errno module of another system has others, and the program is always for Linux.
EPERM, ENOSYS, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT = 1, 38, 93, 94, 95, 97

ALL_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Check:
    """A question to 32 bits of an argument: are they, masked, one of `values` (`among`), or none of them?

    They are the low half unless `high`: of an `int` the kernel reads nothing else, so that garbage above it
    must not matter.
    """

    argument: int
    values: tuple[int, ...]
    among: bool
    mask: int = ALL_BITS
    high: bool = False

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a check needs values to compare with")


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that fails with `error` if all of `when` hold; without any, always."""

    name: str
    x86_64: int | None
    aarch64: int | None
    error: int
    why: str
    when: tuple[Check, ...] = ()


def _is(argument: int, *values: int, mask: int = ALL_BITS) -> Check:
    return Check(argument, values, True, mask)


def _is_not(argument: int, *values: int, mask: int = ALL_BITS, high: bool = False) -> Check:
    return Check(argument, values, False, mask, high)


# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; clone reads its flags in the low half only.
# NEWTIME (0x80) is not among them: the low byte of clone's flags is the signal that the child ends with.
_CLONED = (_is_not(0, 0, mask=0x7E020000),)
# VM, FS, FILES, SIGHAND, THREAD, SYSVSEM are all that unshare can do besides namespaces. Every other bit is
# refused, known or not: newer kernels make a mount namespace for one that used to be clone's (0x100000). The
# flags are a long, so the high half counts.
_UNSHARED = (_is_not(0, 0, mask=ALL_BITS ^ 0x00050F00),)
_UNSHARED_HIGH = (_is_not(0, 0, high=True),)

_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_FASTOPEN = 0x20000000
_SET_IDS = 0o6000
_MAKING = 0x400040  # O_CREAT and O_TMPFILE: else the mode is not read


def _made(argument: int) -> Check:
    return _is_not(argument, 0, mask=_MAKING)


_PER_LINUX, _ASK = 0, 0xFFFFFFFF

_ALWAYS = (
    # What is mounted decides what is visible.
    Rule("mount", 165, 40, EPERM, "puts other files over those that the wall shows"),
    Rule("umount2", 166, 39, EPERM, "uncovers what the wall has covered"),
    Rule("pivot_root", 155, 41, EPERM, "changes the root"),
    Rule("chroot", 161, 51, EPERM, "changes the root, and is a known way out of one"),
    Rule("move_mount", 429, 429, EPERM, "the newer mount"),
    Rule("open_tree", 428, 428, EPERM, "the newer mount: copies a tree"),
    Rule("open_tree_attr", 467, 467, EPERM, "the newer mount: copies a tree and may make it writable"),
    Rule("fsopen", 430, 430, EPERM, "the newer mount: a new file system"),
    Rule("fsconfig", 431, 431, EPERM, "the newer mount: its parser of options had holes"),
    Rule("fsmount", 432, 432, EPERM, "the newer mount"),
    Rule("fspick", 433, 433, EPERM, "the newer mount: opens one that is there to change it"),
    Rule("mount_setattr", 442, 442, EPERM, "makes what is read-only writable"),
    # In a namespace of its own a worker has every capability; most holes in kernels begin there.
    Rule("setns", 308, 268, EPERM, "enters another namespace"),
    Rule("clone3", 435, 435, ENOSYS, "its flags are behind a pointer; without it, libraries use clone"),
    Rule("clone", 56, 220, EPERM, "makes namespaces", _CLONED),
    Rule("unshare", 272, 97, EPERM, "makes namespaces", _UNSHARED),
    Rule("unshare", 272, 97, EPERM, "may make namespaces one day", _UNSHARED_HIGH),
    # Other processes: same user, same wall or not.
    Rule("ptrace", 101, 117, EPERM, "takes over another process"),
    Rule("process_vm_readv", 310, 270, EPERM, "reads another process"),
    Rule("process_vm_writev", 311, 271, EPERM, "writes into another process"),
    Rule("process_madvise", 440, 440, EPERM, "drops or moves the memory of another process"),
    Rule("kcmp", 312, 272, EPERM, "tells addresses of the kernel by comparing them"),
    Rule("pidfd_getfd", 438, 438, EPERM, "takes a descriptor out of another process"),
    # Parts of the kernel that no handler needs and that many holes were in.
    Rule("keyctl", 250, 219, EPERM, "keys are in no namespace"),
    Rule("add_key", 248, 217, EPERM, "keys are in no namespace"),
    Rule("request_key", 249, 218, EPERM, "keys are in no namespace, and this starts a program outside"),
    Rule("bpf", 321, 280, EPERM, "loads programs into the kernel"),
    Rule("perf_event_open", 298, 241, EPERM, "watches others and the kernel"),
    Rule("userfaultfd", 323, 282, EPERM, "stops the kernel in the middle of a copy, which exploits need"),
    Rule("io_uring_setup", 425, 425, ENOSYS, "makes calls that no filter sees; programs do without"),
    Rule("io_uring_enter", 426, 426, ENOSYS, "makes calls that no filter sees"),
    Rule("io_uring_register", 427, 427, ENOSYS, "makes calls that no filter sees"),
    Rule("open_by_handle_at", 304, 265, EPERM, "opens a file past every directory above it"),
    Rule("name_to_handle_at", 303, 264, EPERM, "makes the handles for it"),
    Rule("personality", 135, 92, EPERM, "turns protections of memory off", (_is_not(0, _PER_LINUX, _ASK),)),
    Rule("fanotify_init", 300, 262, EPERM, "watches files of a whole mount"),
    Rule("lookup_dcookie", 212, 18, EPERM, "tells paths that are not visible"),
    # Of a request the kernel reads the low half only; comparing all of it let garbage through once.
    Rule("ioctl", 16, 29, EPERM, "types into the operator's terminal", (_is(1, _TIOCSTI, _TIOCLINUX),)),
    Rule("ioctl", 16, 29, EPERM, "loads a line discipline into the kernel", (_is(1, _TIOCSETD),)),
    # Connects without `connect`, past the rules that Landlock has for ports.
    Rule("sendto", 44, 206, EOPNOTSUPP, "TCP Fast Open", (_is(3, _FASTOPEN, mask=_FASTOPEN),)),
    Rule("sendmsg", 46, 211, EOPNOTSUPP, "TCP Fast Open", (_is(2, _FASTOPEN, mask=_FASTOPEN),)),
    Rule("sendmmsg", 307, 269, EOPNOTSUPP, "TCP Fast Open", (_is(3, _FASTOPEN, mask=_FASTOPEN),)),
    # A program that runs as its owner, left in a folder that others reach, is a door to that uid outside of the wall.
    Rule("chmod", 90, None, EPERM, "makes a set-id program", (_is_not(1, 0, mask=_SET_IDS),)),
    Rule("fchmod", 91, 52, EPERM, "makes a set-id program", (_is_not(1, 0, mask=_SET_IDS),)),
    Rule("fchmodat", 268, 53, EPERM, "makes a set-id program", (_is_not(2, 0, mask=_SET_IDS),)),
    Rule("fchmodat2", 452, 452, EPERM, "makes a set-id program", (_is_not(2, 0, mask=_SET_IDS),)),
    Rule("open", 2, None, EPERM, "makes a set-id program", (_made(1), _is_not(2, 0, mask=_SET_IDS))),
    Rule("openat", 257, 56, EPERM, "makes a set-id program", (_made(2), _is_not(3, 0, mask=_SET_IDS))),
    Rule("openat2", 437, 437, ENOSYS, "its mode is behind a pointer; without it, programs use openat"),
    Rule("creat", 85, None, EPERM, "makes a set-id program", (_is_not(1, 0, mask=_SET_IDS),)),
    Rule("mknod", 133, None, EPERM, "makes a set-id program", (_is_not(1, 0, mask=_SET_IDS),)),
    Rule("mknodat", 259, 33, EPERM, "makes a set-id program", (_is_not(2, 0, mask=_SET_IDS),)),
    # Passed to the gateway and dropped there, such a socket would make the gateway wait.
    Rule("setsockopt", 54, 208, EPERM, "an end that waits (SO_LINGER)", (_is(1, 1), _is(2, 13))),
    # Memory counts against a worker by what its processes map; this would count against nobody.
    Rule("memfd_create", 319, 279, ENOSYS, "memory that nobody need map; without it, programs use a file"),
    Rule("memfd_secret", 447, 447, ENOSYS, "memory that nobody need map, unreadable even to the kernel"),
    Rule("shmget", 29, 194, EPERM, "a segment stays when nobody maps it, even after the worker"),
    # The machine itself: code in the kernel, power, swap, accounts, quotas, hardware.
    Rule("init_module", 175, 105, EPERM, "code in the kernel"),
    Rule("finit_module", 313, 273, EPERM, "code in the kernel"),
    Rule("delete_module", 176, 106, EPERM, "takes code out of the kernel"),
    Rule("kexec_load", 246, 104, EPERM, "another kernel"),
    Rule("kexec_file_load", 320, 294, EPERM, "another kernel"),
    Rule("reboot", 169, 142, EPERM, "ends the machine"),
    Rule("swapon", 167, 224, EPERM, "the machine's memory"),
    Rule("swapoff", 168, 225, EPERM, "the machine's memory"),
    Rule("acct", 163, 89, EPERM, "turns accounting off, or to a file of the worker"),
    Rule("quotactl", 179, 60, EPERM, "quotas of others"),
    Rule("quotactl_fd", 443, 443, EPERM, "quotas of others"),
    Rule("syslog", 103, 116, EPERM, "the kernel's log has addresses and what others do"),
    Rule("vhangup", 153, 58, EPERM, "hangs up a terminal"),
    Rule("iopl", 172, None, EPERM, "hardware"),
    Rule("ioperm", 173, None, EPERM, "hardware"),
    Rule("modify_ldt", 154, None, EPERM, "segments of 16-bit programs, with a history of leaks"),
    # Relics: nothing of today calls them, and code that nobody calls nobody tests.
    Rule("nfsservctl", 180, 42, EPERM, "relic"),
    Rule("uselib", 134, None, EPERM, "relic"),
    Rule("_sysctl", 156, None, EPERM, "relic"),
    Rule("sysfs", 139, None, EPERM, "relic"),
    Rule("ustat", 136, None, EPERM, "relic"),
    # The clock and the names of the machine.
    Rule("settimeofday", 164, 170, EPERM, "everybody's clock"),
    Rule("clock_settime", 227, 112, EPERM, "everybody's clock"),
    Rule("adjtimex", 159, 171, EPERM, "everybody's clock"),
    Rule("clock_adjtime", 305, 266, EPERM, "everybody's clock"),
    Rule("sethostname", 170, 161, EPERM, "the machine's name"),
    Rule("setdomainname", 171, 162, EPERM, "the machine's name"),
    # Which memory bank pages are in: can be used against others, and had holes.
    Rule("mbind", 237, 235, EPERM, "placing of pages"),
    Rule("set_mempolicy", 238, 237, EPERM, "placing of pages"),
    Rule("set_mempolicy_home_node", 450, 450, EPERM, "placing of pages"),
    Rule("get_mempolicy", 239, 236, EPERM, "placing of pages"),
    Rule("migrate_pages", 256, 238, EPERM, "placing of another process's pages"),
    Rule("move_pages", 279, 239, EPERM, "placing of another process's pages"),
)

_NOT_OURSELVES = (_is_not(0, 0),)

# Without namespaces, numbers and names of the kernel's objects mean those of the whole machine.
_SHARED = (
    Rule("shmat", 30, 196, EPERM, "segments are everybody's"),
    Rule("shmctl", 31, 195, EPERM, "segments are everybody's"),
    Rule("semget", 64, 190, EPERM, "semaphores are everybody's"),
    Rule("semop", 65, 193, EPERM, "semaphores are everybody's"),
    Rule("semctl", 66, 191, EPERM, "semaphores are everybody's"),
    Rule("semtimedop", 220, 192, EPERM, "semaphores are everybody's"),
    Rule("msgget", 68, 186, EPERM, "queues are everybody's"),
    Rule("msgsnd", 69, 189, EPERM, "queues are everybody's"),
    Rule("msgrcv", 70, 188, EPERM, "queues are everybody's"),
    Rule("msgctl", 71, 187, EPERM, "queues are everybody's"),
    Rule("mq_open", 240, 180, EPERM, "queues are everybody's"),
    Rule("mq_unlink", 241, 181, EPERM, "queues are everybody's"),
    Rule("prlimit64", 302, 261, EPERM, "limits of another process, its end included", _NOT_OURSELVES),
    Rule("sched_setaffinity", 203, 122, EPERM, "the processors of another process", _NOT_OURSELVES),
    Rule("sched_setscheduler", 144, 119, EPERM, "puts another process to sleep", _NOT_OURSELVES),
    Rule("sched_setparam", 142, 118, EPERM, "puts another process to sleep", _NOT_OURSELVES),
    Rule("sched_setattr", 314, 274, EPERM, "puts another process to sleep", _NOT_OURSELVES),
    Rule("setpriority", 141, 140, EPERM, "slows all processes of a user or group", _NOT_OURSELVES),
    Rule("setpriority", 141, 140, EPERM, "slows another process", (_is_not(1, 0),)),
    Rule("ioprio_set", 251, 30, EPERM, "slows all processes of a user or group", (_is_not(0, 1),)),
    Rule("ioprio_set", 251, 30, EPERM, "slows another process", (_is_not(1, 0),)),
    # Landlock has no right for attributes, and an access list among them sets permissions.
    Rule("setxattr", 188, 5, EPERM, "permissions of files that are not its own"),
    Rule("lsetxattr", 189, 6, EPERM, "permissions of files that are not its own"),
    Rule("fsetxattr", 190, 7, EPERM, "permissions of files that are not its own"),
    Rule("setxattrat", 463, 463, EPERM, "permissions of files that are not its own"),
)

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DGRAM, _RAW, _SEQPACKET = 1, 2, 3, 5
_TYPE = 0xF  # above it are SOCK_NONBLOCK and SOCK_CLOEXEC
_ANY, _ICMP, _TCP, _UDP, _ICMPV6 = 0, 1, 6, 17, 58
_ROUTE = 0


def _sockets(inet: bool, unix: bool) -> tuple[Rule, ...]:
    families = (*((_UNIX,) if unix else ()), *((_INET, _INET6) if inet else ()), _NETLINK)
    # The type is judged as well: with protocol 0 it alone chooses (SEQPACKET is SCTP), and for the sake of
    # very old programs the kernel turns AF_INET with SOCK_PACKET into a packet socket.
    internet = _is(0, _INET, _INET6)
    raw = (internet, _is(1, _RAW, mask=_TYPE))
    odd = (internet, _is_not(1, _STREAM, _DGRAM, mask=_TYPE))
    beside = (internet, _is_not(2, _ANY, _ICMP, _TCP, _UDP, _ICMPV6))
    netlink = (_is(0, _NETLINK), _is_not(2, _ROUTE))
    # One end of a pair of datagrams can send to any name it likes; one end of a connected pair cannot.
    unconnected = (_is_not(1, _STREAM, _SEQPACKET, mask=_TYPE),)
    table = (
        Rule("socket", 41, 198, EAFNOSUPPORT, "families that nobody walls in", (_is_not(0, *families),)),
        Rule("socket", 41, 198, EPERM, "raw packets pass by every rule about ports", raw),
        Rule("socket", 41, 198, ESOCKTNOSUPPORT, "a type can stand for a protocol", odd),
        Rule("socket", 41, 198, EPROTONOSUPPORT, "rules about TCP do not bind MPTCP, SCTP or SMC", beside),
        Rule("socket", 41, 198, EPROTONOSUPPORT, "programs list interfaces by it, and no more", netlink),
        Rule("socketpair", 53, 199, EAFNOSUPPORT, "families that nobody walls in", (_is_not(0, _UNIX),)),
    )
    if unix:
        return table
    return (*table, Rule("socketpair", 53, 199, ESOCKTNOSUPPORT, "as good as a Unix socket", unconnected))


def rules(*, namespaced: bool, inet: bool, unix: bool) -> tuple[Rule, ...]:
    """The rules for a worker; of several that match, the first one's error is given.

    namespaced: it has namespaces of its own for processes and for IPC. inet: it may make internet sockets. unix: it may make Unix sockets;
    pairs of connected ones it may always make, because event loops and `multiprocessing` need them.
    """
    return (*_ALWAYS, *(() if namespaced else _SHARED), *_sockets(inet, unix))
