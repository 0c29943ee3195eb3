"""Measures the memory and CPU of whole process trees; slow system calls, so always off the event loop."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_INODE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """memory: bytes that the tree alone costs (PSS, or USS where there is none). cpu_seconds: used so far by what lives.

    tasks: processes and threads.
    """

    memory: int
    cpu_seconds: float
    tasks: int


def measure(root_pid: int, max_tasks: int, filesystems: Iterable[str] = ()) -> Usage | None:
    """Sum over the process and all its descendants; None if it is gone.

    filesystems: those in memory that belong to the tree. Beyond `max_tasks` processes only they are counted: to look at each would take longer than they need to become more.
    """
    try:
        root = psutil.Process(root_pid)
        tree = [root, *root.children(recursive=True)]
    except (psutil.Error, OSError):
        return None
    if len(tree) > max_tasks:
        return Usage(0, 0.0, len(tree))
    memory, cpu, tasks = sum(map(_in_memory, filesystems)), 0.0, 0
    for process in tree:
        try:
            with process.oneshot():
                times = process.cpu_times()
                tasks += process.num_threads()
                memory += _memory_of(process) + _page_tables(process.pid)
        except (psutil.Error, OSError):
            continue
        cpu += times.user + times.system
    return Usage(memory, cpu, tasks)


def _memory_of(process: psutil.Process) -> int:
    try:
        full = psutil.Process(living_thread(process.pid)).memory_full_info()
    except psutil.AccessDenied:  # a process can close itself to others of its uid; this much anybody may know
        return int(process.memory_info().rss)
    return int(getattr(full, "pss", 0) or full.uss)


def living_thread(pid: int) -> int:
    """The process itself, or, if its first thread has ended and others go on, the number of one of these: it shows the same."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if not file.read().rpartition(b")")[2].startswith(b" Z"):
                return pid
        return next((int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid), pid)
    except OSError:
        return pid


def _page_tables(pid: int) -> int:
    """What the kernel needs to remember a process's pages: much, for one who touches few of very many."""
    try:
        with open(f"/proc/{living_thread(pid)}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmPTE:")), 0)
    except OSError:
        return 0


def _in_memory(filesystem: str) -> int:
    """Bytes of a tmpfs; its size bounds contents only, so what the kernel keeps of each file is added."""
    try:
        status = os.statvfs(filesystem)
    except OSError:
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize + (
        status.f_files - status.f_ffree
    ) * _INODE_BYTES
