"""User ids and their directory names: frozen, injective, safe on every disk."""

from __future__ import annotations

import string
import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moltbot.core.errors import InvalidRequest
from moltbot.core.user_key import MAX_KEY_BYTES, MAX_USER_ID_BYTES, check_user_id, user_key

ALLOWED = frozenset(string.ascii_lowercase + string.digits + "-_.@%~")

# On the disks of running systems: a change here loses users' files.
VECTORS = {
    "ada": "ada",
    "a": "a",
    "A": "%41",
    "CON": "%43%4f%4e",
    "a/b": "a%2fb",
    "a_b": "a_b",
    "a b": "a%20b",
    "a:b\\c": "a%3ab%5cc",
    "x@y.org": "x@y.org",
    ".": "%2e",
    "..": "%2e.",
    "...": "%2e..",
    ".hidden": "%2ehidden",
    "a.b": "a.b",
    "\0": "%00",
    "a\nb": "a%0ab",
    "\u00e9": "%c3%a9",
    "e\u0301": "e%cc%81",
    "\U0001f600": "%f0%9f%98%80",
    "~": "%7e",
    "name~x": "name%7ex",
    "%41": "%2541",
    "a" * 200: "a" * 200,
    "a" * 201: "a" * 100 + "~a92efd82109373e58f9a2056dee01e807e216ce6075f7051207c0a9f7d666e50",
    "A" * 66 + "aa": "%41" * 66 + "aa",
    "A" * 66 + "aaa": "%41" * 33 + "%~a520850b248cc372e2b8ac7b539413ac13f3ec853e985e078c873e6ddc231ad8",
    "/" * 512: "%2f" * 33 + "%~8be9dd9aa2ce4f6ca129ec12a928e715e8ab94ee6f5ee992d8a141f185f95808",
    "\u00e9" * 256: "%c3%a9" * 16 + "%c3%~57ed0ef12199207a92e3484cdf02cc0d3822dd0671fdecc234f39b4f50932c07",
}

characters = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("aA/_.~%\0\n -@\u00e9\u0301\u212b\u00c5\U0001f600"),
)
user_ids = st.text(characters, min_size=1, max_size=120).filter(lambda text: len(text.encode()) <= 512)


@pytest.mark.parametrize(("user_id", "key"), VECTORS.items(), ids=range(len(VECTORS)))
def test_the_name_of_an_id_never_changes(user_id: str, key: str) -> None:
    assert user_key(user_id) == key


def assert_safe(key: str) -> None:
    assert set(key) <= ALLOWED
    assert 0 < len(key) <= MAX_KEY_BYTES
    assert not key.startswith(".")
    assert key == key.lower() == unicodedata.normalize("NFD", key)


@given(user_ids)
@example("..")
@example("\0")
@example("\U0001f600" * 128)
def test_a_name_is_plain_lower_case_and_short(user_id: str) -> None:
    assert_safe(user_key(user_id))


@pytest.mark.parametrize("size", range(195, 206))
@pytest.mark.parametrize("character", ["a", "A", ".", "~", "\u00e9"])
def test_a_name_stays_in_its_limit_on_both_sides_of_the_cut(character: str, size: int) -> None:
    ids = {character * count for count in {size, size // 3, size // 3 + 1, size // 6, size // 6 + 1}}
    names = {user_key(user_id) for user_id in ids}
    assert len(names) == len(ids)
    for name in names:
        assert_safe(name)


def twins(text: str) -> set[str]:
    """Ids that people, or disks, would take for `text`."""
    return {
        text,
        text.lower(),
        text.upper(),
        text.swapcase(),
        unicodedata.normalize("NFC", text),
        unicodedata.normalize("NFD", text),
        text.replace("/", "_"),
        text.replace("_", "/"),
        text + ".",
        text + " ",
        "./" + text,
        "." + text,
        user_key(text),
    }


@given(user_ids)
@example("a/b")
@example("a_b")
@example("..")
@example("e\u0301")
@example("x" * 199)
@example("X" * 250)
def test_ids_that_look_alike_have_names_that_differ_in_any_case(user_id: str) -> None:
    ids = twins(user_id)
    assert len({user_key(each).casefold() for each in ids}) == len(ids)


@given(st.sets(user_ids, min_size=2, max_size=20))
def test_different_ids_have_different_names(ids: set[str]) -> None:
    assert len({user_key(user_id).casefold() for user_id in ids}) == len(ids)


@given(st.text("abAB/", min_size=1, max_size=4), st.text("abAB/", min_size=1, max_size=4))
def test_long_ids_that_differ_only_at_the_end_have_different_names(one: str, other: str) -> None:
    prefix = "p" * 300
    assert (user_key(prefix + one) == user_key(prefix + other)) == (one == other)


@given(user_ids)
def test_every_id_within_the_limit_is_accepted_as_it_is(user_id: str) -> None:
    assert check_user_id(user_id) is user_id


@pytest.mark.parametrize("user_id", ["x" * 512, "\u00e9" * 256, "\U0001f600" * 128])
def test_an_id_of_exactly_the_limit_is_accepted(user_id: str) -> None:
    assert len(user_id.encode()) == MAX_USER_ID_BYTES
    assert check_user_id(user_id) == user_id


BAD: list[tuple[Any, str]] = [
    ("", "userId is empty: name the user this request is for"),
    ("x" * 513, "userId has 513 bytes, at most 512 are allowed: use a shorter id"),
    ("\u00e9" * 257, "userId has 514 bytes, at most 512 are allowed: use a shorter id"),
    (5, "userId must be a string, not int 5: put it in quotes"),
    (None, "userId must be a string, not NoneType None: put it in quotes"),
    (True, "userId must be a string, not bool True: put it in quotes"),
    (b"ada", "userId must be a string, not bytes b'ada': put it in quotes"),
    (["ada"], "userId must be a string, not list ['ada']: put it in quotes"),
    ("a\ud800", "userId 'a\\ud800' is not valid UTF-8: it has half of a surrogate pair"),
]


@pytest.mark.parametrize(("value", "sentence"), BAD, ids=range(len(BAD)))
def test_what_is_no_user_id_is_refused_with_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_user_id(value)
    assert caught.value.message == sentence
    assert caught.value.retryable is False


@pytest.mark.parametrize("value", [["x" * 10_000], b"x" * 10_000, 10**5000], ids=["list", "bytes", "int"])
def test_a_huge_bad_id_gives_a_short_sentence(value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_user_id(value)
    assert len(caught.value.message) < 200
