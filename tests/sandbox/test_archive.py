"""Archives of real trees that a hostile worker could make: whole, bounded, and with nothing in them that is not the worker's."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot import StorageFull
from moltbot.sandbox.archive import MOST_LISTED, write_archive
from tests.sandbox.test_base_directory import WITHOUT_OVERRIDE
from tests.sandbox.test_disk import before_opening, descriptors, nest

MB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tree"
    path.mkdir()
    before = descriptors()
    yield path
    assert descriptors() == before
    subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True)
    subprocess.run(["rm", "-rf", str(path)], check=True)


def archived(
    *roots: Path, max_size: int = 64 * MB, max_inodes: int = 100_000
) -> tuple[dict[str, tarfile.TarInfo], tarfile.TarFile, list[dict[str, str]]]:
    """Write, and read with the library what was written: members, archive, what was skipped."""
    file = io.BytesIO()
    trees = {path.name: path for path in roots}
    limits: dict[str, Any] = {"max_size": max_size, "max_inodes": max_inodes}
    size = write_archive(file, trees, ("user.json", {"userId": "ada"}), check=lambda: None, **limits)
    assert file.tell() == 0
    assert size == len(file.getvalue())
    read = tarfile.TarFile(fileobj=file)
    members = {member.name: member for member in read.getmembers()}
    assert list(members)[-1] == "user.json"
    manifest = json.loads(content(read, "user.json"))
    assert manifest["userId"] == "ada"
    assert manifest["skippedCount"] >= len(manifest["skipped"])
    return members, read, manifest["skipped"]


def content(read: tarfile.TarFile, name: str) -> bytes:
    file = read.extractfile(name)
    assert file is not None
    return file.read()


def test_files_folders_and_links_as_they_are_but_no_rights(root: Path) -> None:
    (root / "folder").mkdir(mode=0o2750)
    (root / "folder" / "file").write_bytes(b"x" * 100_000)
    (root / "folder" / "file").chmod(0o6751)
    os.utime(root / "folder" / "file", (1e9, 1e9))
    (root / "link").symlink_to("/etc/passwd")
    os.link(root / "folder" / "file", root / "twin")
    members, read, skipped = archived(root)
    assert list(members) == ["tree", "tree/folder", "tree/folder/file", "tree/link", "tree/twin", "user.json"]
    assert skipped == []
    file = members["tree/folder/file"]
    assert (file.mode, file.mtime, file.size) == (0o751, 10**9, 100_000)
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members.values()} == {(0, 0, "", "")}
    assert not any(member.mode & 0o7000 for member in members.values())
    assert content(read, "tree/folder/file") == content(read, "tree/twin") == b"x" * 100_000
    assert members["tree/twin"].isreg()
    assert (members["tree/link"].linkname, members["tree/link"].issym()) == ("/etc/passwd", True)


def test_a_missing_tree_is_empty_and_one_that_is_a_link_is_skipped(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (root / "sessions").symlink_to(tmp_path / "outside")
    members, _, skipped = archived(root / "sessions", root / "state")
    assert list(members) == ["user.json"]
    assert [entry["path"] for entry in skipped] == ["sessions"]


@pytest.mark.parametrize(
    "name", [b"a\nb", b"\xff\xfe", b"..." + b"x" * 250, b"-rf", b" ", "é".encode(), b"a\\b"]
)
def test_a_hostile_name_is_a_name(root: Path, name: bytes) -> None:
    (root / os.fsdecode(name)).mkdir()
    (root / os.fsdecode(name) / os.fsdecode(name)).write_text("x")
    (root / "link").symlink_to(os.fsdecode(name * 3))
    members, _, skipped = archived(root)
    assert f"tree/{os.fsdecode(name)}/{os.fsdecode(name)}" in members
    assert members["tree/link"].linkname == os.fsdecode(name * 3)
    assert skipped == []


def test_what_is_no_file_is_listed(root: Path) -> None:
    os.mkfifo(root / "pipe")
    here = os.getcwd()
    os.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir(here)
    members, _, skipped = archived(root)
    assert list(members) == ["tree", "user.json"]
    assert {entry["path"] for entry in skipped} == {"tree/pipe", "tree/socket"}


def test_thousands_of_nested_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, most = len(descriptors()), [0]
    nest(root, 3000)
    before_opening(monkeypatch, lambda _: most.append(len(descriptors()) - before))
    members, _, skipped = archived(root)
    assert len(members) == 2 + 6000
    assert "tree" + "/d" * 3000 + "/f" in members
    assert skipped == []
    assert max(most) <= 2


@pytest.mark.parametrize("what", ["sparse", "files", "names", "inodes"])
def test_beyond_the_bounds_is_an_error(root: Path, what: str) -> None:
    if what == "sparse":
        (root / "hole").touch()
        os.truncate(root / "hole", 1 << 40)
    elif what == "files":
        for number in range(5):
            (root / str(number)).write_bytes(b"x" * MB)
    elif what == "names":
        for number in range(200):
            (root / f"{number:0250}").touch()
    else:
        for number in range(100):
            (root / str(number)).touch()
    limits = {"sparse": 64 * MB, "files": 4 * MB, "names": 40_000, "inodes": 64 * MB}
    with pytest.raises(StorageFull, match="too many for an archive") as caught:
        archived(root, max_size=limits[what], max_inodes=99 if what == "inodes" else 1000)
    assert not caught.value.retryable


def test_bounds_that_are_met_exactly(root: Path) -> None:
    (root / "file").write_bytes(b"x" * 1000)
    archived(root, max_size=1000 + len("tree") + len("tree/file"), max_inodes=1)


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_file_that_changes_its_size_while_it_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    (root / "file").write_bytes(b"x" * 100_000)
    (root / "next").write_bytes(b"y" * 10)
    measured = os.fstat

    def changing(descriptor: int) -> os.stat_result:
        status = measured(descriptor)
        if status.st_size == 100_000:
            os.truncate(root / "file", size)
        return status

    monkeypatch.setattr(os, "fstat", changing)
    _, read, skipped = archived(root)
    assert content(read, "tree/file") == (b"x" * min(size, 100_000)).ljust(100_000, b"\0")
    assert content(read, "tree/next") == b"y" * 10
    assert [entry["path"] for entry in skipped] == (["tree/file"] if size < 100_000 else [])


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_exchanged_for_a_link_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "secret").touch()
    (root / "folder").mkdir()
    (root / "file").touch()

    def exchange(opened: object) -> None:
        if opened == name:
            os.rename(root / name, tmp_path / "aside")
            (root / name).symlink_to(tmp_path / "secrets" / ("" if name == "folder" else "secret"))

    before_opening(monkeypatch, exchange)
    members, _, skipped = archived(root)
    assert not any("secret" in member for member in members)
    assert [entry["path"] for entry in skipped] == [f"tree/{name}"]


def test_a_folder_that_is_moved_away_leads_nowhere_on_the_way_up(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "c").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c").write_text("secret")  # of the same name as what waits

    def move(opened: object) -> None:
        if opened == "..":
            os.rename(root / "a" / "b", tmp_path / "elsewhere" / "b")

    with monkeypatch.context() as patch:
        before_opening(patch, move)
        members, _, skipped = archived(root)
    assert list(members) == ["tree", "tree/a", "tree/a/b", "user.json"]
    assert [entry["path"] for entry in skipped] == ["tree/a/c"]


def test_a_tree_that_changes_all_the_time(root: Path) -> None:
    script = "while :; do mkdir -p a/b/c d/e; echo x > a/b/c/f; echo yy >> d/e/f; mv d a/b; rm -rf a; done"
    with subprocess.Popen(["sh", "-c", script], cwd=root) as worker:
        try:
            for _ in range(300):
                archived(root)
        finally:
            worker.kill()


def test_the_manifest_is_bounded(root: Path) -> None:
    for number in range(3 * MOST_LISTED):
        os.mkfifo(root / os.fsdecode(b"\xff" * 200 + str(number).encode()))
    _, read, skipped = archived(root)
    assert 10 < len(skipped) <= MOST_LISTED
    assert json.loads(content(read, "user.json"))["skippedCount"] == 3 * MOST_LISTED


def test_whoever_asks_can_end_it(root: Path) -> None:
    (root / "file").write_bytes(b"x")

    def check() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        write_archive(io.BytesIO(), {"t": root}, ("m", {}), max_size=MB, max_inodes=10, check=check)


@pytest.mark.skipif(sys.platform != "linux", reason="how root gives up its rights is Linux's own")
def test_what_is_closed_to_us_is_listed(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "file").write_text("x")
    (root / "open").write_text("x")
    (root / "folder").chmod(0)
    (root / "file").chmod(0)
    program = (
        "import io, json, sys, tarfile; from pathlib import Path; from moltbot.sandbox.archive import write_archive\n"
        "file = io.BytesIO()\n"
        "write_archive(file, {'t': Path(sys.argv[1])}, ('m', {}), max_size=99999, max_inodes=99, check=lambda: None)\n"
        "read = tarfile.open(fileobj=file)\n"
        "print(json.dumps([read.getnames(), json.load(read.extractfile('m'))['skipped']]))"
    )
    command = [sys.executable, "-c", WITHOUT_OVERRIDE, sys.executable, "-c", program, str(root)]
    names, skipped = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert names == ["t", "t/open", "m"]
    assert skipped == [
        {"path": f"t/{name}", "why": "the gateway may not read it"} for name in ("file", "folder")
    ]
