"""What `/readyz?verbose` says of a database and a disk that hang: the truth, soon, and without piling anything up.

All other states are in `test_ready.py`.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from moltbot.gateway import readiness
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE
from tests.support import call, gateway_in


async def check(gateway: Gateway, name: str) -> dict[str, Any]:
    checks = (await call(gateway, "GET", "/readyz?verbose")).json["checks"]
    return next(found for found in checks if found["name"] == name)


async def until_well(gateway: Gateway, name: str) -> None:
    while not (await check(gateway, name))["ok"]:
        pass


async def test_a_disk_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PATIENCE", 0.05)
    asked, released, usage = [], threading.Event(), shutil.disk_usage

    def hang(path: Path) -> Any:
        asked.append(path)
        released.wait(PATIENCE)
        return usage(path)

    async with gateway_in(tmp_path / "base") as gateway:
        monkeypatch.setattr(shutil, "disk_usage", hang)
        try:
            for _ in range(5):
                found = await check(gateway, "storage")
                assert not found["ok"]
                assert "see to its disk" in found["detail"]
            assert len(asked) == 1
        finally:
            released.set()
        await until_well(gateway, "storage")


async def test_a_database_that_is_busy_is_asked_once_and_its_disk_is_not_blamed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "PATIENCE", 0.05)
    released = threading.Event()
    async with gateway_in(tmp_path / "base") as gateway:
        database = gateway.router.database
        asked, submit = [], database.submit

        def counted(work: Any) -> Any:
            asked.append(work)
            return submit(work)

        monkeypatch.setattr(database, "submit", counted)
        busy = submit(lambda connection: released.wait(PATIENCE))
        try:
            for _ in range(5):
                found = await check(gateway, "database")
                assert not found["ok"]
                assert "wiped" in found["detail"]
            assert len(asked) == 1
        finally:
            released.set()
        assert await busy
        await until_well(gateway, "database")
