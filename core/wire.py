"""A connected stream socket on an event loop, with a writer that any thread may use.

The gateway and the worker use the same one. Unlike an asyncio transport it knows how many bytes the kernel has taken
(a request whose first byte was never taken has not started), and a thread can write while the loop is blocked (that is
how a worker with a stuck loop still beats). What the bytes mean is in `session.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

_READ_BYTES = 64 << 10
_LAST_READS = 64


class Wire:
    """Reads on the loop, writes from anywhere. `on_close` is called once, on the loop, unless `close` came first."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_data: Callable[[bytes], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._on_data = on_data
        self._on_close = on_close
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._waiting_to_write = False
        self._closed = False
        self._deaf = False
        self.written = 0
        """Bytes the kernel has taken so far."""
        loop.add_reader(sock.fileno(), self._readable)

    @property
    def unwritten(self) -> int:
        """Bytes that wait for the kernel."""
        return len(self._pending)

    def write(self, data: bytes) -> None:
        """Write now what the kernel takes, and the rest when it can; thread-safe; ignored after the end."""
        with self._lock:
            if self._closed or self._deaf:
                return
            if self._pending:
                self._pending += data
                self._push()
            else:
                sent = self._send(data)
                if sent < len(data):
                    self._pending += memoryview(data)[sent:]
            blocked = bool(self._pending) and not self._waiting_to_write
            self._waiting_to_write = self._waiting_to_write or blocked
        if blocked:
            self._on_loop(self._await_writable)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to write for
            self._loop.call_soon_threadsafe(callback)

    def _await_writable(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        with self._lock:
            self._push()
            if self._pending or self._closed:
                return
            self._waiting_to_write = False
        self._loop.remove_writer(self._sock.fileno())

    def _push(self) -> None:
        with memoryview(self._pending) as view:
            sent = self._send(view)
        del self._pending[:sent]

    def _send(self, data: bytes | memoryview) -> int:
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # Nobody will ever read it: drop it, or the loop would try for ever.
            if not self._deaf:
                self._deaf = True
                self._on_loop(self._hear_out)
            return len(data)
        self.written += sent
        return sent

    def pause_reading(self) -> None:
        """Leave what comes in the kernel for now; loop thread only."""
        if not self._closed:
            self._loop.remove_reader(self._sock.fileno())

    def resume_reading(self) -> None:
        """Read on; loop thread only."""
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        elif not self._closed:
            self.close()
            self._on_close()

    def _hear_out(self) -> None:
        """The other side reads no more: take what it has said until now, and end, whatever it goes on saying."""
        for _ in range(_LAST_READS):
            if self._closed:
                return
            try:
                data = self._sock.recv(_READ_BYTES)
            except OSError:
                break
            if not data:
                break
            self._on_data(data)
        if not self._closed:
            self.close()
            self._on_close()

    def close(self) -> None:
        """Stop reading and writing and close the socket; loop thread only; may be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._pending.clear()
