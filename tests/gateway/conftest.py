"""One gateway for all tests of a module, and after each of them the proof that it did no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from moltbot.gateway.server import Gateway
from tests.support import gateway_in, post


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """For modules whose tests run on the module's loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`."""
    async with gateway_in(tmp_path_factory.mktemp("gateway") / "base") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def undisturbed(gateway: Gateway) -> AsyncIterator[None]:
    """Another user, before and after: served by the same process, which nothing restarted and nothing keeps busy."""
    before = (await post(gateway, "count", "a bystander")).json["payload"]
    life = (await post(gateway, "whoami", "a bystander")).json["payload"]["life"]
    yield
    assert (await post(gateway, "count", "a bystander")).json["payload"] == before + 1
    assert (await post(gateway, "whoami", "a bystander")).json["payload"]["life"] == life
    status = gateway.router.get_status()
    assert status is not None
    assert (status.running_requests, status.queued_requests) == (0, 0)
    assert [worker.restart_count for worker in status.workers] == [0]
