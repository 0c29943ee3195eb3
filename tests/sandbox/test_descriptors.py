"""What a child is given by descriptors: the numbers in its command line, what it reads there, and that nothing stays open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from moltbot.sandbox import descriptors as descriptors_module
from moltbot.sandbox.descriptors import Descriptors
from moltbot.sandbox.launch import STATUS_PIPE, Attached, Word

READ = "import os, sys; [sys.stdout.buffer.write(os.read(int(n), 1 << 20) + b'|') for n in sys.argv[1:]]"


def open_descriptors() -> set[str]:
    return {name for name in os.listdir("/dev/fd") if os.path.lexists(f"/dev/fd/{name}")}


@pytest.fixture(autouse=True)
def none_is_left_open() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture(params=["in memory", "in a file without a name"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where content is held: not every system can do it in memory."""
    if request.param != "in memory":
        monkeypatch.delattr(os, "memfd_create", raising=False)


def read_by_a_child(*words: Word) -> bytes:
    """What a child finds behind the words."""
    with Descriptors() as given:
        argv = [sys.executable, "-c", READ, *given.resolve(words)]
        return subprocess.run(argv, pass_fds=given.passed, stdout=subprocess.PIPE, check=True).stdout


def test_text_stays_as_it_is() -> None:
    with Descriptors() as given:
        assert given.resolve(["bwrap", "--", "", "a b", "7"]) == ["bwrap", "--", "", "a b", "7"]
        assert (given.passed, given.status) == ((), None)


@pytest.mark.usefixtures("held")
def test_a_child_reads_each_content_from_its_start() -> None:
    words = [Attached(b"one"), Attached(b""), Attached(b"\x00\xff\n"), Attached(b"x" * 100_000)]
    assert read_by_a_child(*words) == b"one||\x00\xff\n|" + b"x" * 100_000 + b"|"


@pytest.mark.usefixtures("held")
def test_words_in_a_descriptor_are_joined_by_nul_and_name_their_own_descriptors() -> None:
    inner = Attached(b"the program of a filter")
    with Descriptors() as given:
        [number] = given.resolve([Attached(("--seccomp", inner, "--dir", "/ä b"))])
        first, second, *rest = os.pread(int(number), 1000, 0).split(b"\0")
        assert (first, rest) == (b"--seccomp", [b"--dir", "/ä b".encode(), b""])
        assert os.pread(int(second), 1000, 0) == b"the program of a filter"
        assert set(given.passed) == {int(number), int(second)}


@pytest.mark.usefixtures("held")
def test_nothing_is_inherited_by_chance_and_content_has_no_name() -> None:
    with Descriptors() as given:
        [number] = map(int, given.resolve([Attached(b"secret")]))
        assert not os.get_inheritable(number)
        assert os.fstat(number).st_nlink == 0


def test_a_status_pipe_carries_what_the_child_says_until_it_ends() -> None:
    with Descriptors() as given:
        [number] = given.resolve([STATUS_PIPE])
        assert given.passed == (int(number),)
        assert given.status is not None
        with pytest.raises(BlockingIOError):
            os.read(given.status, 1)
        program = f"import os; os.write({number}, b'hello')"
        subprocess.run([sys.executable, "-c", program], pass_fds=given.passed, check=True)
        given.close_passed()
        assert os.read(given.status, 100) == b"hello"
        assert os.read(given.status, 100) == b"", "nobody else holds it open"


def test_what_the_child_has_is_closed_here_and_may_be_closed_again() -> None:
    with Descriptors() as given:
        given.resolve([Attached((Attached(b"a"), STATUS_PIPE)), Attached(b"b")])
        passed = given.passed
        assert len(passed) == 4
        given.close_passed()
        assert given.passed == ()
        for number in passed:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
        given.close_passed()


def test_what_was_opened_before_a_failure_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    left = 2

    def scarce(descriptor: int) -> int:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(24, "Too many open files")
        return os.dup(descriptor)

    class Scarce:
        dup = staticmethod(scarce)

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    monkeypatch.setattr(descriptors_module, "os", Scarce())
    with pytest.raises(OSError, match="Too many open files"), Descriptors() as given:
        given.resolve([STATUS_PIPE, Attached(b"one"), Attached(b"two")])
