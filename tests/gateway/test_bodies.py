"""Bodies of every kind: what is not one JSON object with a known shape is refused with one sentence."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest

from moltbot.gateway.bodies import MAX_BODIES_BYTES, UNCOUNTED_BYTES, BodyRoom
from moltbot.gateway.problems import Refused
from moltbot.gateway.server import Gateway
from tests.fakes import eventually
from tests.support import TOKEN, call, post, raw, request_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed")]

MB = 1 << 20


def request_of(payload: bytes) -> bytes:
    return b'{"type": "echo", "userId": "ada", "payload": ' + payload + b"}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b" ", "not JSON"),
        (b"hello", "not JSON"),
        (b"{'type': 'echo'}", "not JSON"),
        (b'{"type": "echo"', "not JSON"),
        (b'{"type": "echo"} {}', "not JSON"),
        (b"[]", "not an array"),
        (b'[{"type": "echo", "userId": "ada"}]', "not an array"),
        (b'"text"', "not a string"),
        (b"42", "not a number"),
        (b"true", "not a boolean"),
        (b"null", "not null"),
        (b"\xff\xfe", "not UTF-8"),
        (request_of(b'"\xc3\x28"'), "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (request_of(b"NaN"), "'NaN' is not a finite number"),
        (request_of(b"[1, -Infinity]"), "'-Infinity' is not a finite number"),
        (request_of(b"1e999"), "1e999"),
        (b"[" * 100_000, "nested too deeply"),
        (request_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
        (request_of(b"18446744073709551616"), "cannot be sent to a worker"),
        (request_of(b"9" * 5_000), "a number in the body has too many digits"),
        (request_of(b'"\\ud800"'), "half of a surrogate pair"),
        (request_of(b'{"\\udfff": 1}'), "half of a surrogate pair"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
async def test_what_is_no_request_is_refused(gateway: Gateway, body: bytes, says: str) -> None:
    assert says in (await raw(gateway, request_bytes(body))).problem(400, "invalid_request")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": None}, "type is missing"),
        ({"type": ""}, "type is missing"),
        ({"type": 7}, "type is missing"),
        ({"type": ["echo"]}, "type is missing"),
        ({"id": ""}, "id must be"),
        ({"id": 5}, "id must be"),
        ({"id": "a\nb"}, "id must be"),
        ({"id": "x" * 129}, "id must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": "2m"}, "timeout must be"),
        ({"timeout": True}, "timeout must be"),
        ({"timeout": 1e12}, "timeout must be"),
        ({"idempotent": "yes"}, "idempotent must be"),
        ({"idempotent": 1}, "idempotent must be"),
        ({"meta": []}, "meta must be"),
        ({"meta": "text"}, "meta must be"),
        ({"userid": "ada"}, "unknown field 'userid'"),
        ({"message": "hello"}, "unknown field 'message'"),
        ({"__class__": 1}, "unknown field '__class__'"),
    ],
)
async def test_a_field_of_the_wrong_kind_is_named(
    gateway: Gateway, change: dict[str, Any], says: str
) -> None:
    body = {"type": "echo", "userId": "ada"} | change
    answer = await call(gateway, "POST", "/api/route", json=body)
    assert says in answer.problem(400, "invalid_request")


@pytest.mark.parametrize(
    "kind", ["nothing", "echo ", "ECHO", "../echo", "__init__", "x" * 65, "a\0", "a\nb", "🦀"]
)
async def test_an_unknown_type_is_refused(gateway: Gateway, kind: str) -> None:
    (await post(gateway, kind, "ada")).problem(400, "unknown_type")


async def test_an_unknown_type_is_told_what_there_is(gateway: Gateway) -> None:
    sentence = (await post(gateway, "ehco", "ada")).problem(400, "unknown_type")
    assert "'ehco'" in sentence
    assert "echo" in sentence.split("there is")[1]


async def test_a_body_over_the_limit_is_refused(gateway: Gateway) -> None:
    body = request_of(b'"' + b"x" * (20 * MB) + b'"')
    answer = await call(
        gateway, "POST", "/api/route", data=body, headers={"Content-Type": "application/json"}
    )
    assert "max_body" in answer.problem(413, "payload_too_large")


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(gateway: Gateway) -> None:
    body = gzip.compress(request_of(b'"' + b"x" * (200 * MB) + b'"'), 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await call(gateway, "POST", "/api/route", data=body, headers=headers)
    answer.problem(413, "payload_too_large")


async def test_a_body_that_is_not_the_gzip_it_claims_to_be_is_refused(gateway: Gateway) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await call(gateway, "POST", "/api/route", data=b"not gzip at all", headers=headers)
    assert "Content-Encoding" in answer.problem(400, "invalid_request")


async def test_a_body_below_the_limit_is_carried_whole(gateway: Gateway) -> None:
    text = "x" * (9 * MB)
    assert (await post(gateway, "echo", "ada", text)).json["payload"] == text


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "garbage", "text/json"],
)
async def test_another_content_type_is_refused(gateway: Gateway, kind: str) -> None:
    body = b'{"type": "echo", "userId": "ada"}'
    request = request_bytes(body).replace(b"application/json", kind.encode())
    assert "application/json" in (await raw(gateway, request)).problem(415, "unsupported_media_type")


async def test_a_missing_content_type_is_refused(gateway: Gateway) -> None:
    request = request_bytes(b'{"type": "echo", "userId": "ada"}')
    request = request.replace(b"Content-Type: application/json\r\n", b"")
    (await raw(gateway, request)).problem(415, "unsupported_media_type")


async def test_a_content_type_with_parameters_will_do(gateway: Gateway) -> None:
    request = request_bytes(b'{"type": "echo", "userId": "ada", "payload": 1}')
    request = request.replace(b"application/json", b"Application/JSON; charset=utf-8")
    assert (await raw(gateway, request)).json["payload"] == 1


@pytest.mark.parametrize(
    "payload",
    [
        None,
        True,
        0,
        -1.5,
        "",
        "text",
        [],
        {},
        [[[]]],
        {"a": {"b": [1, None]}},
        "\0",
        (1 << 64) - 1,
        -(1 << 63),
    ],
)
async def test_every_json_value_is_carried_unchanged(gateway: Gateway, payload: Any) -> None:
    reply = (await post(gateway, "echo", "ada", payload)).json
    assert reply["payload"] == payload
    assert type(reply["payload"]) is type(payload)


async def test_meta_reaches_the_handler(gateway: Gateway) -> None:
    answer = await post(gateway, "whoami", "ada", meta={"trace": "abc", "n": 1})
    assert answer.json["payload"]["meta"] == {"trace": "abc", "n": 1}


async def test_meta_cannot_pretend_to_be_the_gateways(gateway: Gateway) -> None:
    answer = await post(gateway, "whoami", "ada", id="mine", meta={"request_id": "forged"})
    assert answer.json["requestId"] == "mine"


@pytest.mark.parametrize("cut", [10, 40, -20, -1])
async def test_a_request_that_is_cut_off_harms_nobody(gateway: Gateway, cut: int) -> None:
    whole = request_bytes(b'{"type": "count", "userId": "cut off"}')
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(whole[:cut])
    writer.write_eof()
    await reader.read()  # until the gateway has closed its side
    writer.close()
    assert (await post(gateway, "history", "cut off")).json["payload"] == []


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=range(8),
)
async def test_what_is_no_http_is_a_problem_and_no_traceback(
    gateway: Gateway, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw(gateway, data)
    assert "not a valid HTTP request" in answer.problem(400, "bad_http")
    assert not [record for record in caplog.records if record.exc_info]


async def test_what_is_packed_is_unpacked_for_nobody_without_a_credential(gateway: Gateway) -> None:
    packed = gzip.compress(request_of(b'"' + b"x" * (200 * MB) + b'"'), 1)
    request = request_bytes(packed, "Content-Encoding: gzip").replace(TOKEN.encode(), b"wrong")
    (await raw(gateway, request)).problem(401, "unauthorized")
    form = request_bytes(b"code=x", "Content-Encoding: gzip", target="POST /login")
    form = form.replace(b"application/json", b"application/x-www-form-urlencoded")
    (await raw(gateway, form)).problem(415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_packed_body_must_be_whole_and_alone(gateway: Gateway, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    whole = pack(request_of(b"1"))
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert (await call(gateway, "POST", "/api/route", data=whole, headers=headers)).json["payload"] == 1
    for body in (whole[:-1], whole + b"x", whole + whole, b""):
        answer = await call(gateway, "POST", "/api/route", data=body, headers=headers)
        assert "Content-Encoding" in answer.problem(400, "invalid_request")


@pytest.mark.parametrize("path", ["/api/route", "/login"])
async def test_a_content_type_of_nothing_but_semicolons_is_just_wrong(gateway: Gateway, path: str) -> None:
    """Python's parser of this header takes seconds for a few of them, and the whole gateway waits."""
    for number in range(20):
        request = request_bytes(b"{}", target=f"POST {path}")
        request = request.replace(b"application/json", b";" * 7000 + str(number).encode())
        (await raw(gateway, request)).problem(415, "unsupported_media_type")


async def test_all_large_bodies_together_have_a_bound(gateway: Gateway) -> None:
    room = BodyRoom()
    taken = [room.take(10 * MB) for _ in range(MAX_BODIES_BYTES // (10 * MB))]
    with pytest.raises(Refused, match="large bodies") as caught:
        room.take(10 * MB)
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    assert room.take(UNCOUNTED_BYTES) == 0
    room.taken -= sum(taken)
    assert room.taken == 0
    assert (await post(gateway, "echo", "ada", "x" * MB)).status == 200
    assert gateway.edge is not None
    await eventually(lambda: gateway.edge is not None and gateway.edge.body_room.taken == 0)
