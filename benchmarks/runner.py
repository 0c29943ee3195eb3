"""What all benchmarks share: the plan of a run, taking turns, the rows of the table, and the table itself.

Ours and the floor run in turns, a short slice each, in one run on one machine, so that whatever else the machine does
falls on both. A figure is the median over its slices; a ratio is the median of the ratios of neighbouring slices. What
the machine was doing meanwhile is not measured: compare ratios across machines, never times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from moltbot.router.gateway_router import GatewayRouter, create_gateway_router

STATELESS = Path(__file__).with_name("stateless.py")
LIMIT_SECONDS = 180.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure: `turns` slices of `seconds` each, for ours and for the floor; `loop`: asyncio or uvloop."""

    turns: int
    seconds: float
    loop: str

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the chosen event loop; after LIMIT_SECONDS it is cancelled and TimeoutError raised."""

        async def bounded() -> T:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await work

        with asyncio.Runner(loop_factory=loop_factory(self.loop)) as runner:
            return runner.run(bounded())


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The maker of event loops called `name`."""
    if name == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop


def has_uvloop() -> bool:
    return find_spec("uvloop") is not None


# --- rows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Aim:
    """What a row should reach: `value` at most or at least, of our own figure or of its ratio to the floor."""

    value: float
    at_most: bool
    of_ratio: bool

    def met(self, row: Row) -> bool | None:
        figure = row.ratio if self.of_ratio else row.ours
        if figure is None:
            return None
        return figure <= self.value if self.at_most else figure >= self.value


def ratio_at_most(value: float) -> Aim:
    return Aim(value, at_most=True, of_ratio=True)


def ratio_at_least(value: float) -> Aim:
    return Aim(value, at_most=False, of_ratio=True)


def at_most(value: float) -> Aim:
    return Aim(value, at_most=True, of_ratio=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: `ours` and `floor` in `unit`, `ratio` ours to the floor; None where there is none."""

    what: str
    unit: str
    ours: float | None
    floor: float | None = None
    ratio: float | None = None
    aim: Aim | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return self.aim.met(self) if self.aim is not None else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def compared(
    what: str, unit: str, ours: Sequence[float], floor: Sequence[float], aim: Aim | None = None
) -> Row:
    """The row of two series that were measured in turns."""
    ratios = [mine / theirs for mine, theirs in zip(ours, floor, strict=True)]
    return Row(what, unit, statistics.median(ours), statistics.median(floor), statistics.median(ratios), aim)


def skipped(what: str, why: str) -> Row:
    """A row that could not be measured; `why` is one line that says what to do."""
    return Row(what, "", None, note=why)


# --- measuring -----------------------------------------------------------------------------------------


async def in_turns(
    plan: Plan, ours: Callable[[], Awaitable[T]], floor: Callable[[], Awaitable[T]]
) -> tuple[list[T], list[T]]:
    """Run both once to warm up, then in turns; each turn begins with the other one, so that neither is always first."""
    await ours()
    await floor()
    mine: list[T] = []
    theirs: list[T] = []
    for turn in range(plan.turns):
        if turn % 2:
            theirs.append(await floor())
            mine.append(await ours())
        else:
            mine.append(await ours())
            theirs.append(await floor())
    return mine, theirs


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="moltbot-benchmark-") as name:
        yield Path(name).resolve()


def running_config(base: Path, **settings: Any) -> dict[str, Any]:
    """Three workers with the stateless handler in `base`, never recycled for their request count; the rest is default."""
    return {
        "worker_count": 3,
        "sandbox_base_dir": base,
        "handler": str(STATELESS),
        "max_requests": 1_000_000_000,
        **settings,
    }


@contextlib.asynccontextmanager
async def running_router(base: Path, **settings: Any) -> AsyncIterator[GatewayRouter]:
    """A started router with `running_config`."""
    async with create_gateway_router(running_config(base, **settings)) as router:
        yield router


# --- the table -----------------------------------------------------------------------------------------


def machine(plan: Plan) -> dict[str, Any]:
    """What the figures depend on."""
    try:
        uvloop = version("uvloop")
    except PackageNotFoundError:
        uvloop = None
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "loop": plan.loop,
        "uvloopInstalled": uvloop,
        "load": round(os.getloadavg()[0], 2),
        "turns": plan.turns,
        "secondsPerTurn": plan.seconds,
    }


def describe_machine(facts: Mapping[str, Any]) -> str:
    uvloop = facts["uvloopInstalled"]
    return (
        f"{facts['cores']} cores, {facts['python']}, {facts['kernel']}, load {facts['load']} at the start; "
        f"loop {facts['loop']} (uvloop {uvloop or 'not installed'}); "
        f"{facts['turns']} turns of {facts['secondsPerTurn']:g} s"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text."""
    cells = [("what", "ours", "floor", "ratio", "aim", "met")]
    cells += [
        (
            row.what,
            _figure(row.ours, row.unit),
            _figure(row.floor, row.unit),
            "-" if row.ratio is None else f"{row.ratio:.2f}x",
            _aim(row),
            {True: "yes", False: "NO", None: "-"}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = []
    for index, line in enumerate(cells):
        padded = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        note = rows[index - 1].note if index else ""
        lines.append("  ".join(padded).rstrip() + (f"  ({note})" if note else ""))
        if index == 0:
            lines.append("-" * len(lines[0]))
    return "\n".join(lines)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = 0 if value >= 1000 else 1 if value >= 10 else 3
    return f"{value:,.{digits}f} {unit}".rstrip()


def _aim(row: Row) -> str:
    if row.aim is None:
        return "-"
    sign = "<=" if row.aim.at_most else ">="
    return f"{sign} {row.aim.value:g}x" if row.aim.of_ratio else f"{sign} {row.aim.value:g} {row.unit}"
