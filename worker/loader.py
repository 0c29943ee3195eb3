"""Finds the author's code: `path/to/file.py` or `module:name`.

Importing runs the author's code; what it registers is in `handlers.registry`. A handler source replaces all built-in
handlers but `health`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from moltbot.worker import handlers
from moltbot.worker.handlers import Registry


class LoadError(Exception):
    """The handler source cannot be used; the message says why and what to do."""


def load(source: str | None) -> Registry:
    """Return the registry for `source`, or the built-in one for None; raises LoadError, or what the import raises."""
    from moltbot.worker import builtin

    if source is None:
        return builtin.registry
    if ":" in source and not source.endswith(".py"):
        _load_module(source)
    else:
        _load_file(Path(source))
    registry = handlers.registry
    if not registry.handlers:
        raise LoadError(f'{source} registers no handler: decorate a function with @handler("agent")')
    registry.handlers.setdefault("health", builtin.registry.handlers["health"])
    return registry


def _load_module(source: str) -> None:
    module_name, _, name = source.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise LoadError(
            f"there is no module {error.name!r}: check the name, and that it is installed here"
        ) from None
    found = getattr(module, name, None)
    if found is None:
        raise LoadError(f"module {module_name!r} has no {name!r}")
    if not callable(found):
        raise LoadError(f"{source} is not a function but {type(found).__name__}")
    if found not in handlers.registry.handlers.values():
        handlers.registry.add("agent", found)


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise LoadError(f"there is no handler file {path}: give path/to/file.py or module:name")
    name = path.stem
    if not name.isidentifier():
        raise LoadError(f"{path.name} cannot be imported: name the file with letters, digits and _ only")
    if _is_loaded(name, path):
        return
    if name in sys.modules or name in sys.stdlib_module_names:
        raise LoadError(f"{path.name} has the name of a module that Python already has: rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is not a Python file: give path/to/file.py or module:name")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and spawned pools look the module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_loaded(name: str, path: Path) -> bool:
    """True if this very file was loaded before: in one process there may be several workers, one after another too."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and Path(file).resolve() == path.resolve()
