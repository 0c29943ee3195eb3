"""The plans of the middle wall and of the lowest level, as pure data; and what is said of older kernels."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.cgroup import Delegation
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.isolation.directories import WARNING, DirectoriesWall
from moltbot.sandbox.isolation.isolation import Isolation
from moltbot.sandbox.isolation.landlock import ROOT_WARNING, LandlockWall, landlock_detail, scoped_detail
from moltbot.sandbox.isolation.limits import limit_protections
from moltbot.sandbox.isolation.plan import Level, Protection, Wall
from moltbot.sandbox.isolation.seccomp import assemble
from moltbot.sandbox.isolation.seccomp_rules import rules
from moltbot.sandbox.isolation.witness import Evidence
from moltbot.sandbox.launch import PACKAGE
from tests.sandbox.isolation import test_bubblewrap_plan
from tests.sandbox.isolation.test_bubblewrap_plan import BASE, GROUND, ROOT, VIEW, bare


def wall(**changed: Any) -> LandlockWall:
    return replace(LandlockWall(GROUND, VIEW, network=False, abi=7, machine="x86_64"), **changed)


def landlock(some: LandlockWall) -> Any:
    confinement = some.wrap(bare()).confinement
    assert confinement is not None
    json.dumps(confinement)  # it travels so
    return confinement["landlock"]


def paths(some: LandlockWall, kind: str) -> list[str]:
    return [path for path, how in landlock(some)["rules"] if how == kind]


# --- landlock ------------------------------------------------------------------------------------------


def test_only_its_own_directories_and_the_grant_can_be_written() -> None:
    own = [f"{ROOT}/{name}" for name in ("sessions", "state", "cache", "temp/7")]
    assert paths(wall(), "write") == [*own, "/srv/shared/deep"]


def test_what_can_be_read_is_the_view_and_the_names_of_users() -> None:
    names = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts"]
    assert paths(wall(), "read") == [*map(str, VIEW.readable), *map(str, VIEW.code), "/disk/models", *names]
    assert paths(wall(), "list") == [str(PACKAGE.parent), str(PACKAGE)], (
        "names only: the rest of our code stays closed"
    )
    assert paths(wall(), "device") == [
        f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")
    ]


@pytest.mark.parametrize("network", [False, True])
def test_no_rule_opens_another_workers_directory(network: bool) -> None:
    for path, _ in landlock(wall(network=network))["rules"]:
        assert Path(path).is_relative_to(ROOT) or not Path(path).is_relative_to(BASE)
        assert not ROOT.is_relative_to(path)
        assert path not in ("/", "/etc", "/proc", "/dev", "/dev/shm", "/tmp", "/home", "/var", "/run", "/sys")


def test_the_network_is_refused_or_open_but_for_the_gateways_own_ports() -> None:
    assert landlock(wall())["tcp"] is False
    assert landlock(wall(network=True))["tcp"] is True
    assert landlock(wall(network=True))["refused_ports"] == [18789, 18790]


@pytest.mark.parametrize("network", [False, True])
def test_the_filter_closes_what_landlock_does_not_see(network: bool) -> None:
    confinement = wall(network=network).wrap(bare()).confinement
    assert confinement is not None
    program = assemble(rules(namespaced=False, inet=network, unix=False), "x86_64")
    assert bytes.fromhex(confinement["seccomp"]) == program
    assert confinement["uid"] is None


def test_nothing_else_of_the_worker_changes() -> None:
    before, after = bare(), wall().wrap(bare())
    assert replace(after, confinement=None) == before
    assert after.argv[0] == before.argv[0], "no program runs before the worker's own"
    assert after.guarded
    assert wall().owner("worker-3") == os.geteuid()
    assert wall().evidence("worker-3") == Evidence(
        os.geteuid(), frozenset(), seccomp=True, no_capabilities=True
    )


def test_what_speaks_against_it_is_told_without_trying() -> None:
    assert wall().obstacle() is None
    assert wall(abi=1).obstacle() is None
    assert "this kernel has no Landlock" in (wall(abi=0).obstacle() or "")
    assert "not riscv64" in (wall(machine="riscv64").obstacle() or "")


# --- what a kernel's Landlock lacks ---------------------------------------------------------------------

SCOPES = "signals and abstract sockets"


@pytest.mark.parametrize(
    ("abi", "says"),
    [
        (1, f"ABI 1, without moves between directories, truncation, TCP ports, device ioctls, {SCOPES}"),
        (2, f"ABI 2, without truncation, TCP ports, device ioctls, {SCOPES}"),
        (3, f"ABI 3, without TCP ports, device ioctls, {SCOPES}"),
        (4, f"ABI 4, without device ioctls, {SCOPES}"),
        (5, f"ABI 5, without {SCOPES}"),
        (6, "ABI 6"),
        (7, "ABI 7"),
    ],
)
def test_what_an_older_kernel_lacks_is_told_by_name(abi: int, says: str) -> None:
    assert landlock_detail(abi) == Protection("landlock", True, says)


def test_a_kernel_without_landlock_is_told() -> None:
    assert landlock_detail(0) == Protection("landlock", False, "this kernel has none (Linux 5.13 or later)")


@pytest.mark.parametrize("abi", [0, 1, 3, 4, 5, 6, 7])
def test_scopes_are_claimed_only_where_they_are(abi: int) -> None:
    found = scoped_detail(abi, namespaced=False)
    assert found.in_force is (abi >= 6)
    assert found.in_force or f"ABI {abi} lacks scopes" in found.detail
    assert scoped_detail(abi, namespaced=True).in_force
    named = {protection.name: protection for protection in wall(abi=abi).protections()}
    assert named[SCOPES] == found
    assert named["landlock"] == landlock_detail(abi)


# --- the lowest level, and what all have in common -----------------------------------------------------


def test_the_lowest_level_changes_nothing_and_claims_nothing() -> None:
    lowest = DirectoriesWall(GROUND)
    assert lowest.obstacle() is None
    assert lowest.wrap(bare()) == bare()
    assert lowest.evidence("worker-0") == Evidence()
    assert lowest.owner("worker-0") == os.geteuid()
    in_force = [protection.name for protection in lowest.protections() if protection.in_force]
    assert in_force == ["process limit"]


def test_the_lowest_level_comes_with_a_warning_and_so_does_the_middle_one_as_root() -> None:
    walls: list[Wall] = [test_bubblewrap_plan.wall(), wall(), DirectoriesWall(GROUND)]
    warnings = [Isolation(one, None, ()).warning for one in walls]
    assert warnings == [None, ROOT_WARNING if os.geteuid() == 0 else None, WARNING]
    assert "NOT walled off" in WARNING


def test_every_level_speaks_of_the_same_protections() -> None:
    walls: list[Wall] = [
        *(
            test_bubblewrap_plan.wall(uid_drop=drop, network=net)
            for drop, net in product((True, False), repeat=2)
        ),
        *(wall(network=net) for net in (True, False)),
        DirectoriesWall(GROUND),
    ]
    names = {tuple(protection.name for protection in one.protections()) for one in walls}
    assert len(names) == 1, "whoever compares levels finds the same words"
    for one in walls:
        for protection in one.protections():
            assert protection.detail
            assert "\n" not in protection.detail


def test_a_granted_network_is_no_protection() -> None:
    walls: list[Wall] = [test_bubblewrap_plan.wall(network=True), wall(network=True)]
    for one in walls:
        [network] = [protection for protection in one.protections() if protection.name == "network"]
        assert (network.in_force, "full, as granted" in network.detail) == (False, True)


def test_limits_are_told_with_their_figures_and_a_cgroup_with_what_it_adds() -> None:
    config = PoolConfig.read(
        {"max_memory": "100MB", "max_disk": "2MB", "max_inodes": 5000, "max_open_files": 77}
    )
    text = " ".join(protection.detail for protection in limit_protections(config, "there is none"))
    for figure in ("100MB", "2MB", "5000 files", "RLIMIT_NOFILE 77", "RLIMIT_CORE 1", "there is none"):
        assert figure in text
    both = Delegation(Path("/sys/fs/cgroup/ours"), frozenset({"memory", "pids"}))
    assert limit_protections(config, both)[-1] == Protection(
        "cgroup", True, "memory.max, pids.max, cgroup.kill"
    )
    none = Delegation(Path("/sys/fs/cgroup/ours"), frozenset(), "no memory or pids")
    assert limit_protections(config, none)[-1].detail == "cgroup.kill only; no memory or pids"
    assert not limit_protections(config, "there is none")[-1].in_force


def test_levels_compare_by_strength() -> None:
    order = [Level.BUBBLEWRAP, Level.LANDLOCK, Level.DIRECTORIES]
    assert order == list(Level)
    for (i, one), (j, other) in product(enumerate(order), repeat=2):
        assert one.at_least(other) is (i <= j)
