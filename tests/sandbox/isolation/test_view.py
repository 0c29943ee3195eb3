"""Which paths a worker sees, and which grants are refused: in one sentence that names setting and path."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import psutil
import pytest

from moltbot.core.errors import SettingsError
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation import view as view_module
from moltbot.sandbox.isolation.view import RESOLVER, Grant, View, interpreter_paths, view_of
from moltbot.sandbox.launch import PACKAGE
from tests.support import check_sentence

SETTINGS = ["read_only_paths", "read_write_paths"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base directory that was used: one worker's directories are there."""
    base = tmp_path / "data" / "base"
    (base / "worker-0" / "state").mkdir(parents=True)
    return base


def view(base: Path, **settings: Any) -> View:
    return view_of(PoolConfig.read({"sandbox_base_dir": base, **settings}), base)


def refusal(base: Path, **settings: Any) -> str:
    """The one sentence in which settings are refused."""
    with pytest.raises(SettingsError) as caught:
        view(base, **settings)
    check_sentence(str(caught.value))
    return str(caught.value)


@contextmanager
def listening(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody listens on a socket; its full path may be longer than a socket's name can be."""
    monkeypatch.chdir(place.parent)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place.name)
        door.listen()
        yield


# --- refused --------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "the base directory": (lambda base: base, "expose the base directory"),
    "a parent of it": (lambda base: base.parent, "expose the base directory"),
    "a worker's directory": (lambda base: base / "worker-0", "expose the base directory"),
    "a part of it": (lambda base: base / "worker-0" / "state", "expose the base directory"),
    "the root": (lambda base: Path("/"), "expose"),
    "/proc": (lambda base: Path("/proc"), "expose /proc: processes"),
    "within /proc": (lambda base: Path("/proc/self/fd"), "expose /proc: processes"),
    "/sys": (lambda base: Path("/sys"), "expose /sys: the kernel's own"),
    "within /sys": (lambda base: Path("/sys/kernel"), "expose /sys"),
    "/dev": (lambda base: Path("/dev"), "expose /dev: devices"),
    "a device": (lambda base: Path("/dev/null"), "expose /dev"),
    "/run": (lambda base: Path("/run"), "sockets of the machine's services"),
    "/var/run": (lambda base: Path("/var/run"), "sockets of the machine's services"),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", FORBIDDEN)
def test_what_would_open_the_wall_cannot_be_granted(base: Path, case: str, setting: str) -> None:
    path, why = FORBIDDEN[case][0](base), FORBIDDEN[case][1]
    if not path.exists():
        pytest.skip(f"this machine has no {path}")
    said = refusal(base, **{setting: [path]})
    assert said.startswith(f"{setting} must not name {path}: ")
    assert why in said
    assert said.endswith("name a smaller folder, or another one")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", FORBIDDEN)
def test_nor_by_another_name(tmp_path: Path, base: Path, case: str, setting: str) -> None:
    path = FORBIDDEN[case][0](base)
    if not path.exists():
        pytest.skip(f"this machine has no {path}")
    link = tmp_path / "harmless"
    link.symlink_to(path)
    assert f"{setting} must not name {link}: " in refusal(base, **{setting: [link]})
    (tmp_path / "second").symlink_to("harmless")
    assert "second" in refusal(base, **{setting: [tmp_path / "second"]})


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_socket_is_a_door_however_deep_it_lies(
    tmp_path: Path, base: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "granted"
    deep = folder.joinpath(*"abcdefghijklmnopqrstuvwxyz")
    deep.mkdir(parents=True)
    (folder / "many").mkdir()
    for number in range(100):
        (folder / "many" / str(number)).touch()
    assert Grant(folder, folder) in getattr(view(base, **{setting: [folder]}), setting.removesuffix("_paths"))
    with listening(deep / "door", monkeypatch):
        for granted in (folder, deep / "door"):
            said = refusal(base, **{setting: [granted]})
            assert f"{setting} must not name {granted}: {deep / 'door'} is a socket" in said
        (tmp_path / "link").symlink_to(folder)
        assert "is a socket" in refusal(base, **{setting: [tmp_path / "link"]})
    assert view(base, **{setting: [folder]}), "one on which nobody listens leads nowhere"


def test_a_folder_too_large_to_be_searched_is_refused(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "_MOST_ENTRIES", 10)
    folder = tmp_path / "granted"
    folder.mkdir()
    for number in range(10):
        (folder / str(number)).touch()
    view(base, read_only_paths=[folder])
    (folder / "one more").touch()
    assert "more than 10 files" in refusal(base, read_only_paths=[folder])


def test_a_folder_with_the_kernels_own_mounted_in_it_is_refused(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "chroot"
    folder.mkdir()
    mounts = [SimpleNamespace(fstype="tmpfs", mountpoint=str(folder))]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    view(base, read_only_paths=[folder])
    mounts.append(SimpleNamespace(fstype="proc", mountpoint=str(folder / "proc")))
    assert f"proc is mounted at {folder / 'proc'}" in refusal(base, read_only_paths=[folder])


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_missing_or_relative_is_told(
    tmp_path: Path, base: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "real").mkdir()
    for name in ("nothing", "dangling"):
        said = refusal(base, **{setting: [tmp_path / name]})
        assert said == f"{setting} names {tmp_path / name}, which does not exist: make it, or take it out"
    for relative in ("real", "real/deeper", "../real"):
        said = refusal(base, **{setting: [relative]})
        assert setting in said
        assert f"'{relative}' is not absolute" in said


def test_workers_cannot_change_what_they_run(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "_check_sockets", lambda *_: None)  # all of /usr would be searched first
    handler = tmp_path / "author" / "handler.py"
    handler.parent.mkdir()
    handler.touch()
    code = [sys.prefix, sys.base_prefix, msgpack.__path__[0], PACKAGE / "core", PACKAGE, PACKAGE.parent]
    system = ["/usr", "/usr/share", "/bin", "/lib", "/etc/../usr"]
    for path in (*map(Path, code), *map(Path, system), handler, handler.parent):
        said = refusal(base, handler=str(handler), read_write_paths=[path])
        assert f"read_write_paths must not name {path}: " in said
        assert "workers run what is in" in said
    (tmp_path / "link").symlink_to(handler.parent)
    assert "workers run what" in refusal(base, handler=str(handler), read_write_paths=[tmp_path / "link"])


# --- allowed --------------------------------------------------------------------------------------------


def test_what_is_nobodys_secret_can_be_granted(tmp_path: Path, base: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "base-2").mkdir()  # the name begins alike, which means nothing
    (base.parent / "base2").mkdir()
    paths = (tmp_path / "models", tmp_path / "file", tmp_path / "base-2", base.parent / "base2")
    (tmp_path / "shared").mkdir()
    found = view(base, read_only_paths=paths, read_write_paths=[tmp_path / "shared"])
    assert [grant.name for grant in found.read_only] == list(paths)
    assert found.read_write == (Grant(tmp_path / "shared", (tmp_path / "shared").resolve()),)


def test_only_the_listed_parts_of_the_system_are_seen(base: Path) -> None:
    found = view(base)
    assert set(found.system) <= set(map(Path, view_module.SYSTEM))
    assert set(found.etc) <= set(map(Path, view_module.ETC))
    assert Path("/usr") in found.system
    assert not found.read_only + found.read_write + found.handler
    for path in (*found.readable, *found.code):
        assert path.is_absolute()
        assert path.exists() or path.is_symlink()
        assert not Path("/etc/shadow").is_relative_to(path)
        assert not Path.home().is_relative_to(path)
    assert found.code[0].name == "__init__.py"
    assert {path.name for path in found.code[1:]} == {"core", "worker"}, "a worker needs no other package"


def test_the_resolver_is_seen_with_a_network_only(base: Path) -> None:
    resolver = {path for name in RESOLVER if (path := Path(name)).exists()}
    assert resolver
    assert not resolver & set(view(base).etc)
    assert set(view(base, network="full").etc) - set(view(base).etc) == resolver


# --- the handler and other programs ---------------------------------------------------------------------


def test_of_a_handler_file_only_the_file_is_seen(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "handler.py"
    file.touch()
    (tmp_path / "secret").touch()
    assert view(base, handler=str(file)).handler == (file,)
    assert view(base, handler=str(tmp_path / "missing.py")).handler == ()


def test_of_a_module_its_top_package_is_seen(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_agents" / "deep").mkdir(parents=True)
    (tmp_path / "own_agents" / "__init__.py").touch()
    (tmp_path / "own_agents" / "deep" / "__init__.py").touch()
    (tmp_path / "own_agent_alone.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert view(base, handler="own_agents.deep:agent").handler == (tmp_path / "own_agents",)
    assert view(base, handler="own_agent_alone:agent").handler == (tmp_path / "own_agent_alone.py",)
    for unknown in ("no_such_module:agent", ":agent", "..x:agent"):
        assert view(base, handler=unknown).handler == (), "the worker says what is wrong with it"


def test_of_a_command_the_program_and_its_files_are_seen(tmp_path: Path, base: Path) -> None:
    program, script = tmp_path / "real-program", tmp_path / "script.js"
    program.touch(mode=0o755)
    script.touch()
    (tmp_path / "current").symlink_to("real-program")
    (tmp_path / "program").symlink_to(tmp_path / "current")
    command = [str(tmp_path / "program"), str(script), "--port", "1", str(tmp_path)]
    chain = {tmp_path / name for name in ("program", "current", "real-program")}
    assert set(view(base, worker_command=command).handler) == {*chain, script}, "but no folders"
    assert view(base, worker_command=["sh", "-c", "true"]).handler == (), "that is the system's"


# --- the base directory ---------------------------------------------------------------------------------


def test_the_base_directory_cannot_lie_in_what_all_workers_read(tmp_path: Path) -> None:
    for place in ("/usr/local/workers", f"{sys.prefix}/workers", f"{PACKAGE}/core/workers"):
        said = refusal(Path(place), handler=None)
        assert said.startswith(f"sandbox_base_dir = {place} and ")
        assert said.endswith("choose another directory")
    (tmp_path / "link").symlink_to("/usr/local")
    assert "lie in one another" in refusal(tmp_path / "link" / "workers")


def test_nor_hold_what_all_workers_read(base: Path) -> None:
    for place in (Path("/usr"), Path(sys.prefix).parent, Path("/")):
        assert "lie in one another" in refusal(place)
    handler = base / "worker-0" / "state" / "handler.py"
    handler.touch()
    said = refusal(base, handler=str(handler))
    why = f"the handler's {handler} and the base directory {base} lie in one another"
    assert said == f"{why}: move the handler elsewhere"


# --- the interpreter ------------------------------------------------------------------------------------


def test_every_hop_of_the_way_to_the_interpreter_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path(os.path.realpath(sys.executable))
    (tmp_path / "python3.99").symlink_to(real)
    (tmp_path / "python3").symlink_to("python3.99")
    (tmp_path / "python").symlink_to(tmp_path / "python3")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = interpreter_paths()
    assert {tmp_path / name for name in ("python", "python3", "python3.99")} <= set(found)
    assert tmp_path not in found, "nothing else of those folders"
    inside = [*found, Path("/usr"), Path("/bin"), Path("/lib")]
    for needed in (real, Path(sys.prefix), Path(sys.base_prefix), Path(msgpack.__path__[0])):
        assert any(needed.resolve().is_relative_to(place.resolve()) for place in inside), needed


def test_a_link_to_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").symlink_to("python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert tmp_path / "python" in interpreter_paths()


@pytest.mark.parametrize("other", ["read_only_paths", "read_write_paths"])
@pytest.mark.parametrize("inside", [True, False])
def test_what_workers_can_exchange_is_not_granted_twice(
    tmp_path: Path, base: Path, other: str, inside: bool
) -> None:
    """In a folder that they may change, workers could put a link in the place of another grant."""
    (tmp_path / "shared" / "models").mkdir(parents=True)
    outer, inner = tmp_path / "shared", tmp_path / "shared" / "models"
    writable, second = (outer, inner) if inside else (inner, outer)
    settings: dict[str, Any] = {"read_write_paths": [writable]}
    settings[other] = [*settings.get(other, []), second]
    with pytest.raises(SettingsError, match="overlaps with"):
        view(base, **settings)


def test_a_grant_that_is_a_link_in_a_writable_folder_is_refused(tmp_path: Path, base: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "models")
    with pytest.raises(SettingsError, match="overlaps with"):
        view(base, read_write_paths=[tmp_path / "shared"], read_only_paths=[tmp_path / "shared" / "link"])


def test_a_granted_link_is_resolved_once(tmp_path: Path, base: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "models")
    (grant,) = view(base, read_only_paths=[tmp_path / "link"]).read_only
    assert grant == Grant(tmp_path / "link", (tmp_path / "models").resolve())
