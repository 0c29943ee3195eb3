"""A record becomes one line, readable or JSON, with its fields, and says nothing of users unless it may."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import sys
from typing import Any

import pytest

from moltbot.core.keyed_hash import KeyedHash
from moltbot.sandbox.log_lines import WITHHELD, line_formatter, shown_user

NASTY = "a\nb\r\x1b[2J\x00\x7f\x9b\u2028\u202e ü"
FORMATS = ["text", "json"]


def record(sentence: str, *arguments: object, error: bool = False, **fields: Any) -> logging.LogRecord:
    """A record as `logging` makes it, inside an `except` if `error`."""
    made = logging.getLogger("moltbot.test").makeRecord(
        "moltbot.test",
        logging.WARNING,
        __file__,
        1,
        sentence,
        arguments,
        sys.exc_info() if error else None,
        extra=fields,
    )
    made.created = 1_700_000_000.1234
    return made


def text(*arguments: Any, user_ids: bool = False, **fields: Any) -> str:
    return line_formatter("text", log_user_ids=user_ids).format(record(*arguments, **fields))


def document(*arguments: Any, user_ids: bool = False, **fields: Any) -> dict[str, Any]:
    line = line_formatter("json", log_user_ids=user_ids).format(record(*arguments, **fields))
    assert line.isascii()
    assert "\n" not in line
    return dict(json.loads(line))


def test_a_readable_line_is_time_level_logger_and_sentence() -> None:
    assert text("%s is %d", "this", 3) == "2023-11-14T22:13:20.123Z WARNING moltbot.test this is 3"


def test_a_json_line_has_the_same_and_the_fields() -> None:
    found = document("%s #3: new", "worker-1", worker="worker-1", incarnation=3, requestId="r", user="user:x")
    assert found == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "WARNING",
        "logger": "moltbot.test",
        "message": "worker-1 #3: new",
        "worker": "worker-1",
        "incarnation": 3,
        "requestId": "r",
        "user": "user:x",
    }


def test_a_readable_line_adds_the_fields_that_the_sentence_does_not_say() -> None:
    line = text("worker-1 #3: new", worker="worker-1", incarnation=3, requestId="r 1", user=None)
    assert line.endswith('worker-1 #3: new requestId="r 1"')
    assert text("worker-10 failed", worker="worker-1").endswith(" failed worker=worker-1")


def test_what_would_end_a_line_or_move_a_cursor_is_escaped() -> None:
    line = text("%s", NASTY, requestId=NASTY)
    assert line.isprintable()
    assert "a\\nb\\r\\x1b[2J\\x00\\x7f\\x9b\\u2028\\u202e ü" in line
    assert document("%s", NASTY, requestId=NASTY)["message"] == NASTY
    assert document("%s", "\ud800")["message"] == "\ud800"


def test_a_traceback_is_indented_lines_or_one_field() -> None:
    try:
        raise ValueError("one\ntwo\x1b")
    except ValueError:
        first, *rest = text("it failed", error=True, user_ids=True).split("\n")
        found = document("it failed", error=True, user_ids=True)
    assert first.endswith("it failed")
    assert all(re.match(r"    \S?", line) and line.isprintable() for line in rest)
    assert rest[-2:] == ["    ValueError: one", "    two\\x1b"]
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert found["traceback"].endswith("ValueError: one\ntwo\x1b")


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("link", ["cause", "context", "group"])
def test_the_text_of_exceptions_is_shown_only_where_user_ids_may_be(log_format: Any, link: str) -> None:
    user = "ada " + "lovelace"  # what stands in the source is shown, for it is no user's
    try:
        try:
            raise KeyError(user)
        except KeyError as error:
            match link:
                case "cause":
                    raise ValueError(user) from error
                case "group":
                    raise ExceptionGroup(user, [error, ValueError(user)]) from None
            raise ValueError(user)  # noqa: B904  # the context is meant
    except Exception:
        made = record("it failed", error=True)
    hidden = line_formatter(log_format, log_user_ids=False).format(made)
    assert "ada lovelace" not in hidden
    assert "KeyError" in hidden
    assert ("ExceptionGroup" if link == "group" else f"ValueError {WITHHELD}") in hidden
    assert link == "group" or f"KeyError {WITHHELD}" in hidden
    assert line_formatter(log_format, log_user_ids=True).format(made).count("ada lovelace") >= 2


def test_an_exception_without_its_text_still_says_what_and_where() -> None:
    values = {"ada": 1}
    try:
        values["b" + "en"]
    except KeyError:
        line = text("it failed", error=True)
    assert "'ben'" not in line
    assert f"KeyError {WITHHELD}" in line
    assert "test_log_lines.py" in line
    try:
        os.stat("/no/such/ada")
    except OSError:
        line = text("it failed", error=True)
    assert "ada" not in line.rpartition("\n")[2]
    assert line.endswith("FileNotFoundError: [Errno 2] No such file or directory")


def test_a_traceback_that_another_handler_has_formatted_is_not_taken_over() -> None:
    try:
        raise KeyError("b" + "en")
    except KeyError:
        made = record("it failed", error=True)
    logging.Formatter().format(made)
    assert made.exc_text is not None
    without = logging.makeLogRecord({**vars(made), "exc_info": None})
    for log_format, each in itertools.product(FORMATS, (made, without)):
        assert "'ben'" not in line_formatter(log_format, log_user_ids=False).format(each)  # type: ignore[arg-type]


def test_a_user_is_shown_by_a_name_that_says_nothing_unless_ids_may_be() -> None:
    keyed = KeyedHash("k" * 40)
    assert shown_user(keyed, True, "ada") == "ada"
    assert shown_user(keyed, False, "ada") == keyed.name("ada")
    assert "ada" not in shown_user(keyed, False, "ada")
    assert shown_user(keyed, False, "\ud800") == "user:-"
