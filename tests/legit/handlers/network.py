"""Honest programs about sockets, on the worker's own loopback and in its folders; each checks its results."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from moltbot import Context, handler

PATIENCE = 25.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read(1000)).upper())
    await writer.drain()
    writer.close()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What a server answers."""
    async with asyncio.timeout(PATIENCE):
        writer.write(b"hello")
        answer = await reader.read()
        writer.close()
    return answer


@handler("asyncio_server")
async def asyncio_server(ctx: Context, payload: Any) -> None:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await asked(*await asyncio.open_connection("localhost", port)) == b"HELLO"


@handler("asyncio_unix_server")
async def asyncio_unix_server(ctx: Context, payload: Any) -> None:
    path = Path(tempfile.mkdtemp()) / "socket"
    async with await asyncio.start_unix_server(echo, path):
        assert await asked(*await asyncio.open_unix_connection(path)) == b"HELLO"


@handler("tcp_between_processes")
def tcp_between_processes(ctx: Context, payload: Any) -> None:
    program = (
        "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1]))).sendall(b'child')"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        child = subprocess.Popen([sys.executable, "-c", program, str(server.getsockname()[1])])
        with server.accept()[0] as connection:
            assert connection.recv(100) == b"child"
        assert child.wait(PATIENCE) == 0


@handler("udp")
def udp(ctx: Context, payload: Any) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(type=socket.SOCK_DGRAM) as two,
    ):
        one.bind(("127.0.0.1", 0))
        one.settimeout(PATIENCE)
        two.sendto(b"hello", one.getsockname())
        assert one.recvfrom(100)[0] == b"hello"


@handler("ipv6_loopback")
def ipv6_loopback(ctx: Context, payload: Any) -> None:
    if not Path("/proc/net/if_inet6").exists():
        return  # the machine has none
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        with socket.create_connection(server.getsockname()[:2], timeout=PATIENCE) as client:
            client.sendall(b"six")
        assert server.accept()[0].recv(100) == b"six"


@handler("unix_sockets")
def unix_sockets(ctx: Context, payload: Any) -> None:
    """In its own directories; a descriptor travels through."""
    path = str(ctx.temp_dir / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        there, _ = server.accept()
        with tempfile.TemporaryFile() as file, there:
            file.write(b"passed on")
            file.flush()
            socket.send_fds(client, [b"x"], [file.fileno()])
            _, (received,), _, _ = socket.recv_fds(there, 1, 1)
            assert os.pread(received, 100, 0) == b"passed on"
            os.close(received)
    os.unlink(path)


@handler("socket_pairs")
def socket_pairs(ctx: Context, payload: Any) -> None:
    """And what waits for many descriptors at once."""
    one, two = socket.socketpair()
    with one, two, select.epoll() as epoll:
        epoll.register(two, select.EPOLLIN)
        assert epoll.poll(0) == []
        one.sendall(b"x")
        assert epoll.poll(PATIENCE) == [(two.fileno(), select.EPOLLIN)]
        assert select.select([two], [], [], PATIENCE)[0] == [two]
        poll = select.poll()
        poll.register(two, select.POLLIN)
        assert poll.poll(PATIENCE * 1000) == [(two.fileno(), select.POLLIN)]
        assert two.recv(1) == b"x"


@handler("names")
def names(ctx: Context, payload: Any) -> None:
    """A name that is known here is found; one that is not fails without a wait for servers."""
    assert {found[4][0] for found in socket.getaddrinfo("localhost", 80)} <= {"127.0.0.1", "::1"}
    assert socket.getservbyname("https") == 443
    assert any(name == "lo" for _, name in socket.if_nameindex())
    try:
        socket.getaddrinfo("nowhere.invalid", 80)
        raise AssertionError("it was found")
    except socket.gaierror:
        pass


@handler("own_name")
def own_name(ctx: Context, payload: Any) -> None:
    """The name of the machine is the worker's, and leads back to it."""
    assert socket.gethostname() == ctx.worker_id
    assert socket.gethostbyname(socket.gethostname()).startswith("127.")


@handler("no_other_network")
def no_other_network(ctx: Context, payload: Any) -> None:
    """Without a network a program hears so at once, as on a machine without a cable."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        try:
            client.connect(("192.0.2.1", 80))
            raise AssertionError("it was reached")
        except TimeoutError:
            raise
        except OSError:
            pass


@handler("web_server")
async def web_server(ctx: Context, payload: Any) -> None:
    """A library of the environment, imported by a handler: server and client of aiohttp."""

    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"path": request.path})

    app = web.Application()
    app.router.add_get("/{any}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        async with (
            asyncio.timeout(PATIENCE),
            aiohttp.ClientSession() as session,
            session.get(f"http://localhost:{port}/hello") as response,
        ):
            assert await response.json() == {"path": "/hello"}
    finally:
        await runner.cleanup()


@handler("tls")
def tls(ctx: Context, payload: Mapping[str, str]) -> None:
    """A server with a certificate, and a client that trusts the given authority; without it, it refuses."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(payload["certificate"])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                with server.accept()[0] as plain:
                    try:
                        with serving.wrap_socket(plain, server_side=True) as safe:
                            safe.sendall(safe.recv(100).upper())
                    except OSError:
                        continue  # the client that does not trust us

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = server.getsockname()
        try:
            with socket.create_connection(address, timeout=PATIENCE) as plain:
                ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
            raise AssertionError("a stranger's certificate was taken")
        except ssl.SSLCertVerificationError:
            pass
        trusting = ssl.create_default_context(cafile=payload["authority"])
        with (
            socket.create_connection(address, timeout=PATIENCE) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as safe,
        ):
            safe.sendall(b"hello")
            assert safe.recv(100) == b"HELLO"
        thread.join(PATIENCE)


@handler("authorities_of_the_system")
def authorities_of_the_system(ctx: Context, payload: Mapping[str, Any]) -> None:
    """The certificates that the machine trusts are the same inside."""
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath or paths.openssl_capath)
    assert sorted(os.listdir(folder) if folder.exists() else []) == payload["names"]
    for name in payload["names"]:
        if name.endswith((".crt", ".pem")):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(folder / name)
            assert context.get_ca_certs()
