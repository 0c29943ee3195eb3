"""What every test run does at its end: it looks whether it left a process behind.

On Linux each process of the run adopts the orphans below it, so that a worker whose gateway was killed still counts as
this run's; elsewhere only what hangs below the run is seen. Works the same with and without pytest-xdist.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator, Iterator

import psutil
import pytest

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 15.0

if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    """Fail the last test of the run if a worker, or anything that is called moltbot, still lives after it."""
    yield
    _, alive = psutil.wait_procs(_ours(), timeout=_PATIENCE)
    left = [f"pid {process.pid}: {' '.join(_command(process))[:200]}" for process in alive]
    for process in alive:
        process.kill()
    assert not left, f"processes of this test run were left behind: {left}"


def _ours() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("moltbot" in word for word in _command(process))
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # gone meanwhile, or a zombie
        return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Some tests log halves of surrogate pairs; pytest-xdist can only carry a report whose text is UTF-8."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
