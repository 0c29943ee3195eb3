"""JSON made to hurt, in every field of a request: one clear sentence each, and nobody else notices."""

from __future__ import annotations

import json
import logging

import pytest

from moltbot.gateway.server import Gateway
from tests.support import raw, request_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

HALF = b'"\\ud800"'
DEEP = 100_000


def body(**fields: bytes) -> bytes:
    """A request in which some fields are these bytes."""
    plain = {"type": b'"echo"', "userId": b'"ada"', "payload": b"1"} | fields
    return b"{" + b", ".join(b'"%s": %s' % (name.encode(), value) for name, value in plain.items()) + b"}"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":' * DEEP, "nested too deeply"),
        (body(payload=b"[" * DEEP + b"]" * DEEP), "nested too deeply"),
        (body(meta=b'{"a":' * DEEP + b"1" + b"}" * DEEP), "nested too deeply"),
        (body()[:-1] + b', "userId": "eve"}', "'userId' twice"),
        (body(payload=b'{"a": 1, "a": 2}'), "'a' twice"),
        (body(payload=b'{"a": 1, "\\u0061": 2}'), "'a' twice"),
        (body(payload=b"18446744073709551616"), "cannot be sent to a worker"),
        (body(payload=b"-9223372036854775809"), "cannot be sent to a worker"),
        (body(payload=b"1" + b"0" * 5000), "too many digits"),
        (body(timeout=b"1" + b"0" * 5000), "too many digits"),
        (body(timeout=b"18446744073709551616"), "timeout must be"),
        (body(userId=b"18446744073709551616"), "user"),
        (body(payload=b"NaN"), "finite"),
        (body(timeout=b"NaN"), "finite"),
        (body(payload=b"1e400"), "finite"),
        (body(payload=HALF), "surrogate"),
        (body(meta=b'{"a": ' + HALF + b"}"), "surrogate"),
        (body(meta=b"{" + HALF + b": 1}"), "surrogate"),
        (body(userId=HALF), "user"),
        (body(id=HALF), "id must be"),
        (body(userId=b'""'), "user"),
        (body(userId=b"null", user_id=b'"ada"'), "user"),
        (body(userId=b'["ada"]'), "user"),
        (body(userId=b'{"a": "ada"}'), "user"),
        (body(userId=b"true"), "user"),
        (body()[:-1] + b', "user_id": "eve"}', "twice|two|user"),
        (b"\xef\xbb\xbf" + body(), "JSON"),
        (body(payload=b'"\x00"'), "JSON"),
        (body(payload=b'"\xed\xa0\x80"'), "UTF-8"),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else "",
)
async def test_it_is_refused_with_one_sentence(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, data: bytes, says: str
) -> None:
    caplog.set_level(logging.INFO)
    sentence = (await raw(gateway, request_bytes(data))).problem(400, "invalid_request")
    assert any(word in sentence for word in says.split("|")), sentence
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", [HALF, b'"' + b"x" * 100_000 + b'"', b'"\\u0000"'], ids=range(3))
async def test_a_type_that_is_none_is_refused(gateway: Gateway, kind: bytes) -> None:
    answer = await raw(gateway, request_bytes(body(type=kind)))
    assert answer.status == 400
    assert len(answer.json["detail"]) < 1000


@pytest.mark.parametrize(
    "payload", ["18446744073709551615", "-9223372036854775808", '"\\u0000"', '"\\ud83e\\udd80"']
)
async def test_what_is_only_unusual_is_carried(gateway: Gateway, payload: str) -> None:
    answer = await raw(gateway, request_bytes(body(payload=payload.encode())))
    assert answer.json["payload"] == json.loads(payload)
