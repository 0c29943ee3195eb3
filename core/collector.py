"""Python's collector of cycles, told that this process serves: for programs that are a gateway, not for libraries.

Left alone it looks through all objects, modules included, every few hundred requests, and everybody waits some 35 ms.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""New objects between two looks at the young ones; Python's own 700 are those of a handful of requests."""


def spare_requests() -> None:
    """Never again look at what exists now, and less often at what comes; call once, when everything has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
