"""The program with which the kernel filters the system calls of a worker: rules in, bytes out. Pure.

The bytes are an array of `struct sock_filter`, as `prctl(PR_SET_SECCOMP)` and `bwrap --seccomp` take it.
Which calls are refused is in `seccomp_rules.py`; who hands the program to the kernel, in `bubblewrap.py` and
`worker/confine.py`.

Plain calls cost next to nothing: the kernel finds out once which numbers are allowed whatever their
arguments, and does not run the program for them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from moltbot.sandbox.isolation.seccomp_rules import ALL_BITS, ENOSYS, LAST_KNOWN, Check, Rule

SUPPORTED = ("x86_64", "aarch64")
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Opcodes of classic BPF: load a word of seccomp_data, mask it, compare it with a constant, return a constant.
_LOAD, _AND, _IF_EQUAL, _IF_GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
# seccomp_data: the number, the architecture, the address of the call, six arguments of 64 bits. Both machines
# are little endian, so the low half of an argument comes first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


class UnsupportedMachine(ValueError):
    """There is no table of calls for this machine."""

    def __init__(self, machine: str) -> None:
        super().__init__(f"no filter of system calls for {machine!r}, only for {' and '.join(SUPPORTED)}")
        self.machine = machine


def assemble(rules: Sequence[Rule], machine: str) -> bytes:
    """The program for `machine` as `platform.machine()` names it; raises UnsupportedMachine.

    It allows a call that no rule refuses, unless the call comes through another architecture's door or is
    newer than the table: both fail with ENOSYS.
    """
    if machine not in SUPPORTED:
        raise UnsupportedMachine(machine)
    program = [
        # The same number is another call for a 32-bit program, so numbers mean nothing before this is known.
        _operation(_LOAD, _ARCHITECTURE),
        _operation(_IF_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _operation(_RETURN, _FAIL | ENOSYS),
        # A call that was never judged is not offered. The second door of x86-64, x32, has bit 30 set in its
        # numbers (on old kernels it also opened for 512 to 547 without it): this comparison closes it too.
        _operation(_LOAD, _NUMBER),
        _operation(_IF_GREATER, LAST_KNOWN, 0, 1),
        _operation(_RETURN, _FAIL | ENOSYS),
    ]
    for rule in rules:
        number = rule.x86_64 if machine == "x86_64" else rule.aarch64
        if number is not None:
            program += _refusal(rule, number)
    program.append(_operation(_RETURN, _ALLOW))
    return b"".join(program)


def _refusal(rule: Rule, number: int) -> list[bytes]:
    """Refuse, or go on behind these lines with the number loaded as before them."""
    lines = [_operation(_RETURN, _FAIL | rule.error)]
    for check in reversed(rule.when):
        lines = _question(check, len(lines)) + lines
    if rule.when:
        lines.append(_operation(_LOAD, _NUMBER))  # a question leaves its argument where the number was
    return [_operation(_IF_EQUAL, number, 0, len(lines)), *lines]


def _question(check: Check, rest: int) -> list[bytes]:
    """Go on with the next line if the check holds; else skip `rest` lines more."""
    lines = [_operation(_LOAD, _ARGUMENTS + 8 * check.argument + (4 if check.high else 0))]
    if check.mask != ALL_BITS:
        lines.append(_operation(_AND, check.mask))
    for left, value in zip(range(len(check.values) - 1, -1, -1), check.values, strict=True):
        if check.among:
            lines.append(_operation(_IF_EQUAL, value, left, 0 if left else rest))
        else:
            lines.append(_operation(_IF_EQUAL, value, left + rest, 0))
    return lines


def _operation(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One `struct sock_filter`; jumps count the lines to skip, and one over 255 is a `struct.error`."""
    return struct.pack("<HBBI", code, if_true, if_false, constant)
