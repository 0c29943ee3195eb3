"""Small steps on a user's own directory that must be done the same way everywhere."""

from __future__ import annotations

import os
from pathlib import Path


def make_directory(directory: Path, *, durable: bool = False) -> Path:
    """Make a user's directory (0700) if it is missing; `durable`: so that it survives a power cut. Returns it."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return directory
    except FileNotFoundError:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if durable:
        sync_directory(directory.parent)
    return directory


def sync_directory(directory: Path) -> None:
    """Make a rename or a new file in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
