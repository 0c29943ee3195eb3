"""Attempts on other processes: the gateway's, another worker's, the guard's. What they share is in `attempts_ipc.py`."""

from __future__ import annotations

from tests.escape.here import as_here, from_abi, opened, outside, traced
from tests.escape.table import Attempt, Expected, at, is_open, refused

UNSEEN = refused("ENOENT")
NOBODY = refused("ESRCH")
DENIED = refused("EACCES")
FILTERED = refused("EPERM")
PLAIN = is_open("the gateway's processes have the same uid, and nothing else guards them")

# What /proc tells of a process: the program that asks, by the name of the attempt; {pid} is whom it asks about.
_ASKED = {
    "root": ("its root", "escaped(os.listdir(f'/proc/{pid}/root/'))"),
    "working-directory": ("its working directory", "escaped(os.listdir(f'/proc/{pid}/cwd/'))"),
    "environment": ("its environment", "escaped(len(open(f'/proc/{pid}/environ', 'rb').read()))"),
    "descriptors": ("what it has open", "escaped(os.listdir(f'/proc/{pid}/fd'))"),
    "maps": ("its map of memory", "escaped(open(f'/proc/{pid}/maps').readline())"),
}

# CAP_SETGID, CAP_SETUID and CAP_SETPCAP are what the change to the worker's own uid needs.
_FIRST = """
lines = dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines())
held = int(lines["CapEff"], 16) | int(lines["CapPrm"], 16)
refused("no more than the change of uid needs") if not held & ~0b1_1100_0000 else escaped(hex(held))
"""

# Containers may refuse it even for oneself.
_TAKEN = outside("escaped(call('pidfd_getfd', call('pidfd_open', os.getpid(), 0), 0, 0))")


def _about(whom: str, fact: str) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            f"{whom}-{name}",
            f"of the {whom}: {what}",
            "proc(5); CVE-2016-9962 (runc: descriptors of a process that enters)",
            f"pid = facts[{fact!r}]\n{program}",
            at(UNSEEN, DENIED, PLAIN),
        )
        for name, (what, program) in _ASKED.items()
    )


def _signal(
    name: str, whom: str, program: str, bubblewrap: Expected, directories: Expected = PLAIN
) -> Attempt:
    return Attempt(
        name,
        f"whether {whom} can be signalled; signal 0 does no harm and needs the same permission",
        "kill(2); landlock(7): signals are a scope since ABI 6",
        program,
        at(bubblewrap, from_abi(6, "EPERM"), directories),
    )


PROC = (
    *_about("gateway", "gateway"),
    *_about("other-worker", "other_pid"),
    Attempt(
        "gateway-memory-file",
        "the gateway's memory, as a file",
        "proc(5); CVE-2012-0056 (Linux: /proc/pid/mem)",
        """
with open(f"/proc/{facts['gateway']}/mem", "rb", buffering=0) as memory:
    memory.seek(facts["address"])
    escaped(memory.read(len(facts["marker"])))
""",
        at(UNSEEN, DENIED, traced("the same uid")),
    ),
    Attempt(
        "gateway-arguments",
        "the gateway's command line, which every user of a machine may read",
        "proc(5), /proc/pid/cmdline",
        "escaped(open(f\"/proc/{facts['gateway']}/cmdline\").read())",
        at(UNSEEN, DENIED, PLAIN),
    ),
    Attempt(
        "first-process-environment",
        "the environment of process 1: bubblewrap's own would hold what bubblewrap was started with",
        "proc(5); a program that clears its environment keeps it in /proc/1/environ",
        "escaped(len(open('/proc/1/environ', 'rb').read()))",
        at(DENIED, DENIED, as_here(opened("/proc/1/environ"), "the gateway's user may read it")),
    ),
    Attempt(
        "first-process-capabilities",
        "whether process 1, which came before the wall's last stones, has more privileges than it needs",
        "capabilities(7)",
        _FIRST,
        at(refused("no more than the change of uid needs"), DENIED, outside(_FIRST)),
    ),
    Attempt(
        "gateway-variable",
        "a variable of the gateway's environment, in our own: every level gives a worker an environment of its own",
        "environ(7)",
        """
found = [name for name, value in facts["environment"].items() if name == facts["variable"] or facts["marker"] in value]
escaped(found) if found else refused("not in our environment")
""",
        at(*[refused("not in our environment")] * 3),
    ),
    Attempt(
        "inherited-descriptors",
        "a folder or a file that the gateway left open in the worker: no level lets one through",
        "CVE-2024-21626 (runc: a folder of the host among the descriptors)",
        """
found = []
for descriptor in range(4096):
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_mode & 0o170000 in (0o040000, 0o100000, 0o060000):
            found.append(descriptor)
escaped(found) if found else refused("pipes, sockets and /dev/null only")
""",
        at(*[refused("pipes, sockets and /dev/null only")] * 3),
        by="worker",
    ),
    Attempt(
        "gateway-oom-score",
        "who is killed first when memory is short",
        "proc(5), /proc/pid/oom_score_adj",
        "open(f\"/proc/{facts['gateway']}/oom_score_adj\", 'r+').close(); escaped('open for writing')",
        at(UNSEEN, DENIED, PLAIN),
    ),
)

SIGNALS = (
    _signal("signal-gateway", "the gateway", "os.kill(facts['gateway'], 0); escaped('yes')", NOBODY),
    _signal(
        "signal-other-worker", "another worker", "os.kill(facts['other_pid'], 0); escaped('yes')", NOBODY
    ),
    _signal(
        "signal-own-guard",
        "who guards this worker: its guard process, or bubblewrap as the namespace's first process",
        """
os.kill(facts["guard"], 0)
if facts["gateway_pid_namespace"] != os.readlink("/proc/self/ns/pid"):
    refused("the kernel lets no signal from inside end the first process")
escaped("yes")
""",
        refused("EPERM", "the kernel lets no signal from inside end the first process"),
    ),
    _signal(
        "signal-thread",
        "a thread of the gateway",
        "call('tgkill', facts['gateway'], facts['gateway'], 0); escaped('yes')",
        NOBODY,
    ),
    _signal(
        "signal-by-descriptor",
        "the gateway by a descriptor for it",
        "call('pidfd_send_signal', call('pidfd_open', facts['gateway'], 0), 0, None, 0); escaped('yes')",
        NOBODY,
    ),
)

TRACED = (
    Attempt(
        "trace-other-worker",
        "control of another worker's process",
        "ptrace(2), PTRACE_SEIZE; it ends with us, and stops nobody",
        "call('ptrace', 0x4206, facts['other_pid'], 0, 0); escaped('traced')",
        at(FILTERED, FILTERED, traced("the same uid")),
    ),
    Attempt(
        "read-gateway-memory",
        "the gateway's memory",
        "process_vm_readv(2)",
        """
size = len(facts["marker"])
mine = ctypes.create_string_buffer(size)
local, remote = (ctypes.c_size_t * 2)(ctypes.addressof(mine), size), (ctypes.c_size_t * 2)(facts["address"], size)
call("process_vm_readv", facts["gateway"], ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
escaped(mine.raw)
""",
        at(FILTERED, FILTERED, traced("the same uid")),
    ),
    Attempt(
        "write-gateway-memory",
        "the gateway's memory, to change it; what is written is what is there",
        "process_vm_writev(2)",
        """
size = len(facts["marker"])
mine = ctypes.create_string_buffer(facts["marker"].encode(), size)
local, remote = (ctypes.c_size_t * 2)(ctypes.addressof(mine), size), (ctypes.c_size_t * 2)(facts["address"], size)
escaped(call("process_vm_writev", facts["gateway"], ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
""",
        at(FILTERED, FILTERED, traced("the same uid")),
    ),
    Attempt(
        "take-gateway-descriptor",
        "a descriptor out of the gateway",
        "pidfd_getfd(2)",
        "escaped(call('pidfd_getfd', call('pidfd_open', facts['gateway'], 0), facts['gateway_fd'], 0))",
        at(NOBODY, FILTERED, traced("the same uid") if _TAKEN.outcome == "open" else _TAKEN),
    ),
    Attempt(
        "compare-with-gateway",
        "which kernel objects the gateway shares with whom",
        "kcmp(2)",
        "call('kcmp', facts['gateway'], facts['gateway'], 0, 0, 1); escaped('told')",
        at(
            FILTERED,
            FILTERED,
            outside("call('kcmp', os.getpid(), os.getpid(), 0, 0, 1); escaped('told')"),
        ),
    ),
    Attempt(
        "gateway-pages",
        "where the gateway's memory lies; with more arguments, to move it",
        "move_pages(2); CVE-2017-14140 (Linux: layout of another process's memory)",
        """
page = facts["address"] & ~4095
pages, status = (ctypes.c_void_p * 1)(page), (ctypes.c_int * 1)()
call("move_pages", facts["gateway"], 1, ctypes.byref(pages), None, ctypes.byref(status), 0)
escaped(status[0])
""",
        at(
            FILTERED,
            FILTERED,
            outside("call('move_pages', 0, 0, None, None, None, 0); escaped('asked')"),
        ),
    ),
    Attempt(
        "gateway-limits",
        "the gateway's limits: with a lower one it opens nothing more, or is killed (they are set to what they are)",
        "prlimit(2): the same uid is permission enough, and Landlock has no hook for it",
        """
found = (ctypes.c_ulong * 2)()
call("prlimit64", facts["gateway"], 7, None, ctypes.byref(found))
call("prlimit64", facts["gateway"], 7, ctypes.byref(found), None)
escaped(list(found))
""",
        at(NOBODY, FILTERED, PLAIN),
    ),
    Attempt(
        "gateway-priority",
        "the gateway's share of the processor (here it is set to what it is)",
        "setpriority(2): the same uid is permission enough",
        """
os.setpriority(os.PRIO_PROCESS, facts["gateway"], os.getpriority(os.PRIO_PROCESS, facts["gateway"]))
escaped("set")
""",
        at(NOBODY, FILTERED, PLAIN),
    ),
    Attempt(
        "gateway-processors",
        "which processors the gateway may use (here it is set to what it is)",
        "sched_setaffinity(2): the same uid is permission enough",
        "os.sched_setaffinity(facts['gateway'], os.sched_getaffinity(facts['gateway'])); escaped('set')",
        at(NOBODY, FILTERED, PLAIN),
    ),
    Attempt(
        "gateway-scheduling",
        "the gateway's turn, after everybody else's (here its policy is set to what it is)",
        "sched_setscheduler(2): SCHED_IDLE; the same uid is permission enough",
        """
gateway = facts["gateway"]
os.sched_setscheduler(gateway, os.sched_getscheduler(gateway), os.sched_getparam(gateway))
escaped("set")
""",
        at(NOBODY, FILTERED, PLAIN),
    ),
)

ATTEMPTS = (*PROC, *SIGNALS, *TRACED)
