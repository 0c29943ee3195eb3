"""Each test imports its handler files into a process that has never seen any."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from moltbot.worker import handlers
from moltbot.worker.handlers import Registry

settings.register_profile("worker", derandomize=True, database=None, deadline=None, max_examples=100)
settings.load_profile("worker")

WriteHandler = Callable[..., str]


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A fresh registry, and nothing stays imported that a test wrote."""
    monkeypatch.setattr(handlers, "registry", Registry())
    path = list(sys.path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = path
    importlib.invalidate_caches()


@pytest.fixture
def write(tmp_path: Path) -> WriteHandler:
    """Write a handler file; its path comes back."""

    def write(code: str, name: str = "the_handler.py") -> str:
        folder = tmp_path / "code"
        folder.mkdir(exist_ok=True)
        imports = "from moltbot.worker.handlers import handler, on_arrive, on_leave, on_start, on_stop\n"
        (folder / name).write_text(imports + textwrap.dedent(code))
        return str(folder / name)

    return write
