"""https by files: what is refused at the start, how a renewed certificate is taken, and whom the command line trusts."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import socket
import ssl
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from moltbot import StartupError, Unavailable
from moltbot.client.http import GatewayClient
from moltbot.gateway import listening, tls
from moltbot.gateway.server import Gateway
from tests.fakes import PATIENCE, eventually
from tests.support import TOKEN, check_sentence, gateway_in, moltbot

Files = dict[str, Path]


def write_pair(directory: Path, authority: trustme.CA, *, expires: datetime | None = None) -> Files:
    leaf = authority.issue_cert("127.0.0.1", "localhost", not_after=expires)
    files = {"tls_cert": directory / "cert.pem", "tls_key": directory / "key.pem"}
    for file in files.values():
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
    files["tls_cert"].write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    files["tls_key"].write_bytes(leaf.private_key_pem.bytes())
    return files


def shown(port: int, **options: object) -> tuple[str, str | None, str | None]:
    """Whom a new connection meets: the certificate's fingerprint, the version and the protocol chosen."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):  # it is old, that is the point
        for name, value in options.items():
            setattr(context, name, value)
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert(binary_form=True)
        assert certificate is not None
        return hashlib.sha256(certificate).hexdigest(), secure.version(), secure.selected_alpn_protocol()


async def test_the_port_speaks_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with gateway_in(tmp_path / "base", edge=write_pair(tmp_path, authority)) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        fingerprint, version, protocol = await asyncio.to_thread(shown, gateway.port)
        assert (version, protocol) == ("TLSv1.3", "http/1.1")
        announced = json.loads((tmp_path / "base" / "gateway.json").read_text())
        assert announced == {"pid": os.getpid(), "url": gateway.url, "certificate": fingerprint}
        async with GatewayClient(gateway.url, TOKEN, ca_file=tmp_path / "ca.pem") as client:
            assert (await client.workers())["healthy"]
        async with GatewayClient(gateway.url, TOKEN, fingerprint=fingerprint) as client:
            assert (await client.workers())["healthy"]
        with pytest.raises(ssl.SSLError):
            old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
            await asyncio.to_thread(shown, gateway.port, **old)
        _, version, _ = await asyncio.to_thread(shown, gateway.port, maximum_version=ssl.TLSVersion.TLSv1_2)
        assert version == "TLSv1.2"


async def test_who_is_not_the_announced_gateway_gets_no_token(tmp_path: Path) -> None:
    async with gateway_in(tmp_path / "base", edge=write_pair(tmp_path, trustme.CA())) as gateway:
        for options in ({"fingerprint": "00" * 32}, {}):
            async with GatewayClient(gateway.url, TOKEN, **options) as client:  # type: ignore[arg-type]
                with pytest.raises(Unavailable) as caught:
                    await client.workers()
            check_sentence(caught.value.message)
            assert caught.value.verdict == "not_started"
            assert "certificate" in caught.value.message


async def test_the_command_line_trusts_what_was_announced_and_what_it_is_told_to(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with gateway_in(tmp_path / "base", edge=write_pair(tmp_path, authority)) as gateway:

        async def workers(*arguments: str, **variables: str) -> tuple[int, str]:
            result = await asyncio.to_thread(
                moltbot, tmp_path, "workers", "status", "--json", *arguments, MOLTBOT_TOKEN=TOKEN, **variables
            )
            return result.returncode, result.stdout + result.stderr

        assert (await workers("-s", str(tmp_path / "base")))[0] == 0
        status, told = await workers("--url", gateway.url)
        assert status != 0
        assert "MOLTBOT_CA" in told
        assert (await workers("--url", gateway.url, MOLTBOT_CA=str(tmp_path / "ca.pem")))[0] == 0
        status, told = await workers("--url", gateway.url, MOLTBOT_CA=str(tmp_path / "none.pem"))
        assert status != 0
        assert "none.pem" in told


def missing(files: Files) -> str:
    files["tls_cert"].unlink()
    return "tls_cert .* cannot be read"


def a_directory(files: Files) -> str:
    files["tls_key"].unlink()
    files["tls_key"].mkdir(mode=0o700)
    return "tls_key .* cannot be read|must be whole PEM files"


def open_to_others(files: Files) -> str:
    files["tls_key"].chmod(0o644)
    return "others can read tls_key .*chmod 600"


def of_another(files: Files) -> str:
    files["tls_key"].write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    return "does not belong to tls_cert"


def cut_short(files: Files) -> str:
    files["tls_key"].write_bytes(files["tls_key"].read_bytes()[:100])
    return "must be whole PEM files"


def no_pem(files: Files) -> str:
    files["tls_cert"].write_text("hello")
    return "must be whole PEM files"


def a_pipe(files: Files) -> str:
    files["tls_cert"].unlink()
    os.mkfifo(files["tls_cert"])
    return "tls_cert .* cannot be read"


def encrypted(files: Files) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(files["tls_key"].read_bytes(), None)
    files["tls_key"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return "encrypted"


@pytest.mark.parametrize(
    "spoil", [missing, a_directory, open_to_others, of_another, cut_short, no_pem, a_pipe, encrypted]
)
async def test_a_pair_that_cannot_serve_is_refused_before_a_worker_starts(
    tmp_path: Path, spoil: object
) -> None:
    files = write_pair(tmp_path, trustme.CA())
    expected = spoil(files)  # type: ignore[operator]
    with pytest.raises(StartupError, match=expected) as caught:
        async with gateway_in(tmp_path / "base", edge=files):
            pass
    check_sentence(caught.value.message)
    assert not (tmp_path / "base").exists()


async def test_an_expired_certificate_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_pair(tmp_path, trustme.CA(), expires=datetime(2020, 5, 6, 7, 8, 9, tzinfo=UTC))
    async with gateway_in(tmp_path / "base", edge=files):
        assert "expired on 2020-05-06T07:08:09+00:00" in caplog.text


async def test_a_renewed_pair_is_taken_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.05)
    caplog.set_level(logging.ERROR)
    files = write_pair(tmp_path, trustme.CA())
    async with gateway_in(tmp_path / "base", edge=files) as gateway:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=context)
        first = (await asyncio.to_thread(shown, gateway.port))[0]
        new = write_pair_text(tmp_path)
        files["tls_key"].write_bytes(new["tls_key"])  # half of the new pair is there
        await eventually(lambda: "does not belong" in caplog.text)
        assert (await asyncio.to_thread(shown, gateway.port))[0] == first
        assert announced(gateway) == first
        files["tls_cert"].write_bytes(new["tls_cert"])
        await eventually(lambda: announced(gateway) != first)
        second = announced(gateway)
        assert (await asyncio.to_thread(shown, gateway.port))[0] == second
        async with asyncio.timeout(PATIENCE):  # an open connection goes on
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert caplog.text.count("is not renewed") == 1
        files["tls_cert"].unlink()
        await eventually(lambda: caplog.text.count("is not renewed") == 2)
        assert (await asyncio.to_thread(shown, gateway.port))[0] == second


async def test_a_look_that_fails_in_passing_is_repeated_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)
    files = write_pair(tmp_path, trustme.CA())
    failures = iter([OSError(errno.EMFILE, "Too many open files")] * 3)
    read_pair = tls.read_pair

    def read(*paths: Path) -> tls.Pair:
        for failure in failures:
            raise failure
        return read_pair(*paths)

    async with gateway_in(tmp_path / "base", edge=files) as gateway:
        first = announced(gateway)
        monkeypatch.setattr(tls, "read_pair", read)
        write_pair(tmp_path, trustme.CA())
        await eventually(lambda: announced(gateway) != first)
    assert caplog.text.count("Too many open files") == 1


def write_pair_text(directory: Path) -> dict[str, bytes]:
    (directory / "new").mkdir()
    return {name: file.read_bytes() for name, file in write_pair(directory / "new", trustme.CA()).items()}


def announced(gateway: Gateway) -> str:
    base = gateway.router.config.sandbox_base_dir
    return str(json.loads((base / "gateway.json").read_text())["certificate"])


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"], ids=range(3))
async def test_handshakes_that_never_end_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, says: bytes
) -> None:
    monkeypatch.setattr(listening, "IDLE_SECONDS", 1.0)
    files: dict[str, object] = {**write_pair(tmp_path, trustme.CA()), "max_connections": 16}
    async with gateway_in(tmp_path / "base", edge=files) as gateway:
        opened = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(40)]
        for _, writer in opened:
            writer.write(says)
        fingerprint = gateway.fingerprint
        async with GatewayClient(gateway.url, TOKEN, fingerprint=fingerprint) as client:
            assert (await client.workers())["healthy"]
        async with asyncio.timeout(PATIENCE):
            for reader, writer in opened:
                try:
                    await reader.read()  # each is ended, at the latest when its time is over
                except ConnectionError:
                    pass
                writer.close()
        seats = gateway.seats
        assert seats is not None
        await eventually(lambda: not seats.taken)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
