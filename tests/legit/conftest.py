"""A worker per module and level, whose handler file is the module's `FILE`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.legit.walls import HANDLERS, Walled, walled


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["bubblewrap", "landlock"])
async def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Walled]:
    """For modules whose tests run on the module's loop; their `grants` says what else the worker may read."""
    base = tmp_path_factory.mktemp("honest")
    grants = request.module.grants(base) if hasattr(request.module, "grants") else ()
    settings = {"handler": str(HANDLERS / request.module.FILE), "read_only_paths": grants}
    async with walled(base / "workers", request.param, **settings) as found:
        yield found
