"""Attempts on parts of the kernel that handlers do without. Namespaces and mounts are in `attempts_namespaces.py`, what
belongs to the machine in `attempts_machine.py`.
"""

from __future__ import annotations

from tests.escape.here import outside
from tests.escape.table import Attempt, Expected, at, refused

FILTERED = refused("EPERM")
ABSENT = refused("ENOSYS")


def _outside(name: str, tries: str, taught_by: str, program: str, error: Expected = FILTERED) -> Attempt:
    """An attempt that the filter stops at both walls with the same error."""
    return Attempt(name, tries, taught_by, program, at(error, error, outside(program)))


ATTEMPTS = (
    _outside(
        "io-uring",
        "calls that no filter sees",
        "CVE-2022-29582 (Linux: io_uring, use after free)",
        "escaped(call('io_uring_setup', 1, ctypes.create_string_buffer(120)))",
        ABSENT,
    ),
    _outside(
        "keyring",
        "keys, which are in no namespace",
        "CVE-2016-0728 (Linux: keyrings)",
        "escaped(call('keyctl', 0, -4, 0))",
    ),
    _outside(
        "added-key",
        "a key in the kernel's memory",
        "add_key(2)",
        "escaped(call('add_key', b'user', b'moltbot-escape', b'x', 1, -2))",
    ),
    _outside(
        "bpf",
        "a program or a map in the kernel",
        "CVE-2021-3490 (Linux: eBPF verifier)",
        """
attributes = (ctypes.c_uint32 * 18)(2, 4, 4, 1)
escaped(call("bpf", 0, ctypes.byref(attributes), 72))
""",
    ),
    _outside(
        "perf-events",
        "what other processes and the kernel do",
        "CVE-2013-2094 (Linux: perf_event_open)",
        """
attributes = (ctypes.c_uint32 * 32)(1, 128)  # a software clock, of this process, without the kernel
attributes[10] = 0b1100001
escaped(call("perf_event_open", ctypes.byref(attributes), 0, -1, -1, 0))
""",
    ),
    _outside(
        "userfaultfd",
        "to stop the kernel in the middle of a copy",
        "userfaultfd(2); a helper of many exploits, as of CVE-2022-2588 (Linux)",
        "escaped(call('userfaultfd', 1))",
    ),
    _outside(
        "fanotify",
        "every file that is opened on a whole mount; with flags that do not exist",
        "fanotify_init(2)",
        """
with kernel_answers("EINVAL"):
    call("fanotify_init", 0x40000000, 0)
""",
    ),
    _outside(
        "memory-without-a-file",
        "memory that counts for nobody while nobody maps it, and programs in it",
        "memfd_create(2); CVE-2019-5736 (runc) was answered with it",
        "escaped(call('memfd_create', b'x', 0))",
        ABSENT,
    ),
    _outside(
        "personality",
        "memory at addresses that one can guess",
        "CVE-2009-1895 (Linux: personality of setuid programs)",
        "escaped(call('personality', 0x40000))",
    ),
    _outside(
        "terminal-input",
        "keys typed into the operator's terminal",
        "CVE-2017-5226 (bubblewrap: TIOCSTI)",
        """
with kernel_answers("ENOTTY", "EIO"):
    call("ioctl", 0, 0x5412, ctypes.byref(ctypes.c_char(b"x")))
""",
    ),
    _outside(
        "terminal-input-with-high-bits",
        "the same with bits above those that the kernel looks at, which a filter may compare",
        "CVE-2019-10063 (Flatpak: TIOCSTI with high bits)",
        """
with kernel_answers("ENOTTY", "EIO"):
    call("ioctl", 0, 0x1_0000_0000 | 0x5412, ctypes.byref(ctypes.c_char(b"x")))
""",
    ),
    _outside(
        "console-input",
        "text pasted into a virtual console",
        "CVE-2023-28100 (Flatpak: TIOCLINUX)",
        """
with kernel_answers("ENOTTY"):
    call("ioctl", 0, 0x541C, ctypes.create_string_buffer(b"\\x03"))
""",
    ),
    _outside(
        "x32-calls",
        "the second door to the kernel on x86-64, with other numbers for the same calls",
        "CVE-2014-0038 (Linux: recvmmsg of x32)",
        """
if platform.machine() != "x86_64":
    refused("ENOSYS")
escaped(checked(libc.syscall(ctypes.c_long(0x40000000 + 39))))
""",
        ABSENT,
    ),
    _outside(
        "32-bit-calls",
        "the door of 32-bit programs, with other numbers again",
        "CVE-2010-3301 (Linux: ia32 calls on x86-64)",
        """
import mmap
if platform.machine() != "x86_64":
    refused("ENOSYS")
# getpid of 32-bit programs: push rbx; mov eax, 20; int 0x80; pop rbx; ret
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53b814000000cd805bc3"))
child = os.fork()
if child == 0:
    found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    os._exit(0 if found == os.getpid() else 1 if found == -errno.ENOSYS else 2)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if status == 1 or status == -11:
    refused("ENOSYS")
assert status == 0, status
escaped("answered")
""",
        ABSENT,
    ),
)
