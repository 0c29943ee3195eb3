"""Times and sizes as people write them: `"512MB"`, `"2m"`, `120000`.

A bare number of time is milliseconds, of size bytes. Sizes are binary (1KB = 1024 bytes), as the settings' defaults
have always been meant. Both directions live here, so that what is shown can be typed again.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TIME = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_SIZE |= {
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
}
_QUANTITY = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*\Z", re.ASCII)
_LARGEST = 1 << 53  # beyond it a JSON number is no longer exact


def parse_duration(value: object) -> int:
    """Milliseconds of `"2m"`, `"1.5s"`, `"250ms"`, `"250"` or `250`; raises ValueError."""
    return _parse(value, _TIME, "ms", 'a time such as 250 (milliseconds), "30s" or "2m"')


def parse_size(value: object) -> int:
    """Bytes of `"512MB"`, `"1.5GB"`, `"4096"` or `4096`; raises ValueError."""
    return _parse(value, _SIZE, "b", 'a size such as 1048576 (bytes), "512MB" or "1GB"')


class Rate(NamedTuple):
    """`amount` requests in `seconds`; as many may come at once."""

    amount: int
    seconds: float

    def __str__(self) -> str:
        time = format_duration(self.seconds * 1000)
        return f"{self.amount}/{time.removeprefix('1') if time[1:].isalpha() else time}"


def parse_rate(value: object) -> Rate:
    """`Rate` of `"600/m"`, `"10/s"` or `"5000/1h"`; raises ValueError."""
    if isinstance(value, Rate):
        return value
    count, slash, unit = value.partition("/") if isinstance(value, str) else ("", "", "")
    count, unit = count.strip(), unit.strip()
    if not slash or not count.isascii() or not count.isdecimal() or not 0 < len(count) < 10 or not int(count):
        raise ValueError('expected a rate such as "10/s" or "600/m"')
    milliseconds = parse_duration(unit if unit[:1].isdigit() else f"1{unit}")
    if not 1000 <= milliseconds <= 86_400_000 or not unit:
        raise ValueError("a rate counts requests in a time between 1s and 1d")
    return Rate(int(count), milliseconds / 1000)


def _parse(value: object, units: dict[str, int], bare: str, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {expected}")
    if isinstance(value, int | float) and value > _LARGEST:  # also what repr cannot show
        raise ValueError(f"too large, expected {expected}")
    text = repr(value) if isinstance(value, int | float) else value
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError(
            "it must not be negative" if text.strip().startswith("-") else f"expected {expected}"
        )
    number, unit = match.groups()
    scale = units.get((unit or bare).lower())
    if scale is None:
        raise ValueError(f"unknown unit {unit!r}, expected {expected}")
    result = round(float(number) * scale) if "." in number else int(number) * scale
    if result > _LARGEST:
        raise ValueError(f"too large, expected {expected}")
    return result


def format_duration(milliseconds: float) -> str:
    """The shortest exact form: `"2m"`, `"1500ms"`, `"0ms"`."""
    return _format(
        round(milliseconds), (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)), "ms"
    )


def format_size(size: int) -> str:
    """The shortest exact form: `"512MB"`, `"1GB"`, `"1000B"`."""
    return _format(size, (("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)), "B")


def _format(value: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    for name, scale in units:
        if value and value % scale == 0:
            return f"{value // scale}{name}"
    return f"{value}{smallest}"


def approximate_size(size: float) -> str:
    """A size for reading, not for typing: `"23.4 MB"`."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
