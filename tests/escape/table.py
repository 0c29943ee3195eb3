"""What an attempt to escape is, and what is expected of it at each isolation level. The attempts are in `attempts_*.py`.

A level that does not stop an attempt says so here, as `OPEN` with the reason: nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moltbot.sandbox.isolation.plan import Level

Outcome = Literal["refused", "open"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What happens at one level. how: for `refused`, the ways that count (errno names such as EPERM, or words that the program
    gives to `refused()`); for `open`, why this level does not stop it."""

    outcome: Outcome
    how: tuple[str, ...]


def refused(*how: str) -> Expected:
    return Expected("refused", how)


def is_open(why: str) -> Expected:
    return Expected("open", (why,))


def at(bubblewrap: Expected, landlock: Expected, directories: Expected) -> Mapping[Level, Expected]:
    """What is expected at each level, strongest first."""
    return {Level.BUBBLEWRAP: bubblewrap, Level.LANDLOCK: landlock, Level.DIRECTORIES: directories}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. tries: what it is after, in words. taught_by: the CVE, report or manual page that taught it.

    program: Python that runs inside a real worker, after `prelude.py`, with the `facts` of `harness.py`. An OSError that it
    lets through is a refusal with that errno; else it must end by `refused(word)` or `escaped(what)`. by: it runs as a child
    process of the handler, or in the worker process itself, in the handler's thread.
    """

    name: str
    tries: str
    taught_by: str
    program: str
    expected: Mapping[Level, Expected]
    by: Literal["child", "worker"] = "child"
