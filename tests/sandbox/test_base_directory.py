"""The base directory: what is claimed, what is refused and why, and a claim that ends with its process."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moltbot.core.errors import BaseDirectoryError
from moltbot.sandbox.base_directory import GATEWAY_FILE, BaseDirectory, read_announcement, write_json
from tests.fakes import Watched

CLAIM = """
import sys, pathlib
from moltbot.sandbox.base_directory import BaseDirectory
base = BaseDirectory.claim(pathlib.Path(sys.argv[1]))
base.announce("http://127.0.0.1:18789")
print("claimed", flush=True)
sys.stdin.read()
"""
# Modes mean nothing to root as long as it has CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2).
WITHOUT_OVERRIDE = """
import ctypes, os, sys
PR_CAPBSET_DROP = 24
for capability in (1, 2):
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def other_gateway(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refusal(path: Path) -> str:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BaseDirectoryError) as caught:
        BaseDirectory.claim(path)
    assert len(os.listdir("/proc/self/fd")) == before, "a refused claim holds nothing"
    message = str(caught.value)
    assert "\n" not in message
    assert "choose another directory with -s / sandbox_base_dir" in message
    return message


# --- claimed --------------------------------------------------------------------------------------------------


def test_a_claim_makes_the_directory_for_us_alone(tmp_path: Path) -> None:
    base = BaseDirectory.claim(tmp_path / "a" / "b" / "base")
    assert base.path == tmp_path / "a" / "b" / "base"
    assert mode(base.path) == 0o700
    assert read_announcement(base.path) == {"pid": os.getpid(), "url": None}
    assert mode(base.path / GATEWAY_FILE) == 0o600
    base.release()


def test_the_announcement_says_who_holds_it_and_where_until_the_release(tmp_path: Path) -> None:
    base = BaseDirectory.claim(tmp_path / "base")
    base.announce("http://127.0.0.1:1")
    assert read_announcement(base.path) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
    base.release()
    base.release()
    assert os.listdir(base.path) == []
    assert read_announcement(base.path) == {}


def test_an_empty_directory_of_ours_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.mkdir()
    path.chmod(0o755)
    BaseDirectory.claim(path).release()
    assert mode(path) == 0o700


@pytest.mark.parametrize("known", ["moltbot.db", "token", GATEWAY_FILE])
def test_one_that_was_a_base_before_is_tightened_too(tmp_path: Path, known: str) -> None:
    path = tmp_path / "base"
    path.mkdir()
    (path / known).touch()
    path.chmod(0o755)
    BaseDirectory.claim(path).release()
    assert mode(path) == 0o700


def test_links_above_it_are_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    base = BaseDirectory.claim(tmp_path / "link" / "base")
    assert base.path == tmp_path / "real" / "base"
    base.release()


def test_a_relative_path_and_a_home_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (Path("one"), Path("~/two")):
        base = BaseDirectory.claim(path)
        assert base.path == tmp_path / path.name
        base.release()


# --- refused ------------------------------------------------------------------------------------------------------


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").touch()
    assert "is a file, not a directory: remove it" in refusal(tmp_path / "base")


@pytest.mark.parametrize("below", ["base", "a/base"])
def test_a_path_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    assert "is a file, not a directory" in refusal(tmp_path / "file" / below)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_refused_and_what_it_names_is_not_touched(tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "target"
    if not dangling:
        target.mkdir(mode=0o755)
    (tmp_path / "base").symlink_to(target)
    assert "is a link: name the directory itself" in refusal(tmp_path / "base")
    assert target.exists() is not dangling
    assert dangling or list(target.iterdir()) == []


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory that belongs to another user")
    path = tmp_path / "base"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)
    assert "belongs to another user (uid 12345)" in refusal(path)


def test_a_directory_open_to_others_that_holds_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(0o755)
    (path / "thesis.txt").write_text("years of work")
    assert "holds other files and is open to others" in refusal(path)
    assert mode(path) == 0o755
    assert os.listdir(path) == ["thesis.txt"]


def test_a_place_where_nothing_can_be_made_is_refused() -> None:
    """/proc takes no directory from anybody, root included."""
    message = refusal(Path("/proc/moltbot"))
    assert "/proc/moltbot" in message


@pytest.mark.skipif(sys.platform != "linux", reason="how root gives up its rights is Linux's own")
def test_a_directory_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base"
    path.mkdir(mode=0o500)
    command = [sys.executable, "-c", WITHOUT_OVERRIDE, sys.executable, "-c", CLAIM, str(path)]
    run = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert f"{path} is not writable (Permission denied): change its permissions" in run.stderr
    assert "claimed" not in run.stdout


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "there is no space left"),
        (errno.EDQUOT, "there is no space left"),
        (errno.EROFS, "is not writable"),
        (errno.EACCES, "is not writable"),
        (errno.EIO, "cannot be used"),
    ],
)
def test_a_failing_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("moltbot.sandbox.base_directory.write_json", fail)
    assert says in refusal(tmp_path / "base")
    monkeypatch.undo()
    BaseDirectory.claim(tmp_path / "base").release()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "~nobody-of-that-name/base"])
def test_a_name_that_no_directory_can_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(Path(name))


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_gateway_is_told_who_holds_it_and_where(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with other_gateway(path) as other:
        with pytest.raises(BaseDirectoryError) as caught:
            BaseDirectory.claim(path)
        assert f"in use by the running gateway with pid {other.pid} at http://127.0.0.1:18789" in str(
            caught.value
        )
        assert caught.value.details == {"pid": other.pid, "url": "http://127.0.0.1:18789"}
        assert read_announcement(path)["pid"] == other.pid, "the holder's announcement is left alone"


def test_a_second_claim_in_one_process_is_refused_too(tmp_path: Path) -> None:
    base = BaseDirectory.claim(tmp_path / "base")
    assert f"pid {os.getpid()}" in refusal(tmp_path / "base")
    base.release()
    BaseDirectory.claim(tmp_path / "base").release()


@pytest.mark.parametrize(
    "announced", [b"", b"{", b"[1]", b'{"url": 5}', b"\xff", b"[" * 100_000], ids=range(6)
)
def test_a_holder_whose_announcement_is_damaged_is_still_a_holder(tmp_path: Path, announced: bytes) -> None:
    path = tmp_path / "base"
    with other_gateway(path):
        (path / GATEWAY_FILE).write_bytes(announced)
        assert "is in use by the running gateway" in refusal(path)


def test_what_a_killed_gateway_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with other_gateway(path) as other:
        watched = Watched(other.pid)
        other.kill()
        assert watched.gone()
        watched.close()
    assert read_announcement(path)["pid"] == other.pid, "nobody was left to remove it"
    base = BaseDirectory.claim(path)
    assert read_announcement(path) == {"pid": os.getpid(), "url": None}
    base.release()


def test_the_lock_is_not_handed_on_to_programs_that_we_start(tmp_path: Path) -> None:
    base = BaseDirectory.claim(tmp_path / "base")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        base.release()
        BaseDirectory.claim(tmp_path / "base").release()
        child.kill()


# --- small files ----------------------------------------------------------------------------------------------------------


def test_a_small_file_is_replaced_whole_and_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "file.json").symlink_to(tmp_path / "outside")
    write_json(tmp_path / "file.json", {"a": 1})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}
    assert not (tmp_path / "file.json").is_symlink()
    assert (tmp_path / "outside").read_text() == "kept"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["file.json"]
