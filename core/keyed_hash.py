"""Names for users that say nothing to whoever has no key: in logs, and of those who were forgotten.

A plain hash of an id would be guessed by trying ids; with a key of 256 bits only its holder can. Where the key is kept is
in `sandbox/secret_file.py`.
"""

from __future__ import annotations

import hashlib
import hmac

_SHOWN = 12  # hexadecimal digits: enough to tell a million users apart in a log


class KeyedHash:
    """HMAC-SHA256 under `key`."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def digest(self, data: bytes, purpose: str) -> bytes:
        """32 bytes, the same for the same data and purpose, unrelated for any other."""
        return hmac.digest(self._key, purpose.encode() + b"\0" + data, hashlib.sha256)

    def name(self, user_id: str) -> str:
        """A short name for logs, such as `user:3f9a1c0b77d2`."""
        return f"user:{self.digest(user_id.encode(), 'log').hex()[:_SHOWN]}"
