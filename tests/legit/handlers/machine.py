"""Honest programs about the machine they run on: what it has, time, language; each checks its own results."""

from __future__ import annotations

import ctypes
import getpass
import locale
import logging
import os
import platform
import pwd
import resource
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgpack

from moltbot import Context, handler

PATIENCE = 25.0


def told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.strip()


@handler("processors_and_limits")
def processors_and_limits(ctx: Context, payload: Mapping[str, Any]) -> None:
    assert os.cpu_count() == payload["processors"]
    assert 1 <= len(os.sched_getaffinity(0)) <= payload["processors"]
    assert os.sysconf("SC_NPROCESSORS_ONLN") >= 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 64 <= soft <= hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1000
    assert len(os.getloadavg()) == 3
    assert os.statvfs(os.environ["TMPDIR"]).f_bavail > 0


@handler("proc")
def proc(ctx: Context, payload: Any) -> None:
    """What monitoring libraries read."""
    status = Path("/proc/self/status").read_text()
    assert f"\nPid:\t{os.getpid()}\n" in status
    assert "MemTotal:" in Path("/proc/meminfo").read_text()
    assert "processor" in Path("/proc/cpuinfo").read_text()
    assert Path("/proc/self/maps").read_text()
    assert Path("/proc/self/exe").resolve().exists()
    assert len(Path("/proc/stat").read_text().splitlines()) > 3
    assert int(Path("/proc/sys/kernel/pid_max").read_text()) > 0
    assert set(os.listdir("/proc/self/fd")) >= {"0", "1", "2"}


@handler("psutil")
def psutil(ctx: Context, payload: Any) -> None:
    import psutil

    process = psutil.Process()
    assert process.memory_info().rss > 1_000_000
    assert process.pid in psutil.pids()
    assert psutil.virtual_memory().total > 0
    assert psutil.cpu_count() == os.cpu_count()
    child = subprocess.Popen(["sleep", "600"])
    assert [found.pid for found in process.children()] == [child.pid]
    child.kill()
    child.wait(PATIENCE)


@handler("usual_tools")
def usual_tools(ctx: Context, payload: Any) -> None:
    """What scripts call to learn where they are; whichever of them this machine has."""
    for line in ("ps", "df .", "nproc", "id", "uname -a", "hostname", "free", "env", "ls -la /", "mount"):
        words = line.split()
        if shutil.which(words[0]) is not None:
            result = subprocess.run(
                words, cwd=ctx.temp_dir, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert (result.returncode, bool(result.stdout)) == (0, True), (words, result.stderr)


@handler("home")
def home(ctx: Context, payload: Any) -> None:
    """The worker has a name and a home like anybody."""
    place = Path(os.path.expanduser("~"))
    assert place == Path.home()
    with_dot = place / ".config" / "program" / "settings"
    with_dot.parent.mkdir(parents=True, exist_ok=True)
    with_dot.write_text("x")
    entry = pwd.getpwuid(os.getuid())
    assert entry.pw_name == getpass.getuser()
    assert told("id", "-un") == entry.pw_name
    assert os.path.expanduser(f"~{entry.pw_name}") == entry.pw_dir
    assert told("sh", "-c", "cd ~ && pwd") == str(place)


@handler("system_description")
def system_description(ctx: Context, payload: Mapping[str, Any]) -> None:
    """Installers and scripts read which system this is."""
    assert platform.system() == "Linux"
    assert platform.platform()
    if payload["described"]:
        assert platform.freedesktop_os_release()["ID"] == told("sh", "-c", '. /etc/os-release && echo "$ID"')


@handler("random_and_unique")
def random_and_unique(ctx: Context, payload: Any) -> None:
    assert os.urandom(32) != os.urandom(32)
    assert secrets.token_hex() != secrets.token_hex()
    assert os.getrandom(8) != os.getrandom(8)
    assert uuid.uuid4() != uuid.uuid4()
    assert uuid.uuid1() != uuid.uuid1()


@handler("time_zones")
def time_zones(ctx: Context, payload: Any) -> None:
    summer = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert summer.astimezone(ZoneInfo("Europe/Berlin")).hour == 14
    previous = os.environ.get("TZ")
    try:
        os.environ["TZ"] = "Asia/Tokyo"
        time.tzset()
        assert time.localtime(0).tm_hour == 9
        assert subprocess.run(["date", "-d@0", "+%H"], stdout=-1, check=True).stdout == b"09\n"
    finally:
        os.environ.pop("TZ") if previous is None else os.environ.update(TZ=previous)
        time.tzset()
    assert time.clock_gettime(time.CLOCK_BOOTTIME) > 0


@handler("language")
def language(ctx: Context, payload: Any) -> None:
    assert sys.getfilesystemencoding() == "utf-8"
    assert locale.getpreferredencoding(False).lower() == "utf-8"
    assert locale.setlocale(locale.LC_ALL, "C.UTF-8") == "C.UTF-8"
    assert "ü".encode(locale.getencoding()) == b"\xc3\xbc"
    shell = subprocess.run(["sh", "-c", "printf grüße"], stdout=-1, check=True)
    assert shell.stdout.decode() == "grüße"


@handler("output")
def output(ctx: Context, payload: Mapping[str, str]) -> None:
    """Every way to say something ends in the worker's log, that of a child's and that by name included."""
    word = payload["word"]
    print(f"{word} print")
    print(f"{word} error", file=sys.stderr)
    logging.getLogger("some.library").warning("%s logging", word)
    ctx.log.info("%s context", word)
    subprocess.run(["sh", "-c", f"echo {word} child; echo {word} child-error >&2"], check=True)


@handler("output_by_name")
def output_by_name(ctx: Context, payload: Mapping[str, str]) -> None:
    """Shell scripts and servers write to /dev/stderr."""
    for name in ("stdout", "stderr"):
        subprocess.run(["sh", "-c", f"echo {payload['word']} {name} > /dev/{name}"], check=True)


@handler("compiled_code")
def compiled_code(ctx: Context, payload: Any) -> None:
    """An extension of the environment, and a library of the system."""
    from msgpack import _cmsgpack  # type: ignore[import-not-found, attr-defined, unused-ignore]

    assert Path(_cmsgpack.__file__).suffix == ".so"
    packed = _cmsgpack.Packer().pack({"a": [1, 2.5, "ü"]})
    assert msgpack.unpackb(packed) == {"a": [1, 2.5, "ü"]}
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    assert libc.strlen(b"hello") == 5
    sorted_by_us = (ctypes.c_int * 4)(3, 1, 2, 0)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    libc.qsort(sorted_by_us, 4, 4, compare(lambda a, b: a[0] - b[0]))
    assert list(sorted_by_us) == [0, 1, 2, 3]


@handler("compiler")
def compiler(ctx: Context, payload: Any) -> None:
    """What was just compiled in the temporary directory can be run and loaded."""
    source = ctx.temp_dir / "add.c"
    source.write_text("int add(int a, int b) { return a + b; }\nint main(void) { return add(2, 3); }\n")
    program, library = ctx.temp_dir / "add", ctx.temp_dir / "libadd.so"
    for words in (["-o", str(program)], ["-shared", "-fPIC", "-o", str(library)]):
        subprocess.run(["cc", str(source), *words], check=True, timeout=PATIENCE)
    assert subprocess.run([str(program)], check=False).returncode == 5
    assert ctypes.CDLL(str(library)).add(40, 2) == 42


@handler("numbers")
def numbers(ctx: Context, payload: Any) -> None:
    import numpy as np

    random = np.random.default_rng(1)
    matrix = random.random((300, 300))
    inverse = np.linalg.inv(matrix)
    assert np.allclose(matrix @ inverse, np.eye(300), atol=1e-6)
    assert np.allclose(np.linalg.svd(matrix)[1][0], np.linalg.norm(matrix, 2))
    path = ctx.state_dir / "arrays.npz"
    np.savez_compressed(path, matrix=matrix, inverse=inverse)
    with np.load(path) as loaded:
        assert np.array_equal(loaded["matrix"], matrix)
    mapped = np.memmap(ctx.temp_dir / "mapped", dtype="f8", mode="w+", shape=(1000, 1000))
    mapped[:] = 1
    mapped.flush()
    assert mapped.sum() == 1e6
