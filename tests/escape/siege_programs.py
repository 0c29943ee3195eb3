"""The handlers of a siege, and what stands in front of every program that they run."""

from __future__ import annotations

from pathlib import Path

HANDLER = '''
import asyncio, json, os, subprocess, sys, time

BORN = time.monotonic()

from moltbot import handler

kept = []


@handler("count")
async def count(ctx, payload):
    ctx.state["count"] = ctx.state.get("count", 0) + 1
    return ctx.state["count"]


@handler("born")
async def born(ctx, payload):
    """When this process loaded its handlers, on the clock that all processes share."""
    return BORN


def places(ctx):
    return {
        "state": str(ctx.state_dir),
        "sessions": str(ctx.session_dir),
        "cache": str(ctx.cache_dir),
        "temp": str(ctx.temp_dir),
    }


@handler("attack")
async def attack(ctx, payload):
    """Run a program as a child, which may live on; returns the first thing it says, None if it never does."""
    read, write = os.pipe()
    given = json.dumps({**places(ctx), **payload["given"]})
    command = [sys.executable, "-I", "-S", "-c", payload["program"], payload["marker"], str(write), given]
    kept.append(subprocess.Popen(command, pass_fds=[3, write]))
    os.close(write)
    reader = asyncio.StreamReader()
    pipe = os.fdopen(read, "rb")
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    line = await reader.readline()
    return json.loads(line) if line else None


@handler("inside")
async def inside(ctx, payload):
    """Run a program in the worker's own process; returns `answer` if it sets that, else waits for the end."""
    names = {**places(ctx), **payload["given"], "kept": kept}
    exec(payload["program"], names)
    if "answer" in names:
        return names["answer"]
    await asyncio.sleep(60)
'''

PRELUDE = """
import ctypes, errno, json, os, signal, socket, stat, subprocess, sys, threading, time
marker, _pipe, given = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
state, sessions, cache, temp = (given[name] for name in ("state", "sessions", "cache", "temp"))
_end = time.monotonic() + 60

def say(what):
    os.write(_pipe, json.dumps(what).encode() + b"\\n")
    os.close(_pipe)

def refused(error):
    say(errno.errorcode.get(error.errno, str(error.errno)) if isinstance(error, OSError) else str(error))

def over():
    return time.monotonic() > _end  # no attack outlasts the test by much, even if nobody stops it

def linger():
    while not over():
        time.sleep(1)
"""

# Each line of a program is one attempt; those that are refused are counted by their error.
ATTEMPTS = """
outcome = {}
for name, act in attempts.items():
    try:
        act()
        outcome[name] = "done"
    except OSError as error:
        outcome[name] = errno.errorcode[error.errno]
say(outcome)
linger()
"""


def handler_file(tmp_path: Path) -> Path:
    """The handlers of a siege, readable for workers with uids of their own."""
    file = tmp_path / "author" / "hostile.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(HANDLER)
    file.chmod(0o644)
    return file
