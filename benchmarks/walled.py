"""The handlers that the benchmark of isolation loads: small file calls and loopback echoes, timed where they run.

Each runs a fixed number of rounds in a thread of the worker and answers microseconds a round, so that neither frames nor
the gateway's loop are in the figure. One thread on both ends of a socket: what is measured is the system calls.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from moltbot import Context, handler

MESSAGE = b"x" * 64
CONTENT = b"x" * 1024


@handler("echo")
async def echo(ctx: Context, payload: Any) -> Any:
    return payload


@handler("files")
def files(ctx: Context, payload: int) -> float:
    """Write a small file beside its place, rename it, read it, ask for its size; as saving a user's state does."""
    folder = os.path.abspath(ctx.state_dir)
    name, beside = f"{folder}/file", f"{folder}/file.new"
    begun = time.perf_counter()
    for _ in range(payload):
        with open(beside, "wb", buffering=0) as file:
            file.write(CONTENT)
        os.rename(beside, name)
        with open(name, "rb", buffering=0) as file:
            file.read()
        os.stat(name)
    return _microseconds(begun, payload)


@handler("stats")
def stats(ctx: Context, payload: int) -> float:
    """One stat: the shortest call that asks about a path."""
    folder = os.path.abspath(ctx.state_dir)
    begun = time.perf_counter()
    for _ in range(payload):
        os.stat(folder)
    return _microseconds(begun, payload)


@handler("pair")
def pair(ctx: Context, payload: int) -> float:
    """There and back over a socketpair."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return _echo(ours, theirs, payload)


@handler("loopback")
def loopback(ctx: Context, payload: int) -> float:
    """There and back over a TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as ours:
        ours.connect(server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return _echo(ours, theirs, payload)


def _echo(ours: socket.socket, theirs: socket.socket, rounds: int) -> float:
    begun = time.perf_counter()
    for _ in range(rounds):
        ours.sendall(MESSAGE)
        theirs.sendall(theirs.recv(len(MESSAGE)))
        ours.recv(len(MESSAGE))
    return _microseconds(begun, rounds)


def _microseconds(begun: float, rounds: int) -> float:
    return (time.perf_counter() - begun) * 1e6 / rounds
