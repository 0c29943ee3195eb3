"""The plan of the strongest wall, as pure data: what `bwrap` is told, and what is applied from inside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.isolation.bubblewrap import BubblewrapWall
from moltbot.sandbox.isolation.plan import Ground
from moltbot.sandbox.isolation.root import SHM_SIZE, TMP_SIZE
from moltbot.sandbox.isolation.seccomp import assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.isolation.view import Grant, View
from moltbot.sandbox.launch import STATUS_PIPE, Attached, LaunchSpec, Word, launch_spec

BASE = Path("/data/base")
ROOT = BASE / "worker-3"
GROUND = Ground(BASE, (18789, 18790), 2_000_000_064)
CODE = (Path("/opt/app/moltbot/__init__.py"), Path("/opt/app/core"), Path("/opt/app/worker"))
VIEW = View(
    system=(Path("/usr"),),
    etc=(Path("/etc/ssl"),),
    masked=(Path("/proc/keys"),),
    python=(Path("/home/ada/venv"),),
    code=CODE,
    handler=(Path("/home/ada/agents/handler.py"),),
    read_only=(Grant(Path("/srv/models"), Path("/disk/models")),),
    read_write=(Grant(Path("/srv/shared/deep"), Path("/srv/shared/deep")),),
)
SECRETS = {"MOLTBOT_TOKEN": "the-secret-token", "KEY": "the-secret-key", "LANG": "de_DE.UTF-8"}
OURS, ROOTS = False, True
"""`uid_drop`: an ordinary user's wall, and the one of root."""


def wall(*, uid_drop: bool = OURS, network: bool = False, **changed: Any) -> BubblewrapWall:
    plain = BubblewrapWall.of(PoolConfig.read({"max_processes": 99}), GROUND, VIEW, Path("/opt/bin/bwrap"))
    plain = replace(plain, uid_drop=uid_drop, network=network, abi=7, machine="x86_64")
    return replace(plain, **changed)


DIRECTORIES = WorkerDirectories(BASE, "worker-3")


def bare(**settings: Any) -> LaunchSpec:
    """The worker that is to be walled."""
    config = PoolConfig.read({"handler": "/home/ada/agents/handler.py", **settings})
    return launch_spec(DIRECTORIES, 7, config, SECRETS, parent=4242)


ARITY = {
    **dict.fromkeys(("--bind", "--ro-bind", "--symlink", "--ro-bind-data"), 2),
    **dict.fromkeys(("--perms", "--size", "--tmpfs", "--dir", "--proc", "--dev", "--remount-ro"), 1),
    **dict.fromkeys(("--chdir", "--hostname", "--cap-drop", "--cap-add", "--seccomp", "--info-fd"), 1),
    **dict.fromkeys(("pid", "ipc", "uts", "net", "user", "cgroup-try"), 0),
}


def operations(wall: BubblewrapWall, spec: LaunchSpec | None = None) -> list[tuple[Word, ...]]:
    """What `bwrap` is told, one operation each with its operands."""
    prefix = wall.wrap(spec or bare()).prefix
    assert prefix[:2] == ("/opt/bin/bwrap", "--args")
    assert prefix[3:] == ("--",)
    assert isinstance(prefix[2], Attached)
    assert isinstance(prefix[2].content, tuple)
    words: list[Word] = list(prefix[2].content)
    found: list[tuple[Word, ...]] = []
    while words:
        count = ARITY.get(str(words[0]), 0)
        found.append(tuple(words[: count + 1]))
        del words[: count + 1]
    return found


def of(kind: str, found: Iterable[tuple[Word, ...]]) -> list[tuple[Word, ...]]:
    return [operation[1:] for operation in found if operation[0] == kind]


def files(found: Iterable[tuple[Word, ...]]) -> dict[str, str]:
    """The files that are made for the worker alone."""
    made = {}
    for content, name in of("--ro-bind-data", found):
        assert isinstance(content, Attached)
        assert isinstance(content.content, bytes)
        made[str(name)] = content.content.decode()
    return made


# --- what is mounted -----------------------------------------------------------------------------------


def test_exactly_these_paths_are_bound_and_only_three_can_be_written_besides_the_grant() -> None:
    found = operations(wall())
    assert of("--bind", found) == [
        ("/srv/shared/deep", "/srv/shared/deep"),
        (f"{ROOT}/sessions", "/sandbox/sessions"),
        (f"{ROOT}/state", "/sandbox/state"),
        (f"{ROOT}/cache", "/sandbox/cache"),
        (f"{ROOT}/temp/7", "/sandbox/temp"),
    ]
    hidden, *read_only = of("--ro-bind", found)
    assert hidden == ("/dev/null", "/proc/keys")
    assert read_only == [
        *[(str(path), str(path)) for path in VIEW.readable],
        ("/disk/models", "/srv/models"),
        (f"{ROOT}/logs", "/sandbox/logs"),
        ("/opt/app/moltbot/__init__.py", "/sandbox/lib/moltbot/__init__.py"),
        ("/opt/app/core", "/sandbox/lib/moltbot/core"),
        ("/opt/app/worker", "/sandbox/lib/moltbot/worker"),
    ]
    kinds = {operation[0] for operation in found}
    assert not kinds & {"--bind-try", "--dev-bind", "--ro-bind-try", "--overlay", "--setenv", "--share-net"}


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("uid_drop", [OURS, ROOTS])
def test_no_bind_opens_a_folder_above_the_workers_own(uid_drop: bool, network: bool) -> None:
    found = operations(wall(uid_drop=uid_drop, network=network))
    sources = [Path(str(words[0])) for kind in ("--bind", "--ro-bind") for words in of(kind, found)]
    for closed in (
        "/",
        "/proc",
        "/sys",
        "/dev",
        "/run",
        "/var",
        "/home",
        "/root",
        "/etc",
        "/tmp",
        "/home/ada",
    ):
        assert Path(closed) not in sources
    for source in sources:
        assert not ROOT.is_relative_to(source), "in their parent, the worker could swap a link"
        assert source.is_relative_to(ROOT) or not source.is_relative_to(BASE), "another worker's"


def test_every_folder_on_the_way_is_made_first_so_that_other_uids_can_pass() -> None:
    made, bound = {Path("/"), Path("/tmp"), Path("/dev"), Path("/proc")}, [Path("/dev")]
    perms: Word | None = None
    for operation in operations(wall(uid_drop=ROOTS)):
        kind, place = operation[0], Path(str(operation[-1]))
        if kind == "--dir":
            assert perms == "0755", place
        if kind in ("--dir", "--bind", "--ro-bind", "--ro-bind-data", "--tmpfs"):
            inside = any(place.is_relative_to(one) for one in bound)
            assert inside or place.parent in made, f"bwrap would make {place.parent} 0700"
            made.add(place)
            bound += [place] if kind in ("--bind", "--ro-bind") else []
        perms = operation[1] if kind == "--perms" else None


def test_tmp_comes_first_and_the_root_is_closed_last() -> None:
    found = operations(wall())
    mounting = {
        "--bind",
        "--ro-bind",
        "--tmpfs",
        "--proc",
        "--dev",
        "--dir",
        "--symlink",
        "--ro-bind-data",
        "--remount-ro",
    }
    mounts = [operation for operation in found if operation[0] in mounting]
    assert mounts[0] == ("--tmpfs", "/tmp"), "what is bound may lie below it"
    assert mounts[-2:] == [("--remount-ro", "/dev"), ("--remount-ro", "/")]
    assert of("--proc", found) == [("/proc",)]
    assert of("--dev", found) == [("/dev",)]


def test_what_lies_in_memory_is_bounded() -> None:
    found = operations(wall())
    places = [index for index, operation in enumerate(found) if operation[0] == "--tmpfs"]
    told = [tuple(found[index - 2 : index + 1]) for index in places]
    assert told == [
        (("--perms", "1777"), ("--size", str(size)), ("--tmpfs", place))
        for place, size in (("/tmp", TMP_SIZE), ("/dev/shm", SHM_SIZE))
    ]
    assert TMP_SIZE <= 64 << 20
    assert SHM_SIZE <= 64 << 20


def test_a_link_at_the_root_stays_one() -> None:
    if not Path("/bin").is_symlink():
        pytest.skip("/bin is no link here")
    view = replace(VIEW, system=(Path("/usr"), Path("/bin")))
    assert of("--symlink", operations(wall(view=view))) == [(os.readlink("/bin"), "/bin")]


def test_the_workers_files_are_mounted_and_never_written() -> None:
    """What is there already, in a grant for example, is covered by them and stays as it is."""
    assert not of("--file", operations(wall()))
    assert len(of("--ro-bind-data", operations(wall()))) == 4


# --- who the worker is ---------------------------------------------------------------------------------


def test_as_root_the_worker_gets_its_own_uid_and_only_what_the_change_needs() -> None:
    roots = wall(uid_drop=ROOTS)
    found = operations(roots)
    assert roots.owner("worker-0") == GROUND.first_uid
    assert roots.owner("worker-3") == GROUND.first_uid + 3
    assert roots.wrap(bare()).confinement["uid"] == GROUND.first_uid + 3  # type: ignore[index]
    kinds = [operation[0] for operation in found]
    assert kinds.index("--cap-drop") < kinds.index("--cap-add")
    assert of("--cap-drop", found) == [("ALL",)]
    assert of("--cap-add", found) == [("CAP_SETUID",), ("CAP_SETGID",), ("CAP_SETPCAP",)]
    assert not {"--unshare-user", "--disable-userns", "--uid", "--gid"} & set(kinds)


def test_as_an_ordinary_user_a_user_namespace_takes_its_place_and_is_the_last_one() -> None:
    ours = wall(uid_drop=OURS)
    found = operations(ours)
    assert ours.owner("worker-0") == ours.owner("worker-3") == os.geteuid()
    assert ours.wrap(bare()).confinement["uid"] is None  # type: ignore[index]
    kinds = [operation[0] for operation in found]
    assert kinds.count("--unshare-user") == kinds.count("--disable-userns") == 1
    assert of("--cap-drop", found) == [("ALL",)]
    assert "--cap-add" not in kinds


@pytest.mark.parametrize("uid_drop", [OURS, ROOTS])
@pytest.mark.parametrize("network", [False, True])
def test_its_namespaces(uid_drop: bool, network: bool) -> None:
    some = wall(uid_drop=uid_drop, network=network)
    kinds = {operation[0] for operation in operations(some)}
    assert {"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"} <= kinds
    assert {"--die-with-parent", "--new-session"} <= kinds
    assert ("--unshare-net" in kinds) is not network
    expected = {"pid", "ipc", "uts", "mnt"}
    expected |= set() if network else {"net"}
    expected |= set() if uid_drop else {"user"}
    evidence = some.evidence("worker-3")
    assert some.namespaces() == evidence.namespaces == expected
    assert (evidence.uid, evidence.seccomp, evidence.no_capabilities) == (some.owner("worker-3"), True, True)


def test_the_files_that_programs_ask_for_names() -> None:
    made = files(operations(wall(uid_drop=ROOTS, hosts="127.0.0.1 localhost\n10.0.0.9 other\n")))
    assert set(made) == {"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts"}
    assert "worker:x:2000000067:2000000067::/sandbox/temp/.home:/bin/sh\n" in made["/etc/passwd"]
    assert made["/etc/passwd"].startswith("root:x:0:0:")
    assert "worker:x:2000000067:\n" in made["/etc/group"]
    assert made["/etc/hosts"] == "127.0.0.1 localhost\n10.0.0.9 other\n127.0.1.1 worker-3\n"
    assert files(operations(wall()))["/etc/hosts"].splitlines()[0] == "127.0.0.1 localhost"


# --- what is seen of it from outside, and what comes from inside ---------------------------------------


@pytest.mark.parametrize("uid_drop", [OURS, ROOTS])
def test_argv_shows_no_path_no_rule_and_no_secret(uid_drop: bool) -> None:
    spec = wall(uid_drop=uid_drop).wrap(bare(environment=["KEY"], worker_command=["node", "w.js"]))
    shown = [word for word in spec.argv if isinstance(word, str)]
    assert shown == [
        *("/opt/bin/bwrap", "--args", "--", sys.executable, "-I", "-S", "-u"),
        *("/sandbox/lib/moltbot/worker/boot.py", "moltbot-worker", "worker-3", "walled"),
    ]
    assert spec.environment["KEY"] == "the-secret-key"
    assert "MOLTBOT_TOKEN" not in spec.environment
    assert "/data" not in json.dumps(spec.environment)


def test_the_worker_finds_itself_at_places_that_tell_nothing() -> None:
    spec = wall().wrap(bare())
    assert spec.environment["HOME"] == "/sandbox/temp/.home"
    assert spec.environment["TMPDIR"] == "/sandbox/temp"
    assert {str(path).split("/")[1] for path in vars_of(spec.places)} == {"sandbox"}
    assert (spec.guarded, spec.interactive) == (False, False)
    assert spec.limits["RLIMIT_NPROC"] == 99
    assert {**spec.limits} | {"RLIMIT_NPROC": 99} == {**bare().limits, "RLIMIT_NPROC": 99}


def vars_of(places: Any) -> list[Path]:
    return [getattr(places, name) for name in type(places).__slots__]


def test_the_filter_is_the_strictest_and_is_given_as_a_descriptor() -> None:
    for network in (False, True):
        [(program,)] = of("--seccomp", operations(wall(network=network)))
        assert program == Attached(assemble(rules(namespaced=True, inet=True, unix=True), "x86_64"))
        confinement = wall(network=network).wrap(bare()).confinement
        assert confinement is not None
        assert confinement["seccomp"] is None


def test_only_a_worker_tells_bwrap_where_to_report_and_a_shell_does_not() -> None:
    assert of("--info-fd", operations(wall())) == [(STATUS_PIPE,)]
    assert of("--info-fd", operations(wall(), replace(bare(), interactive=True))) == []


def test_landlock_stands_behind_the_mounts() -> None:
    confinement = wall().wrap(bare()).confinement
    assert confinement is not None
    landlock = confinement["landlock"]
    own = ["/sandbox/sessions", "/sandbox/state", "/sandbox/cache", "/sandbox/temp", "/tmp", "/dev/shm"]
    assert landlock["rules"] == [
        ["/", "read"],
        ["/dev", "device"],
        *([path, "write"] for path in (*own, "/srv/shared/deep")),
    ]
    assert (landlock["tcp"], landlock["refused_ports"]) == (True, [])
    json.dumps(confinement)  # it travels so
    assert wall(abi=0).wrap(bare()).confinement["landlock"] is None  # type: ignore[index]


def test_on_the_machines_network_the_gateways_ports_stay_closed() -> None:
    confinement = wall(network=True).wrap(bare()).confinement
    assert confinement is not None
    assert confinement["landlock"]["refused_ports"] == [18789, 18790]


def test_what_speaks_against_it_is_told_without_trying() -> None:
    assert wall().obstacle() is None
    assert "there is no bwrap" in (wall(program=None).obstacle() or "")
    assert "not riscv64" in (wall(machine="riscv64").obstacle() or "")
