"""`POST /api/route` under load, against one bare aiohttp process and against HAProxy in front of three.

Measured: requests per second and median latency that `wrk` sees with 32 connections, 64 users in turn, over loopback; the
load generator shares the cores with what it measures, on both sides. HAProxy hashes the user's header onto three aiohttp
processes: sticky as long as nothing changes, without order, limits, isolation, restarts or a check of the credential. Not
measured: TLS, streams, large bodies, handlers that do work.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.runner import Plan, Row, compared, ratio_at_least, scratch, skipped

CONNECTIONS = 32
BACKENDS = 3
INSTALL = "apt-get install -y haproxy wrk"

_SCRIPT = """
local count = 0
local headers = {{["Content-Type"] = "application/json", ["Authorization"] = "Bearer {token}"}}
request = function()
  count = (count + 1) % 64
  headers["X-User"] = "user-" .. count
  local body = '{{"type":"echo","userId":"user-' .. count .. '","payload":{{"message":"hello, how are you today?","turn":7}}}}'
  return wrk.format("POST", "/api/route", headers, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("FIGURES %f %f %f %d\\n", summary.requests / summary.duration * 1e6, latency:percentile(50), latency:percentile(99), bad))
end
"""
_HAPROXY = """
global
    maxconn 1000
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance hdr(X-User)
    hash-type consistent
{servers}
"""

Figures = tuple[float, float, float]
Wrk = Callable[[], Figures]


def measure(plan: Plan) -> list[Row]:
    missing = [tool for tool in ("wrk", "haproxy") if shutil.which(tool) is None]
    note = f"{' and '.join(missing)} not installed: {INSTALL}"
    if "wrk" in missing:
        return [skipped("POST /api/route", note)]
    with scratch() as base, contextlib.ExitStack() as stack:
        port, token = stack.enter_context(
            serving("benchmarks.http_gateway", plan.loop, str(base / "gateway"))
        ).split()
        script = _SCRIPT.format(token=token)
        ports = [stack.enter_context(serving("benchmarks.http_echo", plan.loop)) for _ in range(BACKENDS)]
        ours = wrk(plan, base, port, script)
        rows = _rows("one bare aiohttp", *measured_in_turns(plan, ours, wrk(plan, base, ports[0], script)))
        if missing:
            return [*rows, skipped("POST /api/route beside HAProxy + 3 aiohttp", note)]
        front = stack.enter_context(_haproxy(base, ports))
        mine, theirs = measured_in_turns(plan, ours, wrk(plan, base, front, script))
        return rows + _rows("HAProxy + 3 aiohttp", mine, theirs, aimed=True)


Series = list[Figures]


def _rows(beside: str, ours: Series, floor: Series, *, aimed: bool = False) -> list[Row]:
    rates, medians, _ = zip(*ours, strict=True)
    floor_rates, floor_medians, _ = zip(*floor, strict=True)
    what = f"POST /api/route, beside {beside}"
    return [
        compared(f"{what}, rate", "/s", rates, floor_rates, ratio_at_least(0.9) if aimed else None),
        compared(f"{what}, p50", "us", medians, floor_medians),
    ]


def measured_in_turns(plan: Plan, ours: Wrk, floor: Wrk) -> tuple[Series, Series]:
    ours()
    floor()
    pairs = [(ours(), floor()) for _ in range(plan.turns)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def wrk(plan: Plan, base: Path, port: str, script_text: str) -> Wrk:
    """A turn of load on `port`: gives requests per second, and the median and 99th percentile of latency in us."""
    script = base / f"{port}.lua"
    script.write_text(script_text)
    seconds = max(1, round(plan.seconds * 2))  # wrk counts in whole seconds
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}",
    ]

    def run() -> Figures:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES"))
        rate, median, worst, bad = map(float, line.split()[1:])
        if bad:
            raise RuntimeError(f"{bad:.0f} requests to port {port} failed under load")
        return rate, median, worst

    return run


@contextlib.contextmanager
def serving(module: str, *arguments: str) -> Iterator[str]:
    """A module of ours as a process; gives the line it prints when it listens. It ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{module} did not start: its error is above")
        yield line
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def _haproxy(base: Path, ports: list[str]) -> Iterator[str]:
    """HAProxy in front of `ports`; gives its own port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    servers = "\n".join(f"    server worker-{index} 127.0.0.1:{each}" for index, each in enumerate(ports))
    config = base / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port, servers=servers))
    process = subprocess.Popen(["haproxy", "-db", "-q", "-f", str(config)])
    try:
        _wait_for(int(port))
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        if time.monotonic() > end:
            raise RuntimeError(f"nothing listens on port {port}")
        time.sleep(0.02)
