"""What a running gateway tells of its walls: by command, by HTTP, and in the worker's own directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.isolation.directories import WARNING
from tests.support import Running, call, gateway_in, moltbot

NAMES = {
    "files", "processes", "network", "ipc", "identity", "capabilities", "seccomp", "landlock",
    "signals and abstract sockets", "process limit", "memory limit", "disk limit", "open files limit",
    "core dumps", "cgroup",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def unwalled(home: Path) -> Iterator[Running]:
    """A gateway at the lowest level."""
    with Running(home, "-w", "2", "-s", "lowest", MOLTBOT_ISOLATION="directories") as running:
        yield running


@pytest.fixture(scope="module")
def strongest(home: Path) -> Iterator[Running]:
    with Running(home, "-w", "1", "-s", "strongest") as running:
        yield running


def check_protections(found: list[dict[str, Any]]) -> dict[str, bool]:
    for protection in found:
        assert set(protection) == {"name", "inForce", "detail"}
        assert protection["detail"]
    assert {protection["name"] for protection in found} == NAMES
    return {protection["name"]: protection["inForce"] for protection in found}


def test_at_the_lowest_level_status_warns_and_names_what_is_missing(unwalled: Running, home: Path) -> None:
    result = moltbot(home, "workers", "status", "-s", "lowest")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "isolation level directories" in lines[0]
    assert lines[-1] == f"WARNING: {WARNING}."
    missing = lines[lines.index("Not in force:") + 1 : -1]
    assert "  identity: the gateway's own uid" in missing
    assert "  files: all that this system user can reach" in missing
    [held] = [line for line in lines if line.startswith("In force: ")]
    assert "process limit, memory limit, disk limit" in held
    assert "seccomp" not in held


def test_behind_a_wall_status_names_it_without_a_warning(strongest: Running, home: Path) -> None:
    level = strongest.document["status"]["isolation"]
    if level == "directories":
        pytest.skip("no wall works here")
    result = moltbot(home, "workers", "status", "-s", "strongest")
    assert f"isolation level {level}" in result.stdout.splitlines()[0]
    assert "WARNING" not in result.stdout
    [held] = [line for line in result.stdout.splitlines() if line.startswith("In force: ")]
    for name in ("files", "network", "capabilities", "seccomp"):
        assert name in held


@pytest.mark.parametrize("which", ["lowest", "strongest"])
def test_the_same_as_a_document(unwalled: Running, strongest: Running, home: Path, which: str) -> None:
    document = json.loads(moltbot(home, "workers", "status", "-s", which, "--json").stdout)
    level = (unwalled if which == "lowest" else strongest).document["status"]["isolation"]
    assert document["isolation"] == level
    assert document["warning"] == (WARNING if level == "directories" else None)
    in_force = check_protections(document["protections"])
    assert in_force["seccomp"] is (level != "directories")
    for worker in document["workers"]:
        assert (worker["isolation"], worker["protections"]) == (level, document["protections"])


def test_a_worker_is_described_in_its_own_directory(unwalled: Running, home: Path) -> None:
    described = json.loads((home / "lowest" / "worker-1" / "sandbox.json").read_text())
    assert described["isolation"] == "directories"
    check_protections(described["protections"])


@pytest.mark.parametrize("isolation", ["directories", "auto"])
async def test_http_carries_level_protections_and_warning(tmp_path: Path, isolation: str) -> None:
    async with gateway_in(tmp_path / "base", isolation=isolation) as gateway:
        status = gateway.router.get_status()
        assert status is not None
        expected = (status.isolation, WARNING if status.isolation == "directories" else None)
        health = await call(gateway, "GET", "/health")
        assert (health.json["isolation"], health.json["warning"]) == expected
        check_protections(health.json["protections"])
        pool = await call(gateway, "GET", "/api/workers")
        assert (pool.json["isolation"], pool.json["warning"]) == expected
        worker = await call(gateway, "GET", "/api/workers/worker-0")
        assert worker.json["isolation"] == expected[0]
        assert worker.json["protections"] == health.json["protections"] == pool.json["protections"]
        stranger = await call(
            gateway, "GET", "/health", headers={"Authorization": "Bearer nobody-s-token-at-all"}
        )
        assert set(stranger.json) == {"status"}, "how walls are built is for operators"
