"""Confines this process, and all it will start, from inside: Landlock, the worker's own uid, no capabilities, seccomp.

Applied by `boot.py` before any thread exists and before any handler code runs, for Landlock and seccomp bind the calling
thread. What to apply is plain data, made in `sandbox/isolation/`. Standard library only: ctypes, no wrapper. A part that
cannot be applied raises OSError: a worker never runs behind less than was asked for.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Mapping
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_CONNECT_TCP, _BIND_TCP = 2, 1
_SCOPES = 3  # abstract unix sockets and signals
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_SECCOMP_MODE_FILTER, _CAP_AMBIENT_CLEAR_ALL, _LAST_CAPABILITY, _CAPABILITIES_V3 = 2, 4, 63, 0x20080522

# Rights by the bit of their number, and the ABI that first knew them.
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_CHANGE_FOLDERS = sum(1 << bit for bit in (4, 5, 7, 8, 9, 10, 12))  # remove and make, but no device nodes
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_RIGHTS = {
    "list": _LIST,
    "read": _EXECUTE | _READ | _LIST,
    "write": _EXECUTE | _READ | _LIST | _WRITE | _CHANGE_FOLDERS | _REFER | _TRUNCATE,
    "device": _READ | _WRITE | _LIST | _TRUNCATE | _IOCTL,
}

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _NetPort(ctypes.Structure):
    _fields_ = [("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def confine(plan: Mapping[str, Any]) -> None:
    """Apply `plan`: `uid` (or None to keep it), `landlock` (or None), `seccomp` (a filter in hexadecimal, or None)."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if plan["landlock"] is not None:
        _apply_landlock(plan["landlock"])
    _drop_privileges(plan["uid"])
    if plan["seccomp"] is not None:
        program = bytes.fromhex(plan["seccomp"])
        prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def prctl(option: int, value: int, argument: Any = 0) -> None:
    """The system call; raises OSError."""
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), argument or zero, zero, zero), f"prctl {option}")


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 if there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def _apply_landlock(plan: Mapping[str, Any]) -> None:
    abi = landlock_abi()
    every = _ALL_BY_ABI[min(abi, max(_ALL_BY_ABI))]
    net = _handled_net(plan) if abi >= 4 else 0
    attributes = _Ruleset(every, net, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _check(
        _libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0), "Landlock"
    )
    for path, kind in plan["rules"]:
        _allow_path(ruleset, path, _RIGHTS[kind] & every)
    if net and plan["tcp"]:
        for port in set(range(65536)) - set(plan["refused_ports"]):
            _add_rule(ruleset, _NET_PORT, _NetPort(net, port))
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _handled_net(plan: Mapping[str, Any]) -> int:
    """Without TCP, no port is allowed; with it, all but the refused ones: who takes the gateway's port elsewhere gets its callers."""
    return _CONNECT_TCP | _BIND_TCP if plan["refused_ports"] or not plan["tcp"] else 0


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        _add_rule(ruleset, _PATH_BENEATH, _PathBeneath(rights, descriptor))
    finally:
        os.close(descriptor)


def _add_rule(ruleset: int, kind: int, rule: ctypes.Structure) -> None:
    _check(_libc.syscall(_ADD_RULE, ruleset, kind, ctypes.byref(rule), 0), "Landlock")


def _drop_privileges(uid: int | None) -> None:
    """Give up all capabilities, and become `uid` if it is given."""
    if os.geteuid() == 0:
        for capability in range(_LAST_CAPABILITY + 1):
            try:
                prctl(_PR_CAPBSET_DROP, capability)
            except OSError:
                break  # beyond the last one that this kernel has
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        prctl(_PR_SET_DUMPABLE, 1)  # else /proc/self would belong to root
    prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(nothing)), "capset")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
