"""A handler that is installed as a package: `module:name`, editable, in a virtual environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import msgpack
import pytest

from tests.fakes import PATIENCE
from tests.legit.walls import STRONGEST, unavailable
from tests.support import environment

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "tiny-agent"
version = "1.0"

[tool.hatch.build]
dev-mode-dirs = ["src"]

[tool.hatch.build.targets.wheel]
packages = ["src/tiny_agent"]
"""
MODULE = """
import sys
from importlib.metadata import version
import aiohttp
from tiny_agent.words import WORD

async def agent(ctx, payload):
    return [WORD, version("tiny-agent"), sys.prefix, __file__]
"""
GATEWAY = f"""
import asyncio, json, sys
from moltbot import Request, create_gateway_router
from moltbot.core.errors import IsolationUnavailable

async def main():
    settings = {{"sandbox_base_dir": sys.argv[1], "worker_count": 1, "handler": "tiny_agent:agent"}}
    async with create_gateway_router(pool_config=settings | {{"isolation": {STRONGEST!r}}}) as router:
        return (await router.route(Request("agent", "ada"))).payload

try:
    print(json.dumps(asyncio.run(main())))
except IsolationUnavailable as error:
    print(json.dumps(str(error)))
"""


def run(*words: object, home: Path) -> str:
    result = subprocess.run(
        [str(word) for word in words],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_an_editable_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    pytest.importorskip("pip")
    package = tmp_path / "project" / "src" / "tiny_agent"
    package.mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text(MODULE)
    (package / "words.py").write_text("WORD = 'tiny'\n")
    place = tmp_path / "environment"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    # What is installed for these tests serves the new environment too: nothing is downloaded.
    (packages,) = place.glob("lib/python*/site-packages")
    ours = Path(msgpack.__file__).parents[1]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
        "--quiet",
    ]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    run(*pip, *offline, "--editable", tmp_path / "project", home=tmp_path)
    told = json.loads(run(python, "-c", GATEWAY, tmp_path / "base", home=tmp_path))
    if isinstance(told, str):
        unavailable(told)
    assert told == ["tiny", "1.0", str(place), str(package / "__init__.py")]
