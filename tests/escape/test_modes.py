"""Nothing that a worker makes runs as its owner outside of the wall; what honest programs do with modes works."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moltbot.sandbox.isolation.plan import Level
from tests.escape.hostile import WALLS, gateway_at, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's own")

MODES = """
def path(name):
    return os.path.join(place, name)

def make(mode, flags=os.O_CREAT | os.O_WRONLY, name=None):
    os.close(os.open(path(name or oct(mode)), flags, mode))

make(0o600, name="file")
held = os.open(path("file"), os.O_RDWR)
folder = os.open(place, os.O_DIRECTORY)
x86 = platform.machine() == "x86_64"
forbidden, plain = {}, {}
for bits in (0o4000, 0o2000, 0o6000):
    mode = bits | 0o755
    forbidden |= {
        f"chmod {mode:o}": lambda mode=mode: os.chmod(path("file"), mode),
        f"fchmod {mode:o}": lambda mode=mode: os.fchmod(held, mode),
        f"fchmodat {mode:o}": lambda mode=mode: os.chmod("file", mode, dir_fd=folder),
        f"fchmodat2 {mode:o}": lambda mode=mode: call(452, folder, b"file", mode, 0),
        f"openat {mode:o}": lambda mode=mode: make(mode),
        f"O_TMPFILE {mode:o}": lambda mode=mode: os.open(place, os.O_TMPFILE | os.O_RDWR, mode),
        f"mknod {mode:o}": lambda mode=mode: os.mknod(path(oct(mode)), stat.S_IFREG | mode),
    }
    if x86:
        forbidden |= {
            f"open {mode:o}": lambda mode=mode: call(2, path("new").encode(), os.O_CREAT | os.O_RDWR, mode),
            f"creat {mode:o}": lambda mode=mode: call(85, path("new").encode(), mode),
            f"mknod as such {mode:o}": lambda mode=mode: call(133, path("new").encode(), 0o100000 | mode, 0),
        }
plain = {
    "755": lambda: os.chmod(path("file"), 0o755), "644": lambda: os.fchmod(held, 0o644),
    "sticky": lambda: os.chmod(place, 0o1777), "back": lambda: os.chmod(place, 0o700),
    "open": lambda: make(0o644), "all": lambda: make(0o777), "node": lambda: os.mknod(path("node"), 0o100644),
    "mode without file": lambda: make(0o4755, os.O_RDONLY, "file"), "folder": lambda: os.mkdir(path("folder"), 0o755),
    "nameless": lambda: os.close(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)),
}
how = struct.pack("QQQ", 0, 0, 0)
answer = {
    "forbidden": tried(forbidden), "plain": tried(plain), "left": sorted(os.listdir(place)),
    "openat2": tried({"": lambda: call(437, folder, b"file", how, len(how))}),
    "attributes": tried({
        "setxattr": lambda: os.setxattr(path("file"), "user.x", b"x"),
        "fsetxattr": lambda: os.setxattr(held, "user.y", b"y"),
        "lsetxattr": lambda: os.setxattr(path("file"), "user.z", b"z", follow_symlinks=False),
    }),
}
"""


def has_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.moltbot", b"x")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("level", WALLS)
async def test_nobody_makes_a_set_id_program_and_plain_modes_work(tmp_path: Path, level: Level) -> None:
    async with gateway_at(tmp_path, level) as gateway:
        answer = await run(gateway, MODES)
    assert len(answer["forbidden"]) >= 21
    assert set(answer["forbidden"].values()) == {"EPERM"}, answer["forbidden"]
    assert set(answer["plain"].values()) == {"done"}, answer["plain"]
    assert answer["left"] == ["0o644", "0o777", "file", "folder", "node"]
    assert answer["openat2"] == {"": "ENOSYS"}
    attributes = set(answer["attributes"].values())
    if level is Level.LANDLOCK:
        assert attributes == {"EPERM"}
    elif has_attributes(tmp_path):
        assert attributes == {"done"}
