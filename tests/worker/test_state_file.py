"""The file behind `ctx.state`: whole or not changed at all, and never something that cannot be read back."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.worker.state import FILE_NAME, State, StateError
from tests.worker.peer import DEADLINE


@pytest.mark.parametrize("value", [object(), {1}, 1 << 64, "\ud800", {(1, 2): 3}], ids=range(5))
def test_what_msgpack_cannot_carry_back_is_refused_and_not_written(tmp_path: Path, value: Any) -> None:
    state = State(tmp_path, durable=False)
    state.values["good"] = 1
    state.save()
    state.values["bad"] = value
    with pytest.raises(StateError, match=r"ctx.state holds a value that msgpack cannot carry"):
        state.save()
    assert State(tmp_path, durable=False).values == {"good": 1}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, durable=False)
    state.values["n"] = 1
    state.save()

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        state.values["n"] = 2
        with pytest.raises(OSError, match="no space"):
            state.save()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert State(tmp_path, durable=False).values == {"n": 1}
    state.save()
    assert State(tmp_path, durable=False).values == {"n": 2}


def test_a_reader_beside_the_writer_sees_whole_states_only(tmp_path: Path) -> None:
    state = State(tmp_path, durable=False)
    state.values["pad"] = ["x" * 1000] * 100
    state.save()
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            values = State(tmp_path, durable=False).values
            assert len(values["pad"]) == 100
            seen.append(values.get("n", 0))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        state.values["n"] = number
        state.save()
    done.set()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    assert seen == sorted(seen)


def test_what_a_crash_left_beside_the_file_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / f".{FILE_NAME}.new").write_bytes(b"half a sta")
    state = State(tmp_path, durable=False)
    assert state.values == {}
    state.values["n"] = 1
    state.save()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("durable", [False, True])
def test_only_a_durable_state_is_synced_file_and_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[bool] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.path.isdir(f"/dev/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    state = State(tmp_path / "new", durable=durable)
    state.values["n"] = 1
    state.save()
    assert synced == ([True, False, True] if durable else [])  # the new directory, the file, its name
    assert State(tmp_path / "new", durable=durable).values == {"n": 1}


carried = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text("abc\u00e9")
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab") | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values=st.dictionaries(st.text("abc") | st.integers(-9, 9), carried, max_size=5))
def test_what_msgpack_carries_comes_back_equal(
    values: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("state")
    state = State(directory, durable=False)
    state.values.update(values)
    state.save()
    state.forget()
    assert state.values == values
