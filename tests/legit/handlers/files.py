"""Honest programs about files, in the directories that a worker is given; each checks its own results."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import sqlite3
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from moltbot import Context, handler

PATIENCE = 25.0


def fresh(folder: Path) -> Path:
    """An empty folder of this program's own."""
    return Path(tempfile.mkdtemp(dir=folder))


@handler("temporary_files")
def temporary_files(ctx: Context, payload: Any) -> None:
    place = Path(os.environ["TMPDIR"])
    assert Path(tempfile.gettempdir()) == place
    with tempfile.NamedTemporaryFile() as named, tempfile.TemporaryFile() as unnamed:
        assert Path(named.name).parent == place
        unnamed.write(b"x" * 100_000)
        assert unnamed.tell() == 100_000
    folder = Path(tempfile.mkdtemp())
    assert folder.parent == place
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with tempfile.TemporaryDirectory() as other:
        (Path(other) / "a" / "b").mkdir(parents=True)
    assert not Path(other).exists()
    unlinked = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert os.write(unlinked, b"x") == 1
    os.close(unlinked)
    shutil.rmtree(folder)


@handler("tmp_and_devices")
def tmp_and_devices(ctx: Context, payload: Any) -> None:
    """Programs that know nothing of TMPDIR find /tmp, and the usual devices are where they always are."""
    for folder in ("/tmp", "/dev/shm"):
        path = fresh(Path(folder)) / "file"
        path.write_bytes(b"x" * 1_000_000)
        assert path.stat().st_size == 1_000_000
        shutil.rmtree(path.parent)
    Path("/dev/null").write_bytes(b"gone")
    assert Path("/dev/null").read_bytes() == b""
    with open("/dev/zero", "rb") as zero, open("/dev/urandom", "rb") as random:
        assert zero.read(4) == bytes(4)
        assert random.read(16) != random.read(16)


@handler("sqlite")
def sqlite(ctx: Context, payload: Any) -> None:
    """Write-ahead logging, with two connections that see each other's rows."""
    path = fresh(ctx.state_dir) / "notes.db"
    with sqlite3.connect(path) as writer, sqlite3.connect(path) as reader:
        assert writer.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        writer.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
        writer.commit()
        writer.executemany("INSERT INTO notes (text) VALUES (?)", [(f"note {n}",) for n in range(1000)])
        assert reader.execute("SELECT count(*) FROM notes").fetchone() == (0,)
        writer.commit()
        assert reader.execute("SELECT count(*) FROM notes").fetchone() == (1000,)
        assert {"notes.db-wal", "notes.db-shm"} <= {found.name for found in path.parent.iterdir()}
        reader.execute("DELETE FROM notes WHERE id > 10")
        reader.commit()
        writer.execute("VACUUM")
        assert writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    writer.close()
    reader.close()


@handler("git")
def git(ctx: Context, payload: Any) -> None:
    folder = fresh(ctx.cache_dir)
    names = {
        f"GIT_{who}_{what}": "ada@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }

    def run(*words: str, at: Path) -> str:
        result = subprocess.run(
            ["git", *words],
            cwd=at,
            env={**os.environ, **names},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert result.returncode == 0, (words, result.stderr)
        return result.stdout

    one, two = folder / "one", folder / "two"
    run("init", "-q", str(one), at=folder)
    (one / "héllo.txt").write_text("hello\n")
    run("add", ".", at=one)
    run("commit", "-q", "-m", "First", at=one)
    run("clone", "-q", str(one), str(two), at=folder)
    assert run("log", "--format=%an %s", at=two) == "ada@example.org First\n"
    (two / "more.txt").write_text("more\n")
    run("add", ".", at=two)
    run("commit", "-q", "-m", "Second", at=two)
    run("pull", "-q", "--ff-only", str(two), "HEAD", at=one)
    assert run("status", "--porcelain", at=one) == ""
    run("config", "--global", "user.name", "Ada", at=one)
    assert run("config", "user.name", at=two) == "Ada\n"


@handler("large_files")
def large_files(ctx: Context, payload: Any) -> None:
    """200 MB with a hole in it, and 60 MB of bytes, read back through memory."""
    folder = fresh(ctx.temp_dir)
    with open(folder / "sparse", "w+b") as sparse:
        sparse.truncate(200 << 20)
        sparse.seek((200 << 20) - 3)
        sparse.write(b"end")
        sparse.flush()
        assert os.fstat(sparse.fileno()).st_blocks * 512 < 1 << 20
        with mmap.mmap(sparse.fileno(), 0) as view:
            assert view[-3:] == b"end"
            assert view[:10] == bytes(10)
            view[0:5] = b"begin"
            view.flush()
    block = os.urandom(1 << 20)
    with open(folder / "real", "w+b") as real:
        real.writelines(block for _ in range(60))
        real.flush()
        os.fsync(real.fileno())
        with mmap.mmap(real.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert len(view) == 60 << 20
            assert view[59 << 20 :] == block
        with open(folder / "copy", "wb") as copy:
            assert os.sendfile(copy.fileno(), real.fileno(), 0, 1 << 20) == 1 << 20
            assert os.copy_file_range(real.fileno(), copy.fileno(), 1 << 20, 0) == 1 << 20
            os.posix_fallocate(copy.fileno(), 0, 3 << 20)
        assert (folder / "copy").stat().st_size == 3 << 20
    shutil.rmtree(folder)


@handler("many_small_files")
def many_small_files(ctx: Context, payload: Any) -> None:
    folder = fresh(ctx.cache_dir)
    for number in range(1000):
        (folder / f"{number}.new").write_text(str(number))
    for number in range(1000):
        os.replace(folder / f"{number}.new", folder / f"{number}.txt")
    assert sum(int(path.read_text()) for path in folder.glob("*.txt")) == 499_500
    shutil.copytree(folder, folder / "copy")
    shutil.rmtree(folder)
    assert not folder.exists()


@handler("renames_and_links")
def renames_and_links(ctx: Context, payload: Any) -> None:
    """Between folders of one directory; between directories a program has to copy, as `shutil.move` does."""
    folder = fresh(ctx.state_dir)
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a" / "file").write_text("content")
    os.rename(folder / "a" / "file", folder / "b" / "file")
    os.rename(folder / "b", folder / "a" / "b")
    moved = folder / "a" / "b" / "file"
    os.link(moved, folder / "hard")
    assert (folder / "hard").stat().st_nlink == 2
    os.symlink("a/b", folder / "soft")
    assert (folder / "soft" / "file").read_text() == "content"
    assert os.path.realpath(folder / "soft" / "file") == str(moved)
    os.mkfifo(folder / "fifo")
    os.unlink(folder / "fifo")
    os.chmod(moved, 0o640)
    os.utime(moved, (1, 2))
    assert (stat.S_IMODE(moved.stat().st_mode), moved.stat().st_mtime) == (0o640, 2)
    other = fresh(ctx.temp_dir)
    shutil.move(folder, other)
    assert (other / folder.name / "hard").read_text() == "content"
    shutil.rmtree(other)


@handler("file_locks")
def file_locks(ctx: Context, payload: Any) -> None:
    """Two descriptors exclude each other; so do two processes."""
    path = fresh(ctx.state_dir) / "lock"
    with open(path, "w") as one, open(path, "w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("two hold the lock")
        except BlockingIOError:
            pass
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.lockf(two, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:
            try:
                fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os._exit(9)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@handler("inotify")
def inotify(ctx: Context, payload: Any) -> None:
    folder = fresh(ctx.cache_dir)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    created = 0x100
    assert libc.inotify_add_watch(descriptor, os.fsencode(folder), created) >= 0, os.strerror(
        ctypes.get_errno()
    )
    (folder / "news").touch()
    event = os.read(descriptor, 4096)
    assert struct.unpack_from("iIII", event)[1] == created
    assert event[16:].rstrip(b"\0") == b"news"
    os.close(descriptor)


@handler("names_in_utf_8")
def names_in_utf_8(ctx: Context, payload: Any) -> None:
    folder = fresh(ctx.state_dir)
    names = {"grüße.txt", "文件", "sp ace", "\N{PILE OF POO}", "line\nbreak"}
    for name in names:
        (folder / name).write_text(name)
    assert set(os.listdir(folder)) == names
    listed = subprocess.run(["ls", "-b", str(folder)], capture_output=True, timeout=PATIENCE, check=True)
    assert "grüße.txt" in listed.stdout.decode()
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).touch()
