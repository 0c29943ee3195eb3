"""The conversation record: whole lines or none, in order, from any thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.worker.record import FILE_NAME, MAX_ENTRY_BYTES, Record
from moltbot.worker.testing import HandlerTester
from tests.worker.conftest import WriteHandler

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
entries = st.recursive(
    scalars | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def record(directory: Path) -> Record:
    return Record(directory, durable=False)


def fill(directory: Path, values: list[Any]) -> Record:
    result = record(directory)
    result.clear()
    for value in values:
        result.append(value)
    return result


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    values = [
        {"role": "user", "content": "line\nbreak \u2028 \U0001f600"},
        1,
        None,
        "text",
        [1, [2]],
        -1.5,
        True,
    ]
    assert fill(tmp_path / "new" / "folder", values).read() == values
    assert record(tmp_path / "new" / "folder").read() == values


def test_a_record_that_was_never_written_is_empty_and_makes_nothing(tmp_path: Path) -> None:
    empty = record(tmp_path / "new")
    empty.clear()
    assert (empty.read(), empty.last(5), list(tmp_path.iterdir())) == ([], [], [])


def test_clear_removes_all_and_appending_goes_on(tmp_path: Path) -> None:
    cleared = fill(tmp_path, [1, 2])
    cleared.clear()
    assert cleared.read() == []
    cleared.append(3)
    assert cleared.read() == [3]


@given(values=st.lists(entries, max_size=12), count=st.integers(-2, 15))
def test_last_is_the_end_of_read(
    values: list[Any], count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    filled = fill(tmp_path_factory.mktemp("record"), values)
    assert filled.read() == values
    assert filled.last(count) == (values[-count:] if count > 0 else [])


@given(data=st.data())
def test_whatever_a_crash_cuts_off_the_rest_is_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("record")
    values = data.draw(st.lists(entries, min_size=1, max_size=6))
    filled = fill(directory, values)
    file = directory / FILE_NAME
    size = data.draw(st.integers(0, file.stat().st_size))
    os.truncate(file, size)
    whole = file.read_bytes().count(b"\n")
    assert filled.read() == values[:whole]
    filled.append("after")
    assert filled.read() == [*values[:whole], "after"]
    for count in range(1, 8):
        assert filled.last(count) == filled.read()[-count:]


def test_a_number_that_a_crash_cut_short_is_not_another_number(tmp_path: Path) -> None:
    filled = fill(tmp_path, [1, 12345])
    os.truncate(tmp_path / FILE_NAME, len(b"1\n123"))
    assert filled.read() == [1]
    filled.append(6)
    assert filled.read() == [1, 6]


@pytest.mark.parametrize("size", [30, 30_000, 65_535, 65_536, 65_537, 200_000])
def test_last_finds_its_entries_over_many_blocks_and_torn_lines(tmp_path: Path, size: int) -> None:
    filled = record(tmp_path)
    for number in range(12):
        filled.append([number, "x" * size])
        if number % 3 != 1:
            with open(tmp_path / FILE_NAME, "ab") as file:
                file.write(b'{"torn": "' + b"y" * size)
    everything = filled.read()
    assert [entry[0] for entry in everything] == list(range(12))
    for count in (1, 2, 3, 5, 11, 12, 13, 100):
        assert filled.last(count) == everything[-count:]


def test_garbage_between_the_lines_is_ignored(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b'1\n\n\xff\xfe\n{"a":\n\0\0\0\0\n2\nNaN_\n3')
    assert record(tmp_path).read() == [1, 2]
    assert record(tmp_path).last(2) == [1, 2]


NO_JSON: list[Any] = [
    object(),
    {1},
    b"bytes",
    float("nan"),
    float("inf"),
    "\ud800",
    {(1, 2): 3},
    [1, object()],
]


@pytest.mark.parametrize("value", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_value_is_refused_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    filled = fill(tmp_path, [1])
    with pytest.raises((TypeError, ValueError)):
        filled.append(value)
    assert (tmp_path / FILE_NAME).read_bytes() == b"1\n"


def test_an_entry_up_to_a_mebibyte_is_kept_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    largest = "x" * (MAX_ENTRY_BYTES - 3)
    filled = fill(tmp_path, [largest])
    with pytest.raises(
        ValueError, match="an entry of 1048577 bytes is over the limit of 1048576: put it in a file"
    ):
        filled.append(largest + "x")
    assert filled.read() == filled.last(1) == [largest]


def test_threads_append_whole_entries(tmp_path: Path) -> None:
    shared = record(tmp_path)

    def append(thread: int) -> None:
        for number in range(60):
            shared.append([thread, number, "x" * 3000])
            shared.last(2)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    everything = shared.read()
    assert len(everything) == 360
    for number in range(6):
        assert [entry[1] for entry in everything if entry[0] == number] == list(range(60))


def test_a_link_in_the_records_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("1\n")
    (tmp_path / FILE_NAME).symlink_to(target)
    for use in (lambda: record(tmp_path).append(2), lambda: record(tmp_path).read()):
        with pytest.raises(OSError, match=FILE_NAME):
            use()
    assert target.read_text() == "1\n"


FULL_DISK = """
import resource, sys
from pathlib import Path
from moltbot.worker.record import Record
record = Record(Path(sys.argv[1]), durable=False)
record.append("x" * 600)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    record.append("y" * 600)
except OSError as error:
    print("refused", record.read() == ["x" * 600])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
record.append("z")
print("later", record.read() == ["x" * 600, "z"])
"""


def test_an_entry_that_does_not_fit_on_the_disk_is_an_error_and_not_lost_in_silence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == ["refused True", "later True"]


@pytest.mark.parametrize("durable", [False, True])
def test_only_a_durable_record_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    appended = Record(tmp_path, durable=durable)
    appended.append(1)
    first = len(synced)
    appended.append(2)
    assert (first, len(synced)) == ((2, 3) if durable else (0, 0))  # the file, and once its directory


async def test_a_handler_keeps_the_record_of_its_user(write: WriteHandler, tmp_path: Path) -> None:
    code = """
        @handler("add")
        def add(ctx, payload):
            ctx.session.append(payload)
            return ctx.session.last(2)
    """
    async with HandlerTester(write(code), tmp_path) as tester:
        for number in range(3):
            await tester.call("add", number, user_id="Ada")
        assert (await tester.call("add", 0, user_id="bob")).payload == [0]
        assert (await tester.call("add", 3, user_id="Ada")).payload == [2, 3]
    lines = (tmp_path / "sessions" / "%41da" / FILE_NAME).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [0, 1, 2, 3]
