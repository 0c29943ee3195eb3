"""Attempts on what belongs to the machine: clock, name, power, modules, devices, /proc/sys, /sys, cgroups.

Nothing here changes anything: files are opened for writing and not written, and calls get nonsense.
"""

from __future__ import annotations

import os

from tests.escape.here import as_here, opened, outside, with_capability
from tests.escape.table import Attempt, Expected, at, is_open, refused

FILTERED = refused("EPERM")
UNSEEN = refused("ENOENT")
DENIED = refused("EACCES")
SEALED = refused("EROFS", "EACCES")
AS_ROOT = "the gateway's own capabilities"
MACHINE = "what the gateway's user can open, an unwalled worker can"


def _first(*paths: str) -> str:
    """Machines differ in what they have; the first of these that is there, or the first of all."""
    return next(filter(os.path.exists, paths), paths[0])


SYS_FILE = _first(
    "/sys/kernel/rcu_expedited", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state"
)
PROCS = _first(*(f"/sys/fs/cgroup/{part}cgroup.procs" for part in ("", "unified/", "memory/", "systemd/")))


def _call(name: str, tries: str, taught_by: str, program: str) -> Attempt:
    return Attempt(name, tries, taught_by, program, at(FILTERED, FILTERED, outside(program)))


def _file(
    name: str, tries: str, taught_by: str, path: str, flags: int = os.O_WRONLY, bubblewrap: Expected = UNSEEN
) -> Attempt:
    return Attempt(
        name,
        tries,
        taught_by,
        f"os.close(os.open({path!r}, {flags | os.O_NONBLOCK})); escaped('open')",
        at(bubblewrap, DENIED if os.path.exists(path) else UNSEEN, as_here(opened(path, flags), MACHINE)),
    )


CALLS = (
    _call(
        "clock",
        "everybody's clock; to a time that does not exist",
        "clock_settime(2)",
        """
with kernel_answers("EINVAL"):
    call("clock_settime", 0, ctypes.byref((ctypes.c_long * 2)(0, -1)))
""",
    ),
    _call(
        "clock-speed",
        "how fast everybody's clock goes; asked for, not changed",
        "adjtimex(2)",
        "escaped(call('adjtimex', ctypes.create_string_buffer(256)))",
    ),
    Attempt(
        "host-name",
        "the machine's name; to what it is",
        "sethostname(2)",
        "call('sethostname', facts['hostname'].encode(), len(facts['hostname'])); escaped('set')",
        at(FILTERED, FILTERED, with_capability(21, AS_ROOT)),
    ),
    Attempt(
        "host-name-read",
        "what the machine is called",
        "uts_namespaces(7)",
        """
name = os.uname().nodename
escaped(name) if name == facts["hostname"] else refused("another name")
""",
        at(refused("another name"), is_open("names are not hidden"), is_open("names are not hidden")),
    ),
    _call(
        "reboot",
        "the end of the machine; with numbers that are no command",
        "reboot(2)",
        """
with kernel_answers("EINVAL"):
    call("reboot", 1, 2, 3, 0)
""",
    ),
    _call(
        "another-kernel",
        "another kernel in place of this one; with flags that do not exist",
        "kexec_load(2)",
        """
with kernel_answers("EINVAL"):
    call("kexec_load", 0, 0, None, 0xFFF0)
""",
    ),
    _call(
        "kernel-module",
        "code in the kernel; none",
        "init_module(2)",
        """
with kernel_answers("EFAULT", "ENOEXEC", "EINVAL"):
    call("init_module", None, 0, b"")
""",
    ),
    _call(
        "swap",
        "the machine's memory; to a file that does not exist",
        "swapon(2)",
        """
with kernel_answers("ENOENT", "EINVAL"):
    call("swapon", b"/no/such/file", 0)
""",
    ),
    _call(
        "quotas",
        "quotas of others; a command that only writes out what is pending",
        "quotactl(2)",
        "escaped(call('quotactl', 0x80000100, None, 0, None))",
    ),
    _call(
        "accounting",
        "the machine's accounting, to a file that does not exist",
        "acct(2)",
        """
with kernel_answers("ENOENT"):
    call("acct", b"/no/such/file")
""",
    ),
    _call(
        "kernel-log",
        "the kernel's log: addresses, and what others do",
        "syslog(2)",
        "escaped(call('syslog', 10, None, 0))",
    ),
)

FILES = (
    Attempt(
        "device-node",
        "a disk, as a file of our own",
        "mknod(2)",
        """
path = facts["state"] + "/disk"
os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 7))
os.unlink(path)
escaped("made")
""".replace("stat.S_IFBLK", "0o60000"),
        at(refused("EACCES", "EPERM"), refused("EACCES", "EPERM"), with_capability(27, AS_ROOT)),
    ),
    _file("physical-memory", "the machine's memory", "mem(4)", "/dev/mem", os.O_RDONLY),
    _file(
        "kernel-log-device", "the kernel's log, to read or to forge it", "dmesg(1), /dev/kmsg", "/dev/kmsg"
    ),
    _file("disk-device", "the disk below all file systems", "loop(4)", "/dev/loop0", os.O_RDONLY),
    _file("sys-write", "settings of the kernel under /sys", "sysfs(5)", SYS_FILE),
    _file("cgroup-procs", "a way out of our cgroup's limits", "cgroups(7)", PROCS),
    _file(
        "cgroup-release-agent-file",
        "the program that the kernel runs as root when a cgroup is empty",
        "CVE-2022-0492 (Linux: cgroup release_agent)",
        "/sys/fs/cgroup/memory/release_agent",
    ),
    _file(
        "core-pattern",
        "the program that the kernel runs as root when one crashes",
        "core(5), /proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/core_pattern",
        bubblewrap=SEALED,
    ),
    _file(
        "memory-setting",
        "how the machine promises memory",
        "proc_sys_vm(5), overcommit_memory",
        "/proc/sys/vm/overcommit_memory",
        bubblewrap=SEALED,
    ),
    _file(
        "system-request",
        "the kernel's emergency keys",
        "proc(5), /proc/sysrq-trigger",
        "/proc/sysrq-trigger",
        bubblewrap=refused("EROFS", "EACCES", "ENOENT"),
    ),
)

ATTEMPTS = (*CALLS, *FILES)
