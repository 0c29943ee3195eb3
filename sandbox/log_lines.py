"""How a record of a log becomes one line: readable, or one JSON object; and what of a user may stand in it.

Which file the lines go to is in `logs.py`; the lines of the access log, which are no records, in `gateway/access_log.py`. What
a handler prints is its author's business and is not looked at here.

A caller gives facts as fields: `log.warning("%s: ...", worker, extra={"worker": worker, "incarnation": 3})`.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

from moltbot.core.errors import clean_text
from moltbot.core.keyed_hash import KeyedHash

LogFormat = Literal["text", "json"]
FIELDS = ("worker", "incarnation", "requestId", "user")
"""What a record may say beside its sentence."""
MAX_LINE = 8192  # characters of a sentence, and of one line of a traceback
WITHHELD = "(its text is left out, it may name a user: log_user_ids = true shows it)"

_NAMES = {
    "asctime": "time",
    "levelname": "level",
    "name": "logger",
    "exc_info": "traceback",
    "stack_info": "stack",
}
_PLAIN = re.compile(r"""[!#-&(-<>-\[\]-~]+""")  # neither a space, a quote, a backslash nor `=`
_Exception = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def shown_user(keyed_hash: KeyedHash, log_user_ids: bool, user_id: str) -> str:
    """What a log may call a user: the id if the setting allows it, else a name that says nothing without the key."""
    if log_user_ids:
        return user_id
    try:
        return keyed_hash.name(user_id)
    except UnicodeEncodeError:  # half a character: refused as an id, but somebody sent it
        return "user:-"


def line_formatter(log_format: LogFormat, *, log_user_ids: bool) -> logging.Formatter:
    """The formatter that the settings ask for."""
    return JsonLines(log_user_ids) if log_format == "json" else ReadableLines(log_user_ids)


def stamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def word(value: object) -> str:
    """A value in a readable line: as it is if it cannot be mistaken for more than one word, else quoted and escaped."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class ReadableLines(logging.Formatter):
    """`TIME LEVEL LOGGER SENTENCE`, then the fields that the sentence does not say; a traceback follows, indented."""

    def __init__(self, log_user_ids: bool) -> None:
        super().__init__()
        self._log_user_ids = log_user_ids

    def format(self, record: logging.LogRecord) -> str:
        sentence = clean_text(record.getMessage(), MAX_LINE)
        said = set(re.findall(r"[\w-]+", sentence))
        given = {name: vars(record)[name] for name in FIELDS if vars(record).get(name) is not None}
        rest = [f" {name}={word(value)}" for name, value in given.items() if str(value) not in said]
        lines = [f"{stamp(record.created)} {record.levelname} {record.name} {sentence}{''.join(rest)}"]
        # The record's own cache of a traceback is neither used nor filled: it may be another formatter's.
        if record.exc_info:
            lines += told(record.exc_info, self._log_user_ids).split("\n")
        if record.stack_info:
            lines += record.stack_info.split("\n")
        return "\n".join([lines[0], *(f"    {clean_text(line, MAX_LINE)}" for line in lines[1:])])


class JsonLines(JsonFormatter):
    """One JSON object with `time`, `level`, `logger`, `message`, the fields, and a traceback as text."""

    def __init__(self, log_user_ids: bool) -> None:
        super().__init__(["asctime", "levelname", "name", "message"], rename_fields=_NAMES)
        self._log_user_ids = log_user_ids

    def format(self, record: logging.LogRecord) -> str:
        copy = logging.makeLogRecord(vars(record))
        copy.exc_text = None  # what another formatter may have kept
        return super().format(copy)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return stamp(record.created)

    def formatException(self, ei: Any) -> str:
        return told(ei, self._log_user_ids)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in log_data.items() if value is not None}


def told(exc_info: _Exception, log_user_ids: bool) -> str:
    """A traceback. Where user ids may not be shown, an exception's own text is left out: nobody knows what stands in it."""
    _, error, trace = exc_info
    if error is None:
        return "NoneType: None"
    if log_user_ids:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    parts: list[str] = []
    seen: set[int] = set()
    before: BaseException | None = error
    while before is not None and id(before) not in seen:  # as they are caused, the last one first
        seen.add(id(before))
        trace = before.__traceback__
        parts.append(
            "".join(["Traceback (most recent call last):\n", *traceback.format_tb(trace), _name(before)])
        )
        before = before.__cause__ or (None if before.__suppress_context__ else before.__context__)
    return "\nwhich came while this was handled:\n".join(parts)


def _name(error: BaseException) -> str:
    """An exception without what was written into it; the operating system's reason is no secret."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: [Errno {error.errno}] {error.strerror}"
    if isinstance(error, BaseExceptionGroup):
        return f"{kind} of {', '.join(type(each).__qualname__ for each in error.exceptions)} {WITHHELD}"
    return f"{kind} {WITHHELD}" if error.args else kind
