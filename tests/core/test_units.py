"""Times and sizes as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.core.units import approximate_size, format_duration, format_size, parse_duration, parse_size

LARGEST = 1 << 53
DURATIONS = {
    120000: 120_000,
    0: 0,
    1500.0: 1500,
    2.5: 2,
    "250": 250,
    "250ms": 250,
    "1.5s": 1500,
    "2m": 120_000,
    "2M": 120_000,
    " 2 m ": 120_000,
    "0.5h": 1_800_000,
    "1d": 86_400_000,
    str(LARGEST): LARGEST,
}
SIZES = {
    4096: 4096,
    256 * 1024 * 1024: 268_435_456,
    "4096": 4096,
    "0": 0,
    "1b": 1,
    "1KB": 1024,
    "1kib": 1024,
    "512MB": 536_870_912,
    "512 mb": 536_870_912,
    "512m": 536_870_912,
    "1.5GB": 1_610_612_736,
    "1g": 1 << 30,
    "2TB": 1 << 41,
    "8192tb": LARGEST,
}
NEITHER: list[Any] = [
    "lots",
    "",
    " ",
    ".",
    "5.",
    ".5",
    "1,5s",
    "1_000",
    "1e3",
    "0x10",
    "2 m 3",
    "2m\n3",
    "\u0662",  # a digit, but not an ASCII one
    True,
    False,
    None,
    b"5",
    [5],
    {},
    5j,
    float("nan"),
    float("inf"),
    "nan",
    "inf",
    LARGEST + 1,
    str(LARGEST + 1),
    "9" * 5000,
    10**30,
    10**5000,
    1e300,
]


@pytest.mark.parametrize(("text", "milliseconds"), DURATIONS.items())
def test_a_time_is_read_in_milliseconds(text: Any, milliseconds: int) -> None:
    result = parse_duration(text)
    assert result == milliseconds
    assert type(result) is int


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_is_read_in_bytes(text: Any, size: int) -> None:
    result = parse_size(text)
    assert result == size
    assert type(result) is int


@pytest.mark.parametrize("value", NEITHER, ids=range(len(NEITHER)))
def test_what_is_no_quantity_is_refused_with_an_example_of_one(value: Any) -> None:
    with pytest.raises(ValueError, match=r'"30s" or "2m"'):
        parse_duration(value)
    with pytest.raises(ValueError, match=r'"512MB" or "1GB"'):
        parse_size(value)


@pytest.mark.parametrize("value", [-1, -0.5, "-1", " -2m", "-5MB", float("-inf")])
def test_a_negative_quantity_is_refused_as_such(value: Any) -> None:
    for parse in (parse_duration, parse_size):
        with pytest.raises(ValueError, match="must not be negative"):
            parse(value)


@pytest.mark.parametrize("value", ["5mb", "5x", "5µs", "5sec"])
def test_a_unit_of_another_kind_is_no_time(value: str) -> None:
    with pytest.raises(ValueError, match="a time such as"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["5s", "5h", "5ms", "5bytes"])
def test_a_unit_of_another_kind_is_no_size(value: str) -> None:
    with pytest.raises(ValueError, match="unknown unit .* expected a size"):
        parse_size(value)


@pytest.mark.parametrize("value", ["9007199254740993", "105d9", "104249992d"])
def test_more_than_a_json_number_holds_is_no_time(value: str) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        parse_duration(value)


@given(st.integers(0, LARGEST))
def test_a_shown_time_can_be_typed_again(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


@given(st.integers(0, LARGEST))
def test_a_shown_size_can_be_typed_again(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 1000), st.sampled_from([1, 1000, 60_000, 3_600_000, 86_400_000]))
def test_round_times_can_be_typed_again(count: int, unit: int) -> None:
    assert parse_duration(format_duration(count * unit)) == count * unit


@given(st.integers(0, 1000), st.integers(0, 4))
def test_round_sizes_can_be_typed_again(count: int, power: int) -> None:
    assert parse_size(format_size(count << 10 * power)) == count << 10 * power


@given(st.one_of(st.text(max_size=30), st.floats(), st.integers(), st.binary(max_size=10)))
def test_any_value_gives_a_whole_number_in_range_or_a_value_error(value: Any) -> None:
    for parse in (parse_duration, parse_size):
        try:
            result = parse(value)
        except ValueError:
            continue
        assert type(result) is int
        assert 0 <= result <= LARGEST


def test_the_shortest_exact_form_is_shown() -> None:
    shown = [format_duration(value) for value in (0, 1, 1500, 2000, 120_000, 3_600_000, 172_800_000)]
    assert shown == ["0ms", "1ms", "1500ms", "2s", "2m", "1h", "2d"]
    sizes = [format_size(value) for value in (0, 1000, 1024, 536_870_912, 1 << 30, 1 << 40)]
    assert sizes == ["0B", "1000B", "1KB", "512MB", "1GB", "1TB"]


def test_a_size_for_reading_has_one_decimal() -> None:
    shown = [approximate_size(value) for value in (0, 999, 1536, 24_536_678, 5 << 30, 3 << 40)]
    assert shown == ["0 B", "999 B", "1.5 KB", "23.4 MB", "5.0 GB", "3072.0 GB"]
