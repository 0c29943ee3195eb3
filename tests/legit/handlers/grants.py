"""Handlers that use what an operator has granted: files, folders, variables, a network."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

from moltbot import Context, handler


@handler("reads")
def reads(ctx: Context, payload: str) -> str | None:
    """A file's content, None if it is not there."""
    path = Path(payload)
    return path.read_text(encoding="utf-8") if path.exists() else None


@handler("writes")
def writes(ctx: Context, payload: str) -> str:
    """Leave a file of this worker's in a folder; returns how that went, as an errno's name."""
    path = Path(payload) / f"{ctx.worker_id}.txt"
    try:
        path.write_text(ctx.user_id, encoding="utf-8")
        os.replace(path, path.with_suffix(".done"))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "written"


@handler("environment")
def environment(ctx: Context, payload: Any) -> dict[str, str]:
    return dict(os.environ)


@handler("own_address")
def own_address(ctx: Context, payload: Any) -> str:
    return socket.gethostbyname(socket.gethostname())


@handler("connects")
async def connects(ctx: Context, payload: int) -> str:
    """What a server on the machine's loopback says first; the errno's name if it cannot be reached."""
    try:
        async with asyncio.timeout(25):
            reader, writer = await asyncio.open_connection("127.0.0.1", payload)
            said = await reader.readline()
            writer.close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return said.decode()
