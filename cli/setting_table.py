"""The settings as people look at them: each with default, value in force, source, range and the ways to write it.

What they mean is in `sandbox/config.py` and `gateway/config.py`, where values come from in `settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from moltbot.cli.connect import default_gateway_directory
from moltbot.cli.settings import _FLAGS, PREFIX, Settings
from moltbot.core.units import parse_duration, parse_rate, parse_size
from moltbot.sandbox.setting_kinds import parse_uids, parser_of, show_value

_WAYS = {
    parse_duration: 'a time: 250 (milliseconds), "250ms", "30s", "2m", "1h", "1d"',
    parse_size: 'a size: 1048576 (bytes), "64KB", "512MB", "1GB"; 1KB is 1024 bytes',
    parse_rate: 'requests per time: "10/s", "600/m", "5000/1h"',
    parse_uids: 'a range: "2000000000-2000999999"',
}


class Row(NamedTuple):
    """One setting; all as text."""

    name: str
    default: str
    value: str
    source: str
    description: str


def setting_rows(settings: Settings, sources: Mapping[str, str]) -> list[Row]:
    """Every setting, in the order of the models."""
    return [
        Row(
            name,
            show_value(field.default, field),
            show_value(getattr(settings, name), field),
            sources.get(name, "default"),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def settings_document(settings: Settings, sources: Mapping[str, str]) -> list[dict[str, str]]:
    """The same for programs."""
    return [row._asdict() for row in setting_rows(settings, sources)]


def where_else(sources: Mapping[str, str]) -> list[str]:
    """The base directory's default differs by command."""
    if "sandbox_base_dir" in sources:
        return []
    return [
        "",
        f"  While sandbox_base_dir is not set, `moltbot gateway` uses {default_gateway_directory()},",
        "  and `moltbot workers demo` a fresh directory below the default.",
    ]


def allowed(field: FieldInfo) -> str:
    """Which values are possible: a range, a choice, or `any`."""
    least, most = (_bound(field, name) for name in ("ge", "le"))
    if least is not None and most is not None:
        return f"{show_value(least, field)} to {show_value(most, field)}"
    if least is not None:
        return f"at least {show_value(least, field)}"
    if most is not None:
        return f"at most {show_value(most, field)}"
    if choices := _choices(field):
        return "one of " + ", ".join(choices)
    return "true or false" if field.annotation is bool else "any"


def way_to_write(field: FieldInfo) -> str:
    """What the value looks like in `moltbot.toml`."""
    kind = _kind(field)
    if (parser := parser_of(field)) in _WAYS:
        return _WAYS[parser]
    if get_origin(kind) is tuple:
        return 'a list: ["a", "b"], or one text: "a b"'
    if kind is bool:
        return "true or false"
    if kind is int:
        return "a whole number"
    return 'a path: "some/file"' if kind is Path else 'text: "..."'


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def flag(name: str) -> str:
    """A setting's flag of `moltbot gateway`, if it has one."""
    from moltbot.cli.gateway import FLAGGED

    return _FLAGS.get(name, f"--{name.replace('_', '-')}") if name in FLAGGED else "none"


def toml_value(value: Any, field: FieldInfo) -> str:
    """A value as it stands in `moltbot.toml`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and parser_of(field) not in _WAYS:
        return str(value)
    if get_origin(_kind(field)) is tuple and parser_of(field) not in _WAYS:
        return f"[{', '.join(_quoted(str(each)) for each in value)}]"
    return _quoted(show_value(value, field))


def example(field: FieldInfo) -> Any:
    """Some value of the right kind, for a setting that is unset by default."""
    parser, kind = parser_of(field), _kind(field)
    least = _bound(field, "ge")
    if parser is parse_rate:
        return parse_rate("600/m")
    if kind is int:
        return least if least is not None else 1
    if get_origin(kind) is tuple:
        return ("a", "b")
    return Path("path/to/file") if kind is Path else "text"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _bound(field: FieldInfo, name: str) -> Any:
    return next((getattr(part, name) for part in field.metadata if hasattr(part, name)), None)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _kind(field: FieldInfo) -> Any:
    """The type of a value that is set, without what is annotated to it."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    optional = NoneType in get_args(field.annotation)
    kind = kinds[0] if optional else field.annotation
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
