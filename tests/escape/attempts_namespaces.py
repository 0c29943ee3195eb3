"""Attempts on what a process sees: namespaces, mounts, the root.

Where a call that succeeds would do harm, its arguments are nonsense: `kernel_answers` names the error by which the kernel
says so, after it has found that the caller may make the call.
"""

from __future__ import annotations

from tests.escape.here import outside, with_capability
from tests.escape.table import Attempt, Expected, at, refused

FILTERED = refused("EPERM")
ABSENT = refused("ENOSYS")
UNSEEN = refused("ENOENT")
DENIED = refused("EACCES")
AS_ROOT = "the gateway's own capabilities"
CAP_DAC_READ_SEARCH, CAP_SYS_CHROOT, CAP_SYS_ADMIN = 2, 18, 21

_CHILD = """
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
escaped("a process in a user namespace of its own")
"""


def _outside(name: str, tries: str, taught_by: str, program: str, error: Expected = FILTERED) -> Attempt:
    """An attempt that the filter stops at both walls with the same error."""
    return Attempt(name, tries, taught_by, program, at(error, error, outside(program)))


def _by_capability(name: str, tries: str, taught_by: str, program: str, number: int) -> Attempt:
    return Attempt(name, tries, taught_by, program, at(FILTERED, FILTERED, with_capability(number, AS_ROOT)))


NAMESPACES = (
    _outside(
        "user-namespace-by-unshare",
        "every capability, in a user namespace of one's own",
        "CVE-2022-0185 and CVE-2021-22555 (Linux: both begin in a user namespace)",
        "call('unshare', 0x10000000); escaped('a user namespace')",
    ),
    _outside(
        "mount-namespace-by-unshare",
        "mounts of one's own",
        "mount_namespaces(7)",
        "call('unshare', 0x10000000 | 0x20000); escaped('a mount namespace')",
    ),
    _outside(
        "user-namespace-by-clone",
        "the same as a flag of a new process",
        "clone(2), CLONE_NEWUSER",
        f"child = call('clone', 0x10000000 | 17, 0, 0, 0, 0)\n{_CHILD}",
    ),
    _outside(
        "user-namespace-by-clone3",
        "the same behind a pointer, where no filter sees it",
        "clone(2), clone3; the reason why Flatpak and Docker answer ENOSYS to all of clone3",
        f"""
arguments = (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, 17)
child = call("clone3", ctypes.byref(arguments), 64)
{_CHILD}""",
        ABSENT,
    ),
    Attempt(
        "gateways-namespaces",
        "the gateway's own namespaces, by their files",
        "setns(2); CVE-2016-9962 (runc)",
        """
descriptor = os.open(f"/proc/{facts['gateway']}/ns/uts", os.O_RDONLY)
call("setns", descriptor, 0)
escaped("in")
""",
        at(UNSEEN, DENIED, with_capability(CAP_SYS_ADMIN, AS_ROOT)),
    ),
    Attempt(
        "namespaces-by-descriptor",
        "the same, by a descriptor of the process",
        "setns(2), with a descriptor of pidfd_open(2)",
        "call('setns', call('pidfd_open', os.getppid(), 0), 0x04000000); escaped('in')",
        at(FILTERED, FILTERED, with_capability(CAP_SYS_ADMIN, AS_ROOT)),
    ),
    _outside(
        "cgroup-release-agent",
        "a cgroup of one's own, whose release agent the kernel would run outside as root",
        "CVE-2022-0492 (Linux: cgroup release_agent)",
        "call('unshare', 0x10000000 | 0x20000 | 0x02000000); escaped('namespaces to mount cgroups in')",
    ),
)

MOUNTS = (
    _by_capability(
        "mount",
        "a mount over what the wall shows; of a kind that does not exist",
        "mount(2)",
        """
with kernel_answers("ENODEV"):
    call("mount", b"none", facts["temp"].encode(), b"no-such-kind", 0, None)
""",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "remount",
        "a read-only mount made writable; of a folder where nothing is mounted",
        "CVE-2014-5207 (Linux: remounts that clear flags)",
        """
with kernel_answers("EINVAL"):
    call("mount", None, facts["temp"].encode(), None, 0x1020, None)
""",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "umount",
        "what a mount covers; where nothing is mounted",
        "umount(2)",
        """
with kernel_answers("EINVAL"):
    call("umount2", facts["temp"].encode(), 2)
""",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "pivot-root",
        "another root; to a folder that cannot be one",
        "pivot_root(2)",
        """
with kernel_answers("EINVAL", "EBUSY"):
    call("pivot_root", facts["temp"].encode(), facts["temp"].encode())
""",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "chroot",
        "another root for this process, out of which .. leads",
        "chroot(2)",
        "call('chroot', facts['temp'].encode()); escaped('another root')",
        CAP_SYS_CHROOT,
    ),
    _by_capability(
        "file-system-context",
        "a new file system by the newer calls",
        "CVE-2022-0185 (Linux: fsconfig)",
        "escaped(call('fsopen', b'tmpfs', 0))",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "copied-tree",
        "a copy of the tree of mounts, in which what is covered could be uncovered",
        "open_tree(2), OPEN_TREE_CLONE",
        "escaped(call('open_tree', -100, b'/', 1))",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "moved-mount",
        "a mount at another place; of descriptors that are none",
        "move_mount(2)",
        """
with kernel_answers("EBADF", "EINVAL", "ENOENT"):
    call("move_mount", -1, b"", -1, b"", 0x44)
""",
        CAP_SYS_ADMIN,
    ),
    _by_capability(
        "mount-attributes",
        "read-only mounts made writable; where nothing is mounted",
        "mount_setattr(2)",
        """
attributes = (ctypes.c_uint64 * 4)(1)
with kernel_answers("EINVAL"):
    call("mount_setattr", -100, facts["temp"].encode(), 0, ctypes.byref(attributes), 32)
""",
        CAP_SYS_ADMIN,
    ),
    Attempt(
        "open-by-handle",
        "a host file by the kernel's own number for it, past every folder above",
        'the "shocker" exploit of Docker (2014); CVE-2014-3519 (OpenVZ), open_by_handle_at',
        """
handle = ctypes.create_string_buffer(bytes.fromhex(facts["secret_handle"]))
mount = os.open(facts["state"], os.O_DIRECTORY)
with kernel_answers("ESTALE", "EINVAL", "EOPNOTSUPP"):
    escaped(os.read(call("open_by_handle_at", mount, handle, os.O_RDONLY), 100))
""",
        at(FILTERED, FILTERED, with_capability(CAP_DAC_READ_SEARCH, AS_ROOT)),
    ),
)

ATTEMPTS = (*NAMESPACES, *MOUNTS)
