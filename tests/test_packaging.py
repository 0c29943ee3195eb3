"""The lists of packages never drift apart: wheel map, links in src/, layers, names that must not be imported."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import moltbot

ROOT = Path(__file__).parents[1]
NOT_PACKAGED = {"tests", "benchmarks", "examples"}
TOOL: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
WHEEL: dict[str, Any] = TOOL["hatch"]["build"]["targets"]["wheel"]
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")} - NOT_PACKAGED


def test_every_package_is_mapped_into_the_wheel() -> None:
    sources: dict[str, str] = WHEEL["sources"]
    assert sources == {"src/moltbot": "moltbot"} | {name: f"moltbot/{name}" for name in PACKAGES}
    included = {path for path in WHEEL["only-include"] if not path.startswith("src/")}
    assert included == PACKAGES


def test_every_package_is_linked_relatively() -> None:
    links = {path for path in (ROOT / "src" / "moltbot").iterdir() if path.is_symlink()}
    assert {path.name for path in links} == PACKAGES
    for path in links:
        assert os.readlink(path) == f"../../{path.name}"
        assert path.resolve() == ROOT / path.name


def test_everything_in_src_is_in_the_wheel() -> None:
    files = {
        f"src/moltbot/{path.name}"
        for path in (ROOT / "src" / "moltbot").iterdir()
        if path.is_file() and not path.is_symlink()
    }
    assert files == {path for path in WHEEL["only-include"] if path.startswith("src/")}
    assert (ROOT / "src" / "moltbot" / "py.typed").exists()


def test_every_package_has_a_layer() -> None:
    [contract] = [c for c in TOOL["importlinter"]["contracts"] if c["type"] == "layers"]
    layers = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    assert len(layers) == len(set(layers))
    assert {name.removeprefix("moltbot.") for name in layers} == PACKAGES


def test_every_package_is_refused_by_its_bare_name() -> None:
    assert set(TOOL["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == PACKAGES


def test_every_public_name_can_be_imported() -> None:
    for name in moltbot.__all__:
        assert getattr(moltbot, name) is not None
