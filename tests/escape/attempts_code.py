"""Attempts on code: what is changed there runs in every other worker, or outside of all walls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moltbot.sandbox.launch import PACKAGE
from tests.escape.here import as_here, opened
from tests.escape.table import Attempt, at, is_open, refused

DENIED = refused("EACCES")
SEALED = refused("EROFS", "EACCES")
PLAIN = is_open("nothing but the uid guards files, and it is the gateway's")
SITE_PACKAGES = str(Path(pytest.__file__).parents[1])

ATTEMPTS = (
    Attempt(
        "worker-code-write",
        "the gateway's own code: the next worker would run what we put there, before its wall is up",
        "CVE-2019-5736 (runc) in other words: code of the outside, written from inside",
        "open(facts['code'] + '/worker/boot.py', 'r+').close(); escaped('open for writing')",
        at(
            SEALED,
            DENIED,
            as_here(opened(f"{PACKAGE}/worker/boot.py", os.O_RDWR), "the gateway can write it"),
        ),
    ),
    Attempt(
        "site-packages-write",
        "a file in site-packages: a .pth there is run by every Python of this environment",
        "the module site of Python: lines of .pth files that begin with import are executed",
        "os.close(os.open(facts['site_packages'], os.O_TMPFILE | os.O_WRONLY, 0o600)); escaped('made')",
        at(
            SEALED,
            DENIED,
            as_here(opened(SITE_PACKAGES, os.O_TMPFILE | os.O_WRONLY), "the gateway can write there"),
        ),
    ),
    Attempt(
        "standard-library-write",
        "a module that every Python on this machine imports first",
        "open(2)",
        "os.close(os.open(os.path.realpath(os.__file__), os.O_RDWR)); escaped('open for writing')",
        at(
            SEALED,
            DENIED,
            as_here(opened(os.path.realpath(os.__file__), os.O_RDWR), "the gateway can write it"),
        ),
    ),
    Attempt(
        "interpreter-write",
        "the interpreter through /proc/self/exe, wherever it is mounted; while it runs, the kernel itself says ETXTBSY",
        "CVE-2019-5736 (runc)",
        """
held = os.open("/proc/self/exe", os.O_PATH)
os.close(os.open(f"/proc/self/fd/{held}", os.O_RDWR))
escaped("open for writing")
""",
        at(
            SEALED,
            refused("EACCES", "ETXTBSY"),
            as_here(opened("/proc/self/exe", os.O_RDWR), "the gateway can write it"),
        ),
    ),
    Attempt(
        "handler-write",
        "the author's handler: all workers load it at their next start",
        "open(2)",
        "open(facts['handler'], 'r+').close(); escaped('open for writing')",
        at(SEALED, DENIED, PLAIN),
    ),
    Attempt(
        "handler-replace",
        "another file under the handler's name",
        "rename(2)",
        """
mine = facts["state"] + "/mine.py"
with open(mine, "w") as file:
    file.write(open(facts["handler"]).read())
try:
    os.rename(mine, facts["handler"])
finally:
    if os.path.exists(mine):
        os.unlink(mine)
escaped("replaced")
""",
        at(refused("EXDEV", "EROFS", "EBUSY"), refused("EXDEV", "EACCES"), PLAIN),
    ),
)
