"""What a serving process tells Python's collector; in a process of its own, for it holds for the whole process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from moltbot.core.collector import YOUNG_OBJECTS, spare_requests
spare_requests()
assert gc.isenabled() and gc.get_freeze_count() > 1000 and gc.get_threshold()[0] == YOUNG_OBJECTS
class Cycle: pass
cycle = Cycle(); cycle.itself = cycle
import weakref
gone = weakref.ref(cycle); del cycle
made = [[] for _ in range(YOUNG_OBJECTS + 1)]
assert gone() is None, "what comes later is still collected"
"""


def test_what_exists_is_spared_and_what_comes_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
