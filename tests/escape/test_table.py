"""The tables of attempts: complete, told apart by name, and without a hole at the strongest level."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moltbot.sandbox.isolation.plan import Level
from tests.escape import test_attempts
from tests.escape.table import Attempt


def _attempts() -> Iterator[Attempt]:
    """Of all tables; that of the floods has rows of another kind, with tests of their own."""
    for path in sorted(Path(__file__).parent.glob("attempts_*.py")):
        yield from getattr(importlib.import_module(f"tests.escape.{path.stem}"), "ATTEMPTS", ())


ATTEMPTS = tuple(_attempts())


def test_no_table_is_left_out() -> None:
    assert {attempt.name for attempt in ATTEMPTS} == {attempt.name for attempt in test_attempts.ATTEMPTS}


def test_there_are_at_least_sixty() -> None:
    assert len(ATTEMPTS) >= 60


def test_every_name_stands_for_one_attempt() -> None:
    names = [attempt.name for attempt in ATTEMPTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_it_says_what_is_expected_at_every_level(attempt: Attempt) -> None:
    assert set(attempt.expected) == set(Level)
    for level, expected in attempt.expected.items():
        assert expected.how, level
        assert all(expected.how), level
    assert attempt.tries
    assert attempt.taught_by


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_nothing_is_open_at_the_strongest_level(attempt: Attempt) -> None:
    assert attempt.expected[Level.BUBBLEWRAP].outcome == "refused"


def test_most_attempts_are_shown_to_work_where_nothing_stops_them() -> None:
    """Root can do nearly all of them; an ordinary user's own kernel refuses it some."""
    works = [attempt for attempt in ATTEMPTS if attempt.expected[Level.DIRECTORIES].outcome == "open"]
    assert len(works) > len(ATTEMPTS) / 2
