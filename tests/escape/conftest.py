"""One running gateway per isolation level, shared by the attempts of a module."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from moltbot.core.errors import IsolationUnavailable
from moltbot.sandbox.isolation.plan import Level
from tests.escape.harness import World, unavailable

# What the attempts are after, and how they go about it, is Linux's own; elsewhere there is no wall to try.
collect_ignore = [] if sys.platform == "linux" else ["test_attempts.py", "test_table.py"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(level, id=level.value, marks=pytest.mark.xdist_group(f"escape-{level}"))
        for level in Level
    ],
)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with two workers at this level."""
    level: Level = request.param
    try:
        with World(level, tmp_path_factory.mktemp(f"escape-{level}")) as running:
            yield running
    except IsolationUnavailable as error:
        unavailable(level, error)
