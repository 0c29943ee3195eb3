"""Finding the author's code, and one clear sentence where there is none to find."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from moltbot.core.errors import HandlerError
from moltbot.worker import builtin, handlers
from moltbot.worker.handlers import Registry
from moltbot.worker.loader import LoadError, load
from moltbot.worker.testing import HandlerTester
from tests.worker.conftest import WriteHandler

AGENT = """
    @handler("agent")
    async def agent(ctx, payload):
        return __name__
"""


def folder(path: str) -> None:
    """Make the folder of a file importable, as an installed module is."""
    sys.path.insert(0, str(Path(path).parent))


def test_no_source_gives_the_built_in_handlers() -> None:
    assert sorted(load(None).handlers) == ["agent", "command", "health", "session"]


def test_a_file_replaces_the_built_in_handlers_but_health(write: WriteHandler) -> None:
    registry = load(write(AGENT))
    assert sorted(registry.handlers) == ["agent", "health"]
    assert registry.handlers["health"] is builtin.health


def test_a_file_may_bring_its_own_health(write: WriteHandler) -> None:
    registry = load(write('@handler("health")\ndef health(ctx, payload): ...\n'))
    assert registry.handlers["health"] is not builtin.health


async def test_a_file_is_imported_under_its_own_stem_beside_its_neighbours(
    write: WriteHandler, tmp_path: Path
) -> None:
    write("VALUE = 5\n", "neighbour_of_it.py")
    path = write(
        "from neighbour_of_it import VALUE\n@handler('n')\ndef n(ctx, p): return [__name__, VALUE]\n"
    )
    async with HandlerTester(path, tmp_path) as tester:
        assert (await tester.call("n")).payload == ["the_handler", 5]


async def test_the_same_file_may_serve_several_workers_of_a_process(
    write: WriteHandler, tmp_path: Path
) -> None:
    path = write(AGENT)
    async with HandlerTester(path, tmp_path / "a") as one, HandlerTester(path, tmp_path / "b") as other:
        answers = await asyncio.gather(one.call("agent"), other.call("agent"))
    assert [answer.payload for answer in answers] == ["the_handler"] * 2
    async with HandlerTester(path, tmp_path / "a") as again:
        assert (await again.call("agent")).payload == "the_handler"


async def test_the_frames_tell_why_a_source_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(
        HandlerError, match=r"^there is no handler file nowhere\.py: give path/to/file\.py or mod"
    ):
        async with HandlerTester("nowhere.py", tmp_path):
            pass


async def test_an_import_that_fails_is_told_with_its_error(write: WriteHandler, tmp_path: Path) -> None:
    with pytest.raises(
        HandlerError, match=r"the_handler\.py does not load: ZeroDivisionError: division by zero"
    ):
        async with HandlerTester(write("1 / 0\n"), tmp_path):
            pass
    assert "the_handler" not in sys.modules


BROKEN: dict[str, tuple[str, type[BaseException]]] = {
    "syntax": ("def (:\n", SyntaxError),
    "a missing import": ("import no_such_module_anywhere\n", ModuleNotFoundError),
    "an exit": ("raise SystemExit(3)\n", SystemExit),
    "two of a type": ('handler("a")(print)\nhandler("a")(print)\n', ValueError),
    "no brackets": ("@handler\ndef agent(ctx, payload): ...\n", TypeError),
    "no type": ('@handler("")\ndef agent(ctx, payload): ...\n', ValueError),
    "a long type": ('@handler("x" * 65)\ndef agent(ctx, payload): ...\n', ValueError),
    "a type that cannot be shown": ('@handler("a\\n")\ndef agent(ctx, payload): ...\n', ValueError),
    "no function": ('handler("agent")(5)\n', TypeError),
}


@pytest.mark.parametrize(("code", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_what_the_import_raises_is_raised_and_leaves_no_module(
    write: WriteHandler, code: str, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        load(write(code))
    assert "the_handler" not in sys.modules


@pytest.mark.parametrize("code", ["", "def agent(ctx, payload): ...\n", "@on_start\ndef start(): ...\n"])
def test_a_file_that_registers_nothing_is_told_how(write: WriteHandler, code: str) -> None:
    with pytest.raises(
        LoadError, match=r'registers no handler: decorate a function with @handler\("agent"\)$'
    ):
        load(write(code))


@pytest.mark.parametrize("name", ["my-handler.py", "1st.py", "a.b.py", "a b.py"])
def test_a_file_whose_name_is_no_identifier_is_refused(write: WriteHandler, name: str) -> None:
    with pytest.raises(
        LoadError, match=r"cannot be imported: name the file with letters, digits and _ only$"
    ):
        load(write(AGENT, name))


@pytest.mark.parametrize("name", ["json.py", "asyncio.py", "antigravity.py", "msgpack.py", "moltbot.py"])
def test_a_file_with_the_name_of_a_module_is_refused(write: WriteHandler, name: str) -> None:
    with pytest.raises(LoadError, match=rf"^{name} has the name of a module that Python already has: rename"):
        load(write(AGENT, name))


def test_two_files_of_one_name_are_not_taken_for_each_other(write: WriteHandler, tmp_path: Path) -> None:
    load(write(AGENT))
    other = tmp_path / "other" / "the_handler.py"
    other.parent.mkdir()
    other.write_text("")
    with pytest.raises(LoadError, match="has the name of a module that Python already has"):
        load(str(other))


@pytest.mark.parametrize("source", ["nowhere", "./nowhere.py", "", "folder"])
def test_a_file_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        LoadError, match=r"there is no handler file .*: give path/to/file\.py or module:name$"
    ):
        load(source)


def test_a_file_of_another_kind_is_refused(write: WriteHandler) -> None:
    with pytest.raises(LoadError, match=r"handler_text.txt is not a Python file"):
        load(write("", "handler_text.txt"))


MODULE = "def serve(ctx, payload): return 'module'\nNUMBER = 5\n"


async def test_a_named_function_of_a_module_answers_agent(write: WriteHandler, tmp_path: Path) -> None:
    folder(write(MODULE, "the_module.py"))
    async with HandlerTester("the_module:serve", tmp_path) as tester:
        assert (await tester.call("agent")).payload == "module"


def test_a_decorated_function_keeps_the_type_it_names(write: WriteHandler) -> None:
    folder(write('@handler("other")\ndef serve(ctx, payload): ...\n', "the_module.py"))
    assert sorted(load("the_module:serve").handlers) == ["health", "other"]
    assert sorted(load("the_module:serve").handlers) == ["health", "other"]


def test_a_module_in_a_package_is_found(write: WriteHandler) -> None:
    path = Path(write("", "marker.py")).parent / "the_package"
    path.mkdir()
    (path / "__init__.py").write_text("")
    (path / "inner.py").write_text(MODULE)
    folder(str(path))
    assert sorted(load("the_package.inner:serve").handlers) == ["agent", "health"]


WRONG = {
    "no_such_module:serve": "^there is no module 'no_such_module': check the name, and that it is installed here$",
    "the_module.inner:serve": "^there is no module 'the_module.inner'",
    "the_module:nothing": "^module 'the_module' has no 'nothing'$",
    "the_module:": "^module 'the_module' has no ''$",
    "the_module:NUMBER": "^the_module:NUMBER is not a function but int$",
}


@pytest.mark.parametrize(("source", "sentence"), WRONG.items(), ids=WRONG.keys())
def test_a_wrong_module_or_name_is_told(write: WriteHandler, source: str, sentence: str) -> None:
    folder(write(MODULE, "the_module.py"))
    with pytest.raises(LoadError, match=sentence):
        load(source)


def test_a_module_that_is_there_but_misses_another_tells_of_the_other(write: WriteHandler) -> None:
    folder(write("import no_such_module_anywhere\n", "the_module.py"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        load("the_module:serve")


@pytest.mark.parametrize("kind", ["a", "x" * 64, "chat/completions", "\u00e9"])
def test_a_registry_takes_any_short_printable_type(kind: str) -> None:
    registry = Registry()
    registry.add(kind, print)
    assert registry.handlers == {kind: print}


@pytest.mark.parametrize("kind", ["", "x" * 65, "a\n", "\ud800", 5, None])
def test_a_registry_refuses_other_types(kind: Any) -> None:
    with pytest.raises(ValueError, match="a handler's type must be a printable string of 1 to 64 characters"):
        Registry().add(kind, print)


def test_the_decorators_hand_the_function_back(write: WriteHandler) -> None:
    def function() -> None: ...

    assert handlers.handler("a")(function) is function
    for hook in (handlers.on_start, handlers.on_stop, handlers.on_arrive, handlers.on_leave):
        assert hook(function) is function
