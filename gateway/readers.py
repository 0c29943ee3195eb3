"""Readers of answers: one that takes nothing for a while is let go, and with it whatever is made for it.

What counts is what arrived: buffers on the way fill and empty in lumps, and would make a slow reader look like one that
takes nothing. The kernel's own TCP_USER_TIMEOUT is of no use here: it also ended readers who had taken something within
it. When to look is known in `protocol.py`; how long a body may take to come, in `bodies.py`.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import sys
import termios

_ACKED = slice(120, 128)
"""`tcpi_bytes_acked` in Linux's `struct tcp_info`: all that ever arrived at the other end."""

log = logging.getLogger("moltbot.gateway")


class Reader:
    """Who is at the other end of a connection. `wait` as soon as something waits for it, `leave` when it is gone."""

    __slots__ = ("_look", "_loop", "_seconds", "_taken", "_transport")

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        """seconds: without anything taken; it may be twice as long, for looks are that far apart."""
        self._transport = transport
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.TimerHandle | None = None
        self._taken = 0

    def wait(self) -> None:
        """From now on it must take something from time to time, until nothing waits for it; may be repeated."""
        if self._look is None:
            self._taken = taken_by(self._transport)
            self._look = self._loop.call_later(self._seconds, self._look_again)

    def leave(self) -> None:
        """It is gone."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_again(self) -> None:
        """What waits now and did at the last look has waited all the time, if nothing was taken in between."""
        self._look = None
        if not _waits(self._transport):
            return
        if taken_by(self._transport) == self._taken:
            # Anybody with a credential can bring this about as often as they like: it must not fill the log.
            log.debug("a reader took nothing for %g s and was let go", self._seconds)
            self._transport.abort()
        else:
            self.wait()


def taken_by(transport: asyncio.Transport) -> int:
    """A number that stays the same as long as the other end takes nothing of what waits for it."""
    if sys.platform == "linux":
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.fileno() < 0:  # closed, and its protocol will be told in a moment
            return 0
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)
        return int.from_bytes(info[_ACKED], sys.byteorder)
    return transport.get_write_buffer_size()  # coarser: what left this process counts as taken


def _waits(transport: asyncio.Transport) -> bool:
    """True if there is anything that the other end has not taken."""
    if transport.get_write_buffer_size() > 0:
        return True
    if (
        sys.platform == "linux"
    ):  # behind TLS, megabytes may wait where only the kernel's part of them can be seen
        connection: socket.socket = transport.get_extra_info("socket")
        if connection.fileno() >= 0:
            unsent = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
            return int.from_bytes(unsent, sys.byteorder) > 0
    return False
