"""User ids: what is one, and the directory name that belongs to it.

The name is injective and safe on every disk: `a/b` and `a_b`, `A` and `a`, NFC and NFD, `..` and NUL all give
different, plain, lower-case ASCII names. Both sides of the wall compute it, and a stored name must never change
meaning: `tests/core/test_user_key.py` freezes its vectors.
"""

from __future__ import annotations

import hashlib

from moltbot.core.errors import InvalidRequest, quote

MAX_USER_ID_BYTES = 512
MAX_KEY_BYTES = 200
_PREFIX_BYTES = 100
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.@")
_ESCAPED = [chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in range(256)]


def check_user_id(value: object) -> str:
    """Return `value` if it is a user id: a non-empty UTF-8 string of at most 512 bytes; raise `InvalidRequest` if not."""
    if not isinstance(value, str):
        raise InvalidRequest(
            f"userId must be a string, not {type(value).__name__} {quote(value)}: put it in quotes"
        )
    if not value:
        raise InvalidRequest("userId is empty: name the user this request is for")
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"userId {quote(value)} is not valid UTF-8: it has half of a surrogate pair"
        ) from None
    if size > MAX_USER_ID_BYTES:
        raise InvalidRequest(
            f"userId has {size} bytes, at most {MAX_USER_ID_BYTES} are allowed: use a shorter id"
        )
    return value


def user_key(user_id: str) -> str:
    """Return the directory name of a user: at most 200 ASCII characters, different for every id.

    Lower-case letters, digits and `-_.@` stand for themselves, every other byte of the UTF-8 form becomes `%xx`, and
    so does a leading dot. A name that would be longer is cut to a prefix, `~` (which no short name has) and the id's sha256.
    """
    raw = user_id.encode()
    name = "".join([_ESCAPED[byte] for byte in raw])
    if name.startswith("."):
        name = "%2e" + name[1:]
    if len(name) <= MAX_KEY_BYTES:
        return name
    return f"{name[:_PREFIX_BYTES]}~{hashlib.sha256(raw).hexdigest()}"
