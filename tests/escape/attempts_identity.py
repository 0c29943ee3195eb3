"""Attempts to be somebody else, or to be allowed more: uids, capabilities, limits."""

from __future__ import annotations

import os

from tests.escape.here import as_here, with_capability
from tests.escape.table import Attempt, at, is_open, refused
from tests.escape.targets import key_shown

DENIED = refused("EACCES")
FILTERED = refused("EPERM")
PLAIN = is_open("a worker has the gateway's uid, and what it may do")
CAP_FSETID, CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_NICE, CAP_SYS_RESOURCE = 4, 7, 18, 23, 24

ATTEMPTS = (
    Attempt(
        "gateways-identity",
        "to be the gateway's user as far as the machine is concerned",
        "credentials(7); user_namespaces(7)",
        """
try:
    apart = os.readlink("/proc/self/ns/user") != facts["gateway_user_namespace"]
except PermissionError:  # no /proc at all
    apart = False
if os.getuid() != facts["gateway_uid"]:
    refused("another uid")
refused("a user namespace") if apart else escaped(os.getuid())
""",
        at(
            refused("another uid") if os.geteuid() == 0 else refused("a user namespace"),
            is_open("a worker keeps the gateway's uid, for another one could not reach the interpreter"),
            PLAIN,
        ),
    ),
    Attempt(
        "setuid-program",
        "the rights of a program's owner; even unwalled workers cannot gain any, for their guard gave that up (or have all)",
        "CVE-2021-4034 (pkexec); prctl(2), PR_SET_NO_NEW_PRIVS",
        """
import subprocess
ours = os.geteuid()
found = int(subprocess.run([facts["granted"] + "/id", "-u"], capture_output=True, text=True, check=True).stdout)
escaped(found) if found != ours else refused("nothing gained")
""",
        at(*[refused("nothing gained")] * 3),
    ),
    Attempt(
        "setuid-program-made",
        "a program of its own that gives its uid to whoever runs it, made so from the beginning: no chmod(2) is seen",
        "open(2), mode; inode(7): writing takes these bits away, but for CAP_FSETID",
        """
path = facts["state"] + "/door"
descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o6755)
try:
    os.write(descriptor, b"#!/bin/sh")
    kept = os.fstat(descriptor).st_mode & 0o6000
finally:
    os.close(descriptor)
    os.unlink(path)
escaped(oct(kept)) if kept else refused("taken away")
""",
        at(
            refused("EPERM"),
            refused("EPERM"),
            with_capability(CAP_FSETID, "the gateway's own capabilities", "taken away"),
        ),
    ),
    Attempt(
        "gateway-keys",
        "which keys the gateway's user has, by their descriptions",
        "keyrings(7): keys are in no namespace but that of their user; /proc/keys in proc(5)",
        """
with open("/proc/keys") as keys:
    found = [line for line in keys if facts["key"] in line]
escaped(found) if found else refused("ENOENT")
""",
        at(DENIED, DENIED, as_here(key_shown, "a worker has the gateway's uid, and its keys with it")),
    ),
    Attempt(
        "other-uid",
        "another uid, by asking for it",
        "setresuid(2)",
        "os.setresuid(12345, 12345, 12345); escaped(os.getuid())",
        at(
            refused("EPERM", "EINVAL"),
            FILTERED,
            with_capability(CAP_SETUID, "the gateway's own capabilities"),
        ),
    ),
    Attempt(
        "capability-regain",
        "a capability back, once given up",
        "capset(2); CVE-2022-0492 and most others begin with one",
        """
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
wanted = (ctypes.c_uint32 * 6)()
wanted[0] = wanted[1] = 1 << 18  # CAP_SYS_CHROOT
call("capset", ctypes.byref(header), ctypes.byref(wanted))
escaped("CAP_SYS_CHROOT")
""",
        at(FILTERED, FILTERED, with_capability(CAP_SYS_CHROOT, "the gateway's own capabilities")),
    ),
    Attempt(
        "raised-limit",
        "more than the hard limit of open files",
        "setrlimit(2)",
        """
found = (ctypes.c_ulong * 2)()
call("prlimit64", 0, 7, None, ctypes.byref(found))
found[0] = found[1] = found[1] + 1
call("prlimit64", 0, 7, ctypes.byref(found), None)
escaped(list(found))
""",
        at(FILTERED, FILTERED, with_capability(CAP_SYS_RESOURCE, "the gateway's own capabilities")),
    ),
    Attempt(
        "better-priority",
        "more of the processor than others, by a lower nice value",
        "setpriority(2)",
        "os.setpriority(os.PRIO_PROCESS, 0, -5); escaped('set')",
        at(DENIED, DENIED, with_capability(CAP_SYS_NICE, "the gateway's own capabilities", "EACCES")),
    ),
)
