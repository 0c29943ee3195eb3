"""How the values of settings are written, and the sentences for wrong ones. Which settings there are is in `config.py`.

A bare number of time is milliseconds, of size bytes; camelCase is accepted everywhere, and so is the nested
`workerConfig` of the setup guide.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, ValidationError
from pydantic.alias_generators import to_snake
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from moltbot.core.errors import SettingsError, quote
from moltbot.core.units import Rate, format_duration, format_size, parse_duration, parse_rate, parse_size

MAX_WORKERS = 64


def _names(value: object) -> object:
    """A list of names may be written as one text: `"LANG, TERM"`."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


def _command(value: object) -> object:
    """A command may be written as one text: `"node worker.js"`. Files in it are made absolute: workers run elsewhere."""
    words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return words
    return tuple(
        str(Path(word).absolute()) if _is_local_file(index, word) else word
        for index, word in enumerate(words)
    )


def _is_local_file(index: int, word: object) -> bool:
    return isinstance(word, str) and (index > 0 or "/" in word) and os.path.isfile(word)


def _count(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _directory(value: object) -> object:
    if value == "":
        raise ValueError("it is empty: name a directory")
    return value


def _paths(value: object) -> object:
    """A list of absolute paths may be written as one text: `"/srv/models, /srv/data"`."""
    words = _names(value)
    if not isinstance(words, list | tuple):
        return words
    paths = [Path(word).expanduser() if isinstance(word, str) else word for word in words]
    for path in paths:
        if isinstance(path, Path) and not path.is_absolute():
            raise ValueError(f"{quote(str(path))} is not absolute: workers run elsewhere")
    return tuple(paths)


def parse_uids(value: object) -> object:
    """A range of numbers, written as `"2000000000-2000999999"`."""
    if not isinstance(value, str):
        return value
    first, _, last = value.partition("-")
    try:
        numbers = int(first), int(last)
    except ValueError:
        raise ValueError("expected a range such as 2000000000-2000999999") from None
    if not 0 < numbers[0] < numbers[1] < 1 << 31 or numbers[1] - numbers[0] < MAX_WORKERS - 1:
        raise ValueError(f"it must hold at least {MAX_WORKERS} uids between 1 and {(1 << 31) - 1}")
    return numbers


Count = Annotated[int, BeforeValidator(_count)]
Directory = Annotated[Path, BeforeValidator(_directory)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]
Uids = Annotated[tuple[int, int], BeforeValidator(parse_uids)]
Command = Annotated[tuple[str, ...], BeforeValidator(_command)]
Milliseconds = Annotated[int, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_size)]
RequestRate = Annotated[Rate, BeforeValidator(parse_rate)]


def normalise_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """snake_case names, and the keys of the guide's nested `workerConfig` lifted to the top."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = to_snake(key) if isinstance(key, str) else str(key)
        if name == "worker_config":
            if not isinstance(value, Mapping):
                raise ValueError(f"{key} must hold settings, such as maxConcurrent")
            inner = normalise_names(value)
            if twice := sorted(inner.keys() & flat.keys()):
                raise ValueError(f"{twice[0]} is given twice, also in {key}: keep one")
            flat.update(inner)
        elif name in flat:
            raise ValueError(f"{name} is given twice, also as {key}: keep one")
        else:
            flat[name] = value
    return flat


def settings_error(error: ValidationError, names: Iterable[str], source: str) -> SettingsError:
    """Turn pydantic's first complaint into one sentence."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        return unknown_setting(name, names, source)
    if first["loc"]:
        reason = _reason(first, names)
        return SettingsError(
            f"{to_snake(name)} = {quote(first['input'])} (from {source}) is impossible: {reason}"
        )
    reason = first["msg"].removeprefix("Value error, ")
    where = f" (from {source})" if source != "the settings" else ""
    return SettingsError(f"the settings{where} do not fit together: {reason}")


_LIMITS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}


def _reason(complaint: ErrorDetails, names: Iterable[str]) -> str:
    if complaint["type"] in _LIMITS:
        key, words = _LIMITS[complaint["type"]]
        limit = complaint["ctx"][key]
        field = names.get(str(complaint["loc"][0])) if isinstance(names, Mapping) else None
        return f"it must be {words} {show_value(limit, field) if isinstance(field, FieldInfo) else limit}"
    return complaint["msg"].removeprefix("Value error, ").replace("Input should be ", "it must be ")


def parser_of(field: FieldInfo) -> Any:
    """The function that reads this setting's values, such as `parse_duration`; None for plain text, numbers and switches."""
    parts = [*field.metadata]
    for choice in (field.annotation, *get_args(field.annotation)):
        parts += getattr(choice, "__metadata__", ())
    return next((part.func for part in parts if isinstance(part, BeforeValidator)), None)


def show_value(value: Any, field: FieldInfo) -> str:
    """A value as one may type it: times and sizes with units."""
    parser = parser_of(field)
    if value is None:
        return "-"
    if isinstance(value, Rate):
        return str(value)
    if parser is parse_duration:
        return format_duration(value)
    if parser is parse_size:
        return format_size(value)
    if parser is parse_uids:
        return "-".join(map(str, value))
    if isinstance(value, tuple):
        return shlex.join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def unknown_setting(name: str, names: Iterable[str], source: str) -> SettingsError:
    """A name that is no setting, with the nearest one that is."""
    near = difflib.get_close_matches(to_snake(name), list(names), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see `moltbot workers info` for all of them"
    return SettingsError(f"unknown setting {quote(name)} (from {source}): {hint}")
