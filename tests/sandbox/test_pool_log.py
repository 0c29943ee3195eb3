"""The pool's own log: its format and level, changed while it runs, beside other pools and a program with a level of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.pool_log import PoolLog
from tests.sandbox.pools import running_pool

LOGGER = logging.getLogger("moltbot")
log = logging.getLogger("moltbot.pool")


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    """After each test the logger is as it was before it."""
    before, handlers = LOGGER.level, list(LOGGER.handlers)
    yield
    after, left = LOGGER.level, list(LOGGER.handlers)
    LOGGER.setLevel(before)
    assert (after, left) == (before, handlers)


def opened(base: Path, **settings: Any) -> PoolLog:
    base.mkdir(exist_ok=True)
    made = PoolLog(base, PoolConfig.read(settings))
    made.open()
    return made


def say_all() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.log(level, "a word")


def levels(base: Path) -> list[str]:
    path = base / "logs" / "worker-pool.log"
    return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_setting_says_from_which_level_on_records_are_taken(
    tmp_path: Path, level: str, count: int
) -> None:
    pool_log = opened(tmp_path, log_level=level)
    say_all()
    pool_log.close()
    say_all()
    assert levels(tmp_path) == ["DEBUG", "INFO", "WARNING", "ERROR"][4 - count :]


def test_a_change_is_in_force_at_once(tmp_path: Path) -> None:
    pool_log = opened(tmp_path)
    log.debug("not yet")
    pool_log.set_level("debug")
    log.debug("now")
    pool_log.set_level("error")
    log.warning("no more")
    pool_log.close()
    assert levels(tmp_path) == ["DEBUG"]
    assert pool_log.level == "error"


def test_pools_do_not_change_each_others_level(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "one", log_level="error"), opened(tmp_path / "two")
    one.set_level("debug")
    log.debug("for one")
    two.set_level("warning")
    log.info("for one")
    one.close()
    log.info("for none")
    log.warning("for two")
    two.close()
    assert levels(tmp_path / "one") == ["DEBUG", "INFO"]
    assert levels(tmp_path / "two") == ["WARNING"]


@pytest.mark.parametrize("theirs", [logging.DEBUG, logging.INFO, logging.ERROR, logging.NOTSET])
def test_a_program_around_it_finds_its_level_again_and_never_hears_less(tmp_path: Path, theirs: int) -> None:
    before = LOGGER.level
    LOGGER.setLevel(theirs)
    pool_log = opened(tmp_path, log_level="warning")
    during = LOGGER.getEffectiveLevel()
    pool_log.close()
    pool_log.close()
    after = LOGGER.level
    LOGGER.setLevel(before)
    assert during == min(logging.WARNING, theirs or logging.WARNING)
    assert after == theirs


async def test_what_becomes_of_a_worker_is_told_with_worker_and_incarnation_as_fields(tmp_path: Path) -> None:
    async with running_pool(tmp_path, logFormat="json") as running:
        path = running.base / "logs" / "worker-pool.log"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    ready = [line for line in lines if line["message"].endswith("starting -> ready")]
    assert [(line["worker"], line["incarnation"]) for line in ready] == [("worker-0", 1)]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
