"""What the attempts are after: files, memory, sockets and facts of the gateway's own user, made around a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from tests.escape.prelude import call, libc

MARKER = f"precious-{secrets.token_hex(12)}"
VARIABLE = "MOLTBOT_ESCAPE_SECRET"


class _Handle(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def _file_handle(path: Path) -> str:
    """The kernel's handle for a file, in hexadecimal; one that nothing has where file systems give none."""
    handle, mount = _Handle(128), ctypes.c_int()
    with contextlib.suppress(OSError):
        call("name_to_handle_at", -100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0)
        return bytes(handle)[: 8 + handle.length].hex()
    return bytes(_Handle(8, 1)).hex()


def files(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    for name in ("secret", "spare", "longer"):
        (folder / name).write_text(MARKER)
    return {
        "outside": str(folder),
        "secret": str(folder / "secret"),
        "spare": str(folder / "spare"),
        "longer": str(folder / "longer"),
        "secret_handle": _file_handle(folder / "secret"),
    }


def granted_folder(folder: Path) -> Path:
    """A folder that the operator lets workers read: in it, a copy of `id` that runs as the gateway's user."""
    folder.mkdir(mode=0o755)
    program = shutil.which("id")
    assert program is not None
    shutil.copy(program, folder / "id")
    (folder / "id").chmod(0o4755)
    (folder / "text").write_text("to be read")
    return folder


def shared_memory(stack: ExitStack) -> dict[str, Any]:
    """A segment, a semaphore and a queue of each kind, readable by the gateway's user alone."""
    key = secrets.randbits(30) | 1
    segment = call("shmget", key, 4096, 0o1600)
    stack.callback(call, "shmctl", segment, 0, 0)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    ctypes.memmove(address, MARKER.encode(), len(MARKER))
    libc.shmdt(ctypes.c_void_p(address))
    semaphores = call("semget", key, 1, 0o1600)
    stack.callback(call, "semctl", semaphores, 0, 0)
    queue = call("msgget", key, 0o1600)
    stack.callback(libc.msgctl, queue, 0, None)
    name = f"moltbot-escape-{key:x}"
    smallest = (ctypes.c_long * 8)(0, 1, 16)  # a user's queues may not take much together
    for queue_name in (name, f"{name}-spare"):
        os.close(call("mq_open", queue_name.encode(), os.O_CREAT | os.O_RDWR, 0o600, ctypes.byref(smallest)))
        stack.callback(libc.mq_unlink, f"/{queue_name}".encode())  # unless an attempt did
    shared = Path("/dev/shm", name)
    shared.write_text(MARKER)
    shared.chmod(0o600)
    stack.callback(shared.unlink)
    named = Path("/dev/shm", f"sem.{name}")
    library = ctypes.CDLL("libpthread.so.0", use_errno=True)
    library.sem_open.restype = ctypes.c_void_p
    assert library.sem_open(f"/{name}".encode(), os.O_CREAT, 0o600, 1)
    stack.callback(named.unlink)
    return {
        "ipc_key": key,
        "segment": segment,
        "semaphores": semaphores,
        "queue": queue,
        "shared": str(shared),
        "semaphore_name": name,
        "queue_name": name,
        "spare_queue": f"{name}-spare",
    }


@contextlib.contextmanager
def key() -> Iterator[str]:
    """A key of the gateway's user with this description; none where the kernel or a container refuses it."""
    name, ring, unlink = f"moltbot-escape-{secrets.token_hex(8)}", -4, 9  # the user's keyring, KEYCTL_UNLINK
    try:
        serial = call("add_key", b"user", name.encode(), MARKER.encode(), len(MARKER), ring)
    except OSError:
        yield name
        return
    try:
        yield name
    finally:
        call("keyctl", unlink, serial, ring)


def key_shown() -> None:
    """Raises OSError if this process cannot read that such a key is there."""
    with key() as name, open("/proc/keys", encoding="utf-8") as keys:
        if name not in keys.read():
            raise OSError(errno.ENOENT, "it is not shown")


class _Echo(asyncio.DatagramProtocol):
    """Answers every datagram with the marker."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(MARKER.encode(), addr)


async def _tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whoever connects gets the marker."""
    writer.write(MARKER.encode())
    with contextlib.suppress(OSError):
        await writer.drain()
    writer.close()


async def listeners(stack: AsyncExitStack, folder: Path) -> dict[str, Any]:
    """Whoever reaches one of these gets the marker."""
    abstract = f"moltbot-escape-{secrets.token_hex(8)}"
    place = folder / "named"
    tcp = await asyncio.start_server(_tell, "127.0.0.1", 0)
    servers = [
        tcp,
        await asyncio.start_unix_server(_tell, "\0" + abstract),
        await asyncio.start_unix_server(_tell, place),
    ]
    for server in servers:
        stack.callback(server.close)
    udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Echo, ("127.0.0.1", 0))
    stack.callback(udp.close)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.callback(datagrams.close)
    datagrams.bind(str(folder / "datagrams"))
    return {
        "tcp": tcp.sockets[0].getsockname()[1],
        "udp": udp.get_extra_info("sockname")[1],
        "abstract": abstract,
        "named": str(place),
        "datagrams": str(folder / "datagrams"),
        "gateway_fd": datagrams.fileno(),
    }


def about_the_gateway() -> dict[str, Any]:
    return {
        "gateway": os.getpid(),
        "gateway_uid": os.geteuid(),
        "gateway_user_namespace": os.readlink("/proc/self/ns/user"),
        "gateway_pid_namespace": os.readlink("/proc/self/ns/pid"),
        "hostname": socket.gethostname(),
        "site_packages": str(Path(pytest.__file__).parents[1]),
        "variable": VARIABLE,
    }
