"""The table of refused system calls: its numbers, and what becomes of a call with its arguments, per machine.

The program is run here by an interpreter of a few lines; that the kernel agrees is in `test_seccomp.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from moltbot.sandbox.isolation.seccomp import SUPPORTED, UnsupportedMachine, assemble
from moltbot.sandbox.isolation.seccomp_rules import Check, Rule, rules

# Linux's numbers, on whatever system this runs.
EPERM, ENOSYS, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT = 1, 38, 93, 94, 95, 97
LAST_KNOWN = 469  # file_setattr, the newest call of Linux 6.18 on both machines
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
STRICTEST = rules(namespaced=False, inet=False, unix=False)
LOOSEST = rules(namespaced=True, inet=True, unix=True)
ONLINE = rules(namespaced=False, inet=True, unix=False)
# name:x86-64:aarch64, as the headers of the kernel have them.
REFUSED = """
    mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 move_mount:429:429 open_tree:428:428
    open_tree_attr:467:467 fsopen:430:430 fsconfig:431:431 fsmount:432:432 fspick:433:433
    mount_setattr:442:442 setns:308:268 clone3:435:435 unshare:272:97 clone:56:220 ptrace:101:117
    process_vm_readv:310:270 process_vm_writev:311:271 process_madvise:440:440 kcmp:312:272
    pidfd_getfd:438:438 keyctl:250:219 add_key:248:217 request_key:249:218 bpf:321:280
    perf_event_open:298:241 userfaultfd:323:282 io_uring_setup:425:425 io_uring_enter:426:426
    io_uring_register:427:427 open_by_handle_at:304:265 name_to_handle_at:303:264 memfd_create:319:279
    memfd_secret:447:447 shmget:29:194 init_module:175:105 finit_module:313:273 delete_module:176:106
    kexec_load:246:104 kexec_file_load:320:294 reboot:169:142 swapon:167:224 swapoff:168:225 acct:163:89
    quotactl:179:60 quotactl_fd:443:443 nfsservctl:180:42 syslog:103:116 uselib:134:- iopl:172:-
    ioperm:173:- modify_ldt:154:- _sysctl:156:- sysfs:139:- ustat:136:- lookup_dcookie:212:18 vhangup:153:58
    fanotify_init:300:262 settimeofday:164:170 clock_settime:227:112 adjtimex:159:171 clock_adjtime:305:266
    sethostname:170:161 setdomainname:171:162 mbind:237:235 set_mempolicy:238:237
    set_mempolicy_home_node:450:450 migrate_pages:256:238 move_pages:279:239 get_mempolicy:239:236
    personality:135:92 ioctl:16:29 socket:41:198 socketpair:53:199 semget:64:190 msgget:68:186
    mq_open:240:180 mq_unlink:241:181 semop:65:193 semctl:66:191 semtimedop:220:192 shmat:30:196 shmctl:31:195
    msgsnd:69:189 msgrcv:70:188 msgctl:71:187 prlimit64:302:261 chmod:90:- fchmod:91:52 fchmodat:268:53
    fchmodat2:452:452 sendto:44:206 sendmsg:46:211 sendmmsg:307:269 sched_setaffinity:203:122
    sched_setscheduler:144:119 sched_setparam:142:118 sched_setattr:314:274 setpriority:141:140 ioprio_set:251:30
    open:2:- openat:257:56 openat2:437:437 creat:85:- mknod:133:- mknodat:259:33 setsockopt:54:208
    setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 setxattrat:463:463
"""
NEVER_REFUSED = """
    connect:42:203 bind:49:200 listen:50:201 accept:43:202 accept4:288:242
    pidfd_open:434:434 pidfd_send_signal:424:424 landlock_create_ruleset:444:444 landlock_add_rule:445:445
    landlock_restrict_self:446:446 seccomp:317:277 prctl:157:167 setresuid:117:147 setresgid:119:149
    setgroups:116:159 shmdt:67:197 inotify_init1:294:26 inotify_add_watch:254:27 execve:59:221
    kill:62:129 mmap:9:222 mq_timedsend:242:182 mq_timedreceive:243:183 mq_notify:244:184
"""
LATER = {
    "openat2",
    "clone3",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "memfd_create",
    "memfd_secret",
}
ANY = ((0,) * 6, (1,) * 6, ((1 << 64) - 1,) * 6)
HIGH = 0xDEADBEEF << 32


def numbers(table: str, machine: str) -> dict[str, int]:
    """The calls of `table` that `machine` has."""
    rows = (entry.split(":") for entry in table.split())
    both = ((name, (x86_64, aarch64)[SUPPORTED.index(machine)]) for name, x86_64, aarch64 in rows)
    return {name: int(number) for name, number in both if number != "-"}


def judge(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel does with a call: 0 lets it through, else it is the error."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0x7FFF_FFFF_F000, *padded)
    lines: list[tuple[int, int, int, int]] = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = 0
    while True:
        code, if_true, if_false, constant = lines[at]
        at += 1
        if code == 0x20:
            assert constant % 4 == 0
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x15:
            at += if_true if accumulator == constant else if_false
        elif code == 0x25:
            at += if_true if accumulator > constant else if_false
        else:
            assert code == 0x06, f"no such operation: {code:#x}"
            assert constant == 0x7FFF0000 or constant >> 16 == 0x0005, f"no such verdict: {constant:#x}"
            return constant & 0xFFFF


def cases() -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Calls that are judged by their arguments, and the error of each."""
    new = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
    # CLONE_SIGHAND alone (0x800) is an error, so that a hole in the filter would make no child.
    yield from (("clone", (high | flag | 0x811,), EPERM) for flag in new for high in (0, HIGH))
    # fork, vfork, a thread, and the bit that means the end signal here.
    yield from (("clone", (flags,), 0) for flags in (0x01200011, 0x4111, 0x003D0F00, 0x80, HIGH | 17))
    yield from (("unshare", (flag,), EPERM) for flag in [*new, 0x80, 0x00100000, 1 << 32, 1 << 63])
    yield from (("unshare", (flag,), 0) for flag in (0, 0x100, 0x200, 0x400, 0x800, 0x10000, 0x40000))
    yield from (("personality", (how,), EPERM) for how in (8, 0x40000, 0x400000, HIGH | 8))
    yield from (("personality", (how,), 0) for how in (0, 0xFFFFFFFF, (1 << 64) - 1, HIGH))
    bad = (0x5412, 0x541C, 0x5423)
    yield from (("ioctl", (0, high | word), EPERM) for word in bad for high in (0, HIGH, 1 << 32))
    yield from (("ioctl", (0, word), 0) for word in (0x5401, 0x5411, 0x5413, 0x541B, 0x5422, 0x5424))
    yield from (("ioctl", (word, 0x5401, word), 0) for word in bad)
    for name in ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        yield from ((name, (pid, 7), EPERM) for pid in (1, 4242, 0xFFFFFFFF, HIGH | 1))
        yield from ((name, (itself, 7, HIGH), 0) for itself in (0, HIGH))
    # The kind of what is meant, and which: a process is 0 for setpriority(2), and 1 for ioprio_set(2).
    for name, process in {"setpriority": 0, "ioprio_set": 1}.items():
        yield from ((name, (kind, 0, 5), EPERM) for kind in {0, 1, 2, 3, HIGH | 2} - {process})
        yield from ((name, (high | process, who, 5), EPERM) for who in (1, HIGH | 4242) for high in (0, HIGH))
        yield from ((name, (high | process, high, 5), 0) for high in (0, HIGH))
    fast_open, others = 0x20000000, 0x4000 | 0x40  # MSG_NOSIGNAL, MSG_DONTWAIT
    for name, argument in {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}.items():
        before = (fast_open,) * argument
        yield from ((name, (*before, high | fast_open | others), EOPNOTSUPP) for high in (0, HIGH))
        yield from ((name, (*before, flags), 0) for flags in (0, others, 0x40000000, HIGH & ~0xFFFFFFFF))
    for name, argument in {"open": 1, "openat": 2}.items():
        before = (0o6000,) * argument
        yield from ((name, (*before, flags, 0o4755), EPERM) for flags in (0x40, 0x410000, 0x241, HIGH | 0x40))
        yield from ((name, (*before, 0x40, mode), EPERM) for mode in (0o2644, HIGH | 0o6000))
        yield from ((name, (*before, 0x40, mode), 0) for mode in (0, 0o644, 0o1777))
        yield name, (*before, 0x2, 0o6755), 0  # nothing is made, so the mode is anything
    yield from (("setsockopt", (0, high | 1, high | 13), EPERM) for high in (0, HIGH))
    yield from (("setsockopt", (13, level, option), 0) for level, option in ((1, 2), (6, 13), (0, 13)))
    set_id = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2}
    for name, argument in set_id.items():
        before = (0o6000,) * argument  # a descriptor, a pointer: whatever is in them
        yield from (
            (name, (*before, high | mode), EPERM)
            for mode in (0o4755, 0o2755, 0o6000, 0o7777)
            for high in (0, HIGH)
        )
        yield from ((name, (*before, mode), 0) for mode in (0, 0o755, 0o777, 0o1777, HIGH | 0o644))


def socket_cases() -> Iterator[tuple[str, tuple[int, ...], int]]:
    """The same for sockets of a worker that may use the internet, and no Unix sockets."""
    flags = 0x80800  # SOCK_CLOEXEC, SOCK_NONBLOCK
    for high in (0, HIGH):
        for family in (0, 1, 3, 17, 38, 40, 43, 44, 0xFFFFFFFF):
            yield "socket", (high | family, 1, 0), EAFNOSUPPORT
            yield "socketpair", (high | (family if family != 1 else 2), 1, 0), EAFNOSUPPORT
        for family in (high | 2, high | 10):
            yield from (
                ("socket", (family, kind, 0), 0) for kind in (1, 2, 0x11, high | flags | 1, flags | 2)
            )
            yield from (("socket", (family, 2, high | protocol), 0) for protocol in (1, 17, 58))
            for protocol in (33, 115, 132, 136, 255, 256, 262, 0xFFFFFFFF):
                yield "socket", (family, flags | 1, high | protocol), EPROTONOSUPPORT
            yield from (("socket", (family, kind, 6), EPERM) for kind in (3, high | flags | 3))
            yield from (
                ("socket", (family, flags | kind, 0), ESOCKTNOSUPPORT) for kind in (0, 4, 5, 6, 10, 15)
            )
        yield from (("socket", (high | 16, kind, high), 0) for kind in (2, 3, flags | 3))
        yield from (
            ("socket", (high | 16, 3, high | kind), EPROTONOSUPPORT) for kind in (2, 4, 9, 12, 15, 16)
        )
        yield from (("socketpair", (high | 1, high | flags | kind, 0), 0) for kind in (1, 5))
        yield from (("socketpair", (high | 1, flags | kind, 0), ESOCKTNOSUPPORT) for kind in (2, 3))


BY_ARGUMENT = list(cases())
SOCKETS = list(socket_cases())
BY_ARGUMENTS = {name for name, _, _ in BY_ARGUMENT + SOCKETS}


@pytest.mark.parametrize("machine", SUPPORTED)
def test_the_numbers_are_those_of_the_headers(machine: str) -> None:
    table = {rule.name: getattr(rule, machine) for rule in STRICTEST}
    assert {name: number for name, number in table.items() if number is not None} == numbers(REFUSED, machine)
    assert len(table) == len(REFUSED.split())


@pytest.mark.parametrize("machine", SUPPORTED)
def test_a_plain_refusal_ignores_arguments(machine: str) -> None:
    program = assemble(STRICTEST, machine)
    for name, number in numbers(REFUSED, machine).items():
        if name not in BY_ARGUMENTS:
            error = ENOSYS if name in LATER else EPERM
            assert [judge(program, ARCHITECTURES[machine], number, *some) for some in ANY] == [error] * 3, (
                name
            )


@pytest.mark.parametrize("machine", SUPPORTED)
def test_what_is_not_in_the_table_is_allowed(machine: str) -> None:
    program = assemble(STRICTEST, machine)
    refused = set(numbers(REFUSED, machine).values())
    words = [word for rule in STRICTEST for check in rule.when for word in check.values]
    for number in set(range(LAST_KNOWN + 1)) - refused:
        for some in (*ANY, *((word,) * 6 for word in words)):
            assert judge(program, ARCHITECTURES[machine], number, *some) == 0, number
    for name, number in numbers(NEVER_REFUSED, machine).items():
        assert number not in refused, name


@pytest.mark.parametrize(
    ("machine", "name", "arguments", "error"),
    [
        (machine, *case)
        for machine in SUPPORTED
        for case in BY_ARGUMENT + SOCKETS
        if case[0] in numbers(REFUSED, machine)
    ],
)
def test_calls_judged_by_their_arguments(
    machine: str, name: str, arguments: tuple[int, ...], error: int
) -> None:
    program = assemble(ONLINE, machine)
    assert judge(program, ARCHITECTURES[machine], numbers(REFUSED, machine)[name], *arguments) == error


@pytest.mark.parametrize("machine", SUPPORTED)
def test_other_doors_and_newer_calls_are_closed(machine: str) -> None:
    program = assemble(LOOSEST, machine)
    native = ARCHITECTURES[machine]
    strange = {0x40000003, 0x40000028, 0xC000003E, 0xC00000B7, native ^ 0x80000000, 0} - {native}
    for number in range(LAST_KNOWN + 1):
        assert {judge(program, other, number) for other in strange} == {ENOSYS}
        assert judge(program, native, 0x40000000 | number) == ENOSYS
    assert judge(program, native, LAST_KNOWN) == 0
    for number in (LAST_KNOWN + 1, 512, 547, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0xFFFFFFFF):
        assert judge(program, native, number) == ENOSYS


@pytest.mark.parametrize("machine", SUPPORTED)
def test_what_a_worker_may_more(machine: str) -> None:
    call = numbers(REFUSED, machine)
    shared = "shmat shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink"

    def verdict(table: tuple[Rule, ...], name: str, *arguments: int) -> int:
        return judge(assemble(table, machine), ARCHITECTURES[machine], call[name], *arguments)

    for name in shared.split():
        assert (verdict(STRICTEST, name), verdict(LOOSEST, name)) == (EPERM, 0)
    assert (verdict(STRICTEST, "prlimit64", 1), verdict(LOOSEST, "prlimit64", 1)) == (EPERM, 0)
    for name in ("setxattr", "lsetxattr", "fsetxattr", "setxattrat"):
        assert (verdict(STRICTEST, name), verdict(LOOSEST, name)) == (EPERM, 0)
    for family in (1, 2, 10):
        assert verdict(STRICTEST, "socket", family, 1) == EAFNOSUPPORT
        assert verdict(LOOSEST, "socket", family, 1) == 0
    for table in (STRICTEST, LOOSEST):
        assert verdict(table, "socket", 16, 3, 0) == 0
        assert verdict(table, "socketpair", 1, 1) == 0
    assert verdict(LOOSEST, "socketpair", 1, 2) == 0
    assert verdict(LOOSEST, "socket", 2, 1, 262) == EPROTONOSUPPORT
    assert verdict(LOOSEST, "shmget") == EPERM


def test_every_rule_has_a_reason_and_an_error() -> None:
    for rule in STRICTEST:
        assert rule.why
        assert 0 < rule.error < 4096


def test_a_check_without_values_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="values"):
        Check(0, (), True)


@pytest.mark.parametrize("machine", ["arm64", "i686", "riscv64", ""])
def test_a_machine_without_a_table_is_named(machine: str) -> None:
    with pytest.raises(UnsupportedMachine, match=f"'{machine}'") as caught:
        assemble(LOOSEST, machine)
    assert isinstance(caught.value, ValueError)
