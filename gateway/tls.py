"""https on the port: the certificate and its key from files, checked at the start and read again when they change.

A pair is taken whole or not at all: each one that was read becomes a context of its own, and new connections are pointed
at the newest whole one; open ones go on with theirs. Where the port is taken is in `listening.py`; how the command line
trusts this certificate, in `cli/connect.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from moltbot.core.clock import Clock
from moltbot.core.errors import StartupError

LOOK_SECONDS = 5.0
"""How often the files are looked at."""
_ALPN = ["http/1.1"]

log = logging.getLogger("moltbot.gateway")

_Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its key, ready to use. fingerprint: SHA-256 of the leaf, in hexadecimal. ends: when it expires."""

    context: ssl.SSLContext
    fingerprint: str
    ends: datetime


class Tls:
    """The pair in use. `context` is what the port listens with, all its life; `watch` keeps what it serves current."""

    def __init__(self, certificate: Path, key: Path, clock: Clock) -> None:
        """Read both files; raises StartupError, which says what is wrong with them."""
        self._files = (certificate, key)
        self._clock = clock
        self._stamps = _stamps_of(self._files)  # of the files that `pair` was read from
        self.pair = read_pair(*self._files)
        self.context = self.pair.context
        self.context.sni_callback = self._choose
        self._warn_if_expired()

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self.pair.context

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look at the files for ever and take a new pair into use, telling `changed`; a broken one is only logged."""
        told = ""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                new = await asyncio.to_thread(self._read_if_changed)
            except (StartupError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    log.error("the certificate is not renewed, the one before stays in use: %s", error)
                continue
            told = ""
            if new is not None:
                self.pair = new
                log.info("new connections get the new certificate, which ends on %s", new.ends.isoformat())
                self._warn_if_expired()
                try:
                    changed()
                except OSError as error:
                    log.error(
                        "the command line on this machine cannot learn of the new certificate: %s", error
                    )

    def _read_if_changed(self) -> Pair | None:
        stamps = _stamps_of(self._files)
        if stamps == self._stamps:
            return None
        pair = read_pair(*self._files)
        self._stamps = (
            stamps  # only now: what could not be read may have failed in passing, and is read again
        )
        return pair

    def expired(self) -> bool:
        """True if no client will accept the certificate any more."""
        return self._clock.time() >= self.pair.ends.timestamp()

    def _warn_if_expired(self) -> None:
        if self.expired():
            log.warning(
                "%s expired on %s, clients will refuse it: renew it, it is then taken into use by itself",
                self._files[0],
                self.pair.ends.isoformat(),
            )


TLS: web.AppKey[Tls | None] = web.AppKey("tls")


def read_pair(certificate: Path, key: Path) -> Pair:
    """Read a certificate chain and its key (PEM); raises StartupError."""
    _check(certificate, "tls_cert")
    _check(key, "tls_key", secret=True)
    context = _new_context()
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = (
                f"tls_key {key} does not belong to tls_cert {certificate}: give the key that it was made with"
            )
        else:
            why = f"tls_cert {certificate} and tls_key {key} cannot be used: both must be whole PEM files"
        raise StartupError(why) from None
    except (OSError, _Encrypted) as error:
        raise StartupError(f"tls_key {key} cannot be used: {error}") from None
    try:
        leaf, ends = _shown_by(context)
    except (ssl.SSLError, KeyError, ValueError):
        raise StartupError(
            f"tls_cert {certificate} does not serve for a connection: make it again, with a usual kind of key"
        ) from None
    return Pair(context, hashlib.sha256(leaf).hexdigest(), ends)


class _Encrypted(Exception):
    """The key has a password; asking for it would stop the start for ever."""


def _no_password() -> str:
    raise _Encrypted("it is encrypted: give one without a password, readable by this user only")


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_ALPN)
    return context


def _stamps_of(files: tuple[Path, ...]) -> _Stamps:
    """What tells a changed file from the same: time of change, inode and size; zeros for one that cannot be seen."""
    stamps = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return tuple(stamps)


def _check(path: Path, setting: str, *, secret: bool = False) -> None:
    """Raise StartupError for what is no file of ours to read; a pipe would be waited for without end."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
        finally:
            os.close(file)
    except OSError as error:
        raise StartupError(
            f"{setting} {path} cannot be read ({error.strerror}): give a file that this user can read"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise StartupError(f"{setting} {path} cannot be read: give a file")
    # A key of root's may be for a group, as Debian's ssl-cert; one of ours is for us.
    if secret and status.st_mode & (0o027 if status.st_uid == 0 else 0o077):
        raise StartupError(f"others can read {setting} {path}: run `chmod 600 {path}`")


def _shown_by(server: ssl.SSLContext) -> tuple[bytes, datetime]:
    """The certificate in DER, and when it expires, as a client sees them in a handshake that stays in memory.

    Nothing else of the standard library tells the date of a certificate that is no authority's, or is over.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    for side in (theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    leaf = theirs.getpeercert(binary_form=True)
    client.verify_mode = ssl.CERT_REQUIRED  # else nothing but the bytes is told
    shown = theirs.getpeercert()
    if leaf is None or shown is None:
        raise ValueError
    return leaf, datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
