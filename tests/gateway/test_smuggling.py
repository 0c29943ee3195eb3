"""Bytes that two readers would understand differently, on raw sockets: refused in one sentence, or of no effect at all."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE
from tests.support import TOKEN, raw, request_bytes

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("undisturbed", "quiet")]

BODY = b'{"type": "whoami", "userId": "ada"}'
SIZE = len(BODY)
CREDENTIAL = f"Authorization: Bearer {TOKEN}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
END = b"\r\n0\r\n\r\n"


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a stranger sends is no error of ours."""
    caplog.set_level(logging.INFO)
    yield
    records = caplog.get_records("call")
    assert not [record for record in records if record.levelno >= logging.ERROR or record.exc_info]


def post_with(headers: bytes, body: bytes = BODY, *, version: bytes = b"1.1") -> bytes:
    """A valid request, but for these headers: they must give the body's size."""
    first = b"POST /api/route HTTP/%s\r\nHost: localhost\r\n" % version
    return first + CREDENTIAL + b"Content-Type: application/json\r\n" + headers + b"\r\n" + body


def sized(headers: bytes) -> bytes:
    return post_with(headers + b"Content-Length: %d\r\n" % SIZE)


def chunks(size: bytes, rest: bytes = BODY + END) -> bytes:
    return post_with(CHUNKED, size + b"\r\n" + rest)


TRUE = b"%x" % SIZE


@pytest.mark.parametrize(
    "request_",
    [
        sized(b"Content-Length: %d\r\n" % SIZE),
        sized(b"Content-Length: 5\r\n"),
        post_with(b"Content-Length: %d, %d\r\n" % (SIZE, SIZE)),
        post_with(b"Content-Length: +%d\r\n" % SIZE),
        post_with(b"Content-Length: -1\r\n"),
        post_with(b"Content-Length: 0x20\r\n"),
        post_with(b"Content-Length: 3_2\r\n"),
        post_with(b"Content-Length: \r\n"),
        post_with(b"Content-Length: " + b"9" * 30 + b"\r\n"),
        post_with(b"Content-Length: 5\r\n" + CHUNKED, TRUE + b"\r\n" + BODY + END),
        post_with(CHUNKED + b"Content-Length: 5\r\n", TRUE + b"\r\n" + BODY + END),
        post_with(CHUNKED + CHUNKED, TRUE + b"\r\n" + BODY + END),
        post_with(b"Transfer-Encoding: xchunked\r\n", TRUE + b"\r\n" + BODY + END),
        post_with(b"Transfer-Encoding: chunked, identity\r\n", TRUE + b"\r\n" + BODY + END),
        post_with(b"Transfer-Encoding: \x0bchunked\r\n", TRUE + b"\r\n" + BODY + END),
        post_with(CHUNKED, TRUE + b"\r\n" + BODY + END, version=b"1.0"),
        sized(b"X: a\r\n b\r\n"),
        sized(b" X: a\r\n"),
        post_with(b"Content-Length : %d\r\n" % SIZE),
        sized(b"X: a\nTransfer-Encoding: chunked\r\n"),
        sized(b"X: a\rTransfer-Encoding: chunked\r\n"),
        sized(b"X: y\r\n").replace(b"\r\n", b"\n"),
        sized(b"X: a\0b\r\n"),
        sized(b"X\0: a\r\n"),
        sized(b"X: \x01\r\n"),
        sized(b": a\r\n"),
        sized(b"Content-Type: text/plain\r\n"),
        sized(b"Host: localhost\r\n"),
        sized(b"Host: evil.example\r\n"),
        chunks(b"-5"),
        chunks(b"f" * 17),
        chunks(b"0x" + TRUE),
        chunks(TRUE + b" "),
        chunks(b"zz"),
        chunks(b""),
        chunks(TRUE, BODY + b"0\r\n\r\n"),
        post_with(CHUNKED, TRUE + b"\n" + BODY + END),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /li\xffvez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda value: repr(value[60:]) if isinstance(value, bytes) else "",
)
async def test_what_could_be_read_in_two_ways_is_refused(gateway: Gateway, request_: bytes) -> None:
    answer = await raw(gateway, request_)
    answer.problem(400, "bad_http")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (sized(b"Cookie: a=b\r\nCookie: moltbot-session=x\r\n"), 400, "duplicate_header"),
        (sized(b"Authorization: Bearer x\r\n"), 400, "duplicate_header"),
        (sized(b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n"), 400, "duplicate_header"),
        (sized(b"Origin: http://localhost\r\nOrigin: http://evil.example\r\n"), 400, "duplicate_header"),
        (sized(b"X-Forwarded-User: ada\r\nX-Forwarded-User: eve\r\n"), 400, "invalid_request"),
        (sized(b"X-Forwarded-User: eve\r\n"), 400, "invalid_request"),
        (sized(b"Expect: 200-maybe\r\n"), 417, "bad_http"),
        (sized(b"Content-Encoding: rot13\r\n"), 415, "unsupported_encoding"),
        (sized(b"Content-Encoding: br\r\n"), 415, "unsupported_encoding"),
        (sized(b"Content-Encoding: gzip, gzip\r\n"), 415, "unsupported_encoding"),
        (sized(b"Content-Encoding: gzip\r\n"), 400, "invalid_request"),
        (post_with(b"Transfer-Encoding: gzip, chunked\r\n", TRUE + b"\r\n" + BODY + END), 501, "bad_http"),
        (b"GET /livez\r\n\r\n", 505, "bad_http"),
        (b"GET /api/workers HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "bad_http"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "target_too_long"),
        (b"GET /" + b"x" * 900_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "target_too_long"),
        (sized(b"X: " + b"y" * 9000 + b"\r\n"), 431, "headers_too_large"),
        (sized(b"X: " + b"y" * 900_000 + b"\r\n"), 431, "headers_too_large"),
        (sized(b"X" * 9000 + b": y\r\n"), 431, "headers_too_large"),
        (sized(b"X: y\r\n" * 101), 431, "headers_too_large"),
        (chunks(TRUE, BODY + b"\r\n0\r\n" + b"X: y\r\n" * 5000 + b"\r\n"), 431, "headers_too_large"),
        (b"GET http://evil.example/api/workers HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_host"),
        (b"GET ftp://localhost/api/workers HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_host"),
        (b"GET http://eve@localhost/api/workers HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_host"),
        (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_host"),
        (b"GET /api/workers HTTP/1.0\r\n\r\n", 400, "bad_host"),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else "",
)
async def test_it_is_refused_with_the_right_word(
    gateway: Gateway, request_: bytes, status: int, code: str
) -> None:
    (await raw(gateway, request_)).problem(status, code)


@pytest.mark.parametrize(
    "request_",
    [
        sized(b"X_Forwarded_User: eve\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\n"),
        chunks(TRUE, BODY + b"\r\n0\r\nX-Forwarded-User: eve\r\nAuthorization: Bearer x\r\n\r\n"),
        chunks(TRUE + b";userId=eve"),
        chunks(b"0" * 50 + TRUE),
        sized(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        sized(b"Connection: Authorization\r\n"),
        sized(b"X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /api/tokens\r\n"),
        post_with(b"Content-Length: %d\r\n" % SIZE, version=b"1.0"),
    ],
    ids=range(8),
)
async def test_what_poses_as_something_else_is_of_no_effect(gateway: Gateway, request_: bytes) -> None:
    assert (await raw(gateway, request_)).json["payload"]["user"] == "ada"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "//api/route",
            "/api/../livez",
            "/livez/../api/workers",
            "/%2e%2e/livez",
            "/livez%2f..%2fapi/workers",
        ),
        *("/livez;/api/workers", "/livez/", "/livez//", "/api/workers/", "/api//workers", "/API/workers"),
        *(
            "/api/workers%00",
            "/api/v1/../workers",
            "/./api/workers",
            "/%61pi/workers",
            "/health/..",
            "/%2fapi",
        ),
        *("/login/../api/tokens", "/login/x", "/livez%20", "/livez.", "/livez%3fx", "/..", "/%", "/%zz"),
    ],
)
async def test_no_path_becomes_public_by_a_trick(gateway: Gateway, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    (await raw(gateway, request.encode())).problem(401, "unauthorized")


async def all_of(gateway: Gateway, data: bytes) -> list[bytes]:
    """Every answer on one connection until the other end closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    async with asyncio.timeout(PATIENCE):
        text = await reader.read()
    writer.close()
    return [b"HTTP/1." + part for part in text.split(b"HTTP/1.")[1:]]


LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_a_request_behind_another_needs_its_own_credential(gateway: Gateway) -> None:
    second = post_with(b"Content-Length: %d\r\n" % SIZE).replace(CREDENTIAL, b"")
    answers = await all_of(gateway, sized(b"") + second + sized(b"") + LAST)
    assert [answer[9:12] for answer in answers] == [b"200", b"401", b"200", b"200"]


async def test_a_body_is_never_a_request(gateway: Gateway) -> None:
    hidden = b'{"type": "whoami", "userId": "ada", "payload": ' + json.dumps(LAST.decode()).encode() + b"}"
    answers = await all_of(gateway, request_bytes(hidden) + LAST)
    assert [answer[9:12] for answer in answers] == [b"200", b"200"]
    refused = request_bytes(LAST * 3).replace(CREDENTIAL, b"")  # nobody reads this body
    assert [answer[9:12] for answer in await all_of(gateway, refused + LAST)] == [b"401", b"200"]


async def test_behind_what_is_no_http_nothing_is_looked_at(gateway: Gateway) -> None:
    [answer] = await all_of(gateway, sized(b"Content-Length: 5\r\n") + sized(b""))
    assert answer[9:12] == b"400"


async def test_many_requests_at_once_are_answered_in_order(gateway: Gateway) -> None:
    bodies = [b'{"type": "echo", "userId": "ada", "payload": %d}' % n for n in range(100)]
    answers = await all_of(gateway, b"".join(map(request_bytes, bodies)) + LAST)
    payloads = [json.loads(answer.partition(b"\r\n\r\n")[2]).get("payload") for answer in answers]
    assert payloads == [*range(100), None]


@pytest.mark.parametrize("ahead", [1, 40])  # with 40, aiohttp keeps some of them to itself and reads on later
async def test_a_body_may_come_in_pieces_while_the_requests_before_it_run(
    gateway: Gateway, ahead: int
) -> None:
    """What has come of it is no request that broke off, though it waits behind others that have not been answered."""
    first, second = ahead * sized(b""), request_bytes(b'{"type": "echo", "userId": "ada", "payload": 7}')
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    transport = writer.transport
    cut = len(second) - 30
    for piece in (first + second[:cut], *(second[cut + n : cut + n + 1] for n in range(30)), LAST):
        transport.write(piece)
        await asyncio.sleep(0)  # the gateway runs in the same loop: it reads each piece by itself
    async with asyncio.timeout(PATIENCE):
        text = await reader.read()
    writer.close()
    answers = text.split(b"HTTP/1.")[1:]
    assert [answer[2:5] for answer in answers] == [b"200"] * (ahead + 2)
    assert json.loads(answers[ahead].partition(b"\r\n\r\n")[2])["payload"] == 7


async def test_what_is_no_http_does_not_fill_the_log(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        (await raw(gateway, b"GET /livez\0 HTTP/1.1\r\nHost: localhost\r\n\r\n")).problem(400, "bad_http")
    assert not [record for record in caplog.records if record.name == "moltbot.gateway"]
