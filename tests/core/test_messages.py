"""Requests that are right and wrong, and the JSON form of a reply."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moltbot.core.errors import InvalidRequest, MoltbotError, UnknownType
from moltbot.core.messages import Reply, Request


def test_a_request_needs_only_a_type_and_a_user() -> None:
    request = Request("agent", "ada")
    assert (request.payload, request.id, request.timeout) == (None, None, None)
    assert request.idempotent is False
    assert request.meta == {}


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("agent", "ada").user_id = "bob"  # type: ignore[misc]


@pytest.mark.parametrize("timeout", [1, 0.5, 120_000, 86_400_000])
def test_a_timeout_up_to_a_day_is_accepted(timeout: float) -> None:
    assert Request("agent", "ada", timeout=timeout).timeout == timeout


BAD_TIMEOUTS: list[Any] = [0, -1, 86_400_001, True, "5", float("nan"), float("inf"), [1], 10**5000]


@pytest.mark.parametrize("timeout", BAD_TIMEOUTS, ids=range(len(BAD_TIMEOUTS)))
def test_an_impossible_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidRequest, match="^timeout must be milliseconds between 1 and 86400000"):
        Request("agent", "ada", timeout=timeout)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"type": None}, "type is missing"),
    ({"type": ""}, "type is missing"),
    ({"type": 5}, "type is missing"),
    ({"user_id": ""}, "userId is empty"),
    ({"user_id": "x" * 513}, "userId has 513 bytes"),
    ({"user_id": 5}, "userId must be a string"),
    ({"id": ""}, "id must be a printable string of 1 to 128 characters"),
    ({"id": "x" * 129}, "id must be a printable string"),
    ({"id": "a\nb"}, "id must be a printable string"),
    ({"id": "\ud800"}, "id must be a printable string"),
    ({"id": 7}, "id must be a printable string"),
    ({"idempotent": 1}, "idempotent must be true or false, not 1"),
    ({"idempotent": "yes"}, "idempotent must be true or false, not 'yes'"),
    ({"idempotent": None}, "idempotent must be true or false, not None"),
    ({"meta": ["a"]}, "meta must be an object with string keys"),
    ({"meta": []}, "meta must be an object with string keys"),
    ({"meta": ""}, "meta must be an object with string keys"),
    ({"meta": 0}, "meta must be an object with string keys"),
    ({"meta": {1: 2}}, "meta must be an object with string keys"),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_a_wrong_field_is_refused_and_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(**{"type": "agent", "user_id": "ada", **fields})
    assert caught.value.message.startswith(sentence)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("kind", ["x" * 65, "a\nb", "\0", "\ud800", "\u202e"])
def test_a_type_that_no_handler_can_have_is_unknown(kind: str) -> None:
    with pytest.raises(UnknownType) as caught:
        Request(kind, "ada")
    assert caught.value.code == "unknown_type"
    assert caught.value.message.isprintable()


def test_the_longest_type_and_id_are_accepted() -> None:
    request = Request("t" * 64, "ada", id="i" * 128)
    assert (len(request.type), len(request.id or "")) == (64, 128)


def test_the_camel_case_form_is_read() -> None:
    fields = {
        "type": "agent",
        "userId": "ada",
        "payload": {"a": 1},
        "id": "r1",
        "timeout": 5,
        "idempotent": True,
        "meta": {"k": 1},
    }
    request = Request.from_mapping(fields)
    assert request == Request("agent", "ada", {"a": 1}, "r1", 5, True, {"k": 1})


def test_the_snake_case_form_is_read_as_well() -> None:
    assert Request.from_mapping({"type": "agent", "user_id": "ada"}) == Request("agent", "ada")


def test_a_null_meta_is_no_meta() -> None:
    assert Request.from_mapping({"type": "agent", "userId": "ada", "meta": None}).meta == {}


def test_an_unknown_field_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request.from_mapping({"type": "agent", "userId": "ada", "tiemout": 5})
    assert caught.value.message == (
        "unknown field 'tiemout': a request has id, idempotent, meta, payload, timeout, type, userId"
    )


def test_a_user_who_is_named_twice_is_refused() -> None:
    for first, second in (("userId", "user_id"), ("user_id", "userId")):
        with pytest.raises(InvalidRequest, match="userId is given twice"):
            Request.from_mapping({"type": "agent", first: "ada", second: "bob"})


@pytest.mark.parametrize("fields", [{}, {"type": "agent"}, {"type": "agent", "userId": None}])
def test_a_missing_user_is_told(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="^userId is missing: name the user this request is for$"):
        Request.from_mapping(fields)


def test_a_missing_type_is_told() -> None:
    with pytest.raises(InvalidRequest, match="^type is missing"):
        Request.from_mapping({"userId": "ada"})


@pytest.mark.parametrize("fields", [None, [], "agent", 5, b"{}"])
def test_what_is_no_object_is_no_request(fields: Any) -> None:
    with pytest.raises(InvalidRequest, match="^a request must be an object with type and userId, not "):
        Request.from_mapping(fields)


def test_a_key_that_is_no_string_is_an_unknown_field() -> None:
    fields: dict[Any, Any] = {"type": "agent", "userId": "ada", 5: 6}
    with pytest.raises(InvalidRequest, match="^unknown field 5"):
        Request.from_mapping(fields)


def test_a_reply_in_json_has_the_documented_keys() -> None:
    reply = Reply("r1", "ada", "worker-0", 3, {"a": 1}, {"tokens": 5}, 12.34567)
    assert reply.to_json() == {
        "success": True,
        "requestId": "r1",
        "userId": "ada",
        "workerId": "worker-0",
        "epoch": 3,
        "payload": {"a": 1},
        "usage": {"tokens": 5},
        "durationMs": 12.346,
    }


def test_the_facts_of_an_error_leave_out_what_is_not_known() -> None:
    assert MoltbotError("it broke").facts() == {
        "code": "internal",
        "detail": "it broke",
        "retryable": False,
        "verdict": "not_started",
    }
    error = MoltbotError(
        "x", retryable=True, retry_after=0, worker="worker-0", reason="crashed", verdict="done"
    )
    assert error.facts() == {
        "code": "internal",
        "detail": "x",
        "retryable": True,
        "verdict": "done",
        "worker": "worker-0",
        "reason": "crashed",
        "retryAfter": 0,
    }
