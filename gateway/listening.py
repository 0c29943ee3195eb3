"""The port itself: taking it, letting connections in, and bounding how many there are.

When all places are taken, whoever is idle for longest makes room: a connection without a request under way, be it silent, in
the middle of a head or of a TLS handshake. What is said on a connection is in `protocol.py`, certificates are in `tls.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from functools import partial

import psutil
from aiohttp import web

from moltbot.core.errors import PortInUse, StartupError

IDLE_SECONDS = 30.0
"""For a connection that sends no request, or only a part of its head, or does not end its TLS handshake."""
MAX_CONNECTIONS = 10_000
_DESCRIPTORS_PER_WORKER = 8
_OWN_DESCRIPTORS = 100
_BACKLOG = 1024
_AT_ONCE = 64  # connections taken in one turn of the event loop
_PAUSE = 0.1  # seconds without accepting, when the machine has nothing left for a connection
_UNSENT_BYTES = 128 << 10  # of an answer that the kernel keeps unsent; by itself it would be megabytes
_QUIET_SECONDS = 10.0  # between two lines of the log that say the same
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger("moltbot.gateway")


class Seat:
    """The place of one connection; `abort` closes it at once, whatever it is doing."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.abort: Callable[[], object] = lambda: None

    def keep(self) -> None:
        """A request is under way: nobody else gets this place."""
        self._seats.idle.pop(self, None)

    def offer(self) -> None:
        """No request is under way any more: who needs a place may get this one."""
        if self in self._seats.taken:
            self._seats.idle.setdefault(self)

    def leave(self) -> None:
        """The connection is gone; may be repeated."""
        self._seats.taken.discard(self)
        self._seats.idle.pop(self, None)


class Seats:
    """The places for connections, `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken: set[Seat] = set()
        self.idle: dict[Seat, None] = {}  # the longest idle first
        self.refused = 0

    def take(self) -> Seat | None:
        """A place, if need be that of the one who is idle for longest; None if all are busy."""
        if len(self.taken) >= self.limit and not self.free_one():
            self.refused += 1
            return None
        seat = Seat(self)
        self.taken.add(seat)
        seat.offer()
        return seat

    def free_one(self) -> bool:
        """Close the connection that is idle for longest; False if none is idle."""
        seat = next(iter(self.idle), None)
        if seat is None:
            return False
        seat.leave()
        seat.abort()
        return True


SEATS = web.AppKey("seats", Seats)


class Listener:
    """Lets connections in: `start` once, `stop` lets no more in and ends the handshakes under way."""

    def __init__(
        self,
        sock: socket.socket,
        seats: Seats,
        protocol: Callable[[Seat], asyncio.Protocol],
        context: ssl.SSLContext | None,
    ) -> None:
        self._socket = sock
        self._seats = seats
        self._protocol = protocol
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._quiet_until: dict[str, float] = {}
        self._bare: set[socket.socket] = set()  # no transport has them yet: only we can close them

    def start(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    async def stop(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        if self._pause is not None:
            self._pause.cancel()
        for task in self._welcomes:
            task.cancel()
        await asyncio.gather(*self._welcomes, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # gone before it was let in
            except OSError as error:
                self._make_do(error)
                return
            sock.setblocking(False)
            seat = self._seats.take()
            if seat is None:
                sock.close()
                self._tell("refused a connection: %d are open with requests under way", self._seats.limit)
                continue
            task = self._loop.create_task(self._welcome(sock, seat))
            seat.abort = task.cancel
            self._welcomes.add(task)
            self._bare.add(sock)
            task.add_done_callback(partial(self._welcomed, sock, seat))

    async def _welcome(self, sock: socket.socket, seat: Seat) -> None:
        """Give the connection its protocol, after the TLS handshake if there is one."""
        protocol = self._protocol(seat)
        self._bare.discard(sock)
        await self._loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self._context,
            ssl_handshake_timeout=IDLE_SECONDS if self._context is not None else None,
        )

    def _welcomed(self, sock: socket.socket, seat: Seat, task: asyncio.Task[None]) -> None:
        self._welcomes.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        seat.leave()
        if sock in self._bare:  # else its transport still needs it, and closes it
            self._bare.discard(sock)
            sock.close()
        if error is not None and not isinstance(error, OSError):  # OSError: no TLS, gone, or too slow
            log.error("a connection could not be let in", exc_info=error)

    def _make_do(self, error: OSError) -> None:
        """Wait a moment; if descriptors or memory are used up, of this process or the machine, an idle one makes room."""
        if error.errno in _USED_UP:
            self._tell("connections wait, idle ones are closed for them: %s", error.strerror)
            self._seats.free_one()
        else:
            self._tell("connections wait, the port lets none in: %s", error.strerror)
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(_PAUSE, self.start)

    def _tell(self, sentence: str, *values: object) -> None:
        """Warn, but not for every single connection."""
        now = self._loop.time()
        if now >= self._quiet_until.get(sentence, 0.0):
            self._quiet_until[sentence] = now + _QUIET_SECONDS
            log.warning(sentence, *values)


def connection_limit(workers: int, wanted: int | None = None) -> int:
    """How many connections may be open at once, so that descriptors are left for the workers and the database."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if wanted is not None else MAX_CONNECTIONS
    if soft == resource.RLIM_INFINITY:
        return most
    affordable = max(16, soft - _OWN_DESCRIPTORS - workers * _DESCRIPTORS_PER_WORKER)
    if wanted is not None and wanted > affordable:
        log.warning(
            "max_connections is %d, but only %d files may be open: it is %d now, raise `ulimit -n`",
            wanted,
            soft,
            affordable,
        )
    return min(most, affordable)


def bind(host: str, port: int) -> socket.socket:
    """Take a port (0: any free one); raises PortInUse, naming the process that has it if that can be known."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartupError(
            f"cannot listen on host {host!r}: {error.strerror}: give an address of this machine"
        ) from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} is taken{_holder(port)}: stop it, or choose another with --port"
            ) from None
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another host or port"
        ) from None
    return sock


def is_loopback(sock: socket.socket) -> bool:
    """True if only this machine can reach it."""
    return ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0]).is_loopback


def _holder(port: int) -> str:
    """` by NAME (pid N)` for whoever listens there, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
