"""What the edge costs: `POST /api/route` with all of it on, beside the gateway with all of it off, and beside no edge at all.

On: a token per user, both rate limits, the access log. Off: the operator's token, no limits, no log; Host, Origin, scope, strict
JSON and security headers cannot be turned off. No edge: the same router behind one aiohttp route that checks nothing. Measured as in `over_http.py`, with 32 connections and 64 users in turn. A last row adds an `Idempotency-Key` to every
request, whose two commits to disk each request then waits for. Not measured: TLS, cookies, a proxy's word.
"""

from __future__ import annotations

import contextlib
import shutil

from benchmarks.over_http import INSTALL, Series, measured_in_turns, serving, wrk
from benchmarks.runner import Plan, Row, compared, ratio_at_least, ratio_at_most, scratch, skipped

_SCRIPT = """
local count, key = 0, 0
local tokens = {{{tokens}}}
local headers = {{["Content-Type"] = "application/json"}}
request = function()
  count = (count + 1) % 64
  headers["Authorization"] = "Bearer " .. (tokens[count + 1] or "")
  {keyed}
  local body = '{{"type":"echo","userId":"user-' .. count .. '","payload":{{"message":"hello, how are you today?","turn":7}}}}'
  return wrk.format("POST", "/api/route", headers, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("FIGURES %f %f %f %d\\n", summary.requests / summary.duration * 1e6, latency:percentile(50), latency:percentile(99), bad))
end
"""
_KEYED = 'key = key + 1; headers["Idempotency-Key"] = os.time() .. "-" .. key .. "-" .. math.random(1e9)'


def measure(plan: Plan) -> list[Row]:
    if shutil.which("wrk") is None:
        return [skipped("the edge's checks", f"wrk not installed: {INSTALL}")]
    with scratch() as base, contextlib.ExitStack() as stack:
        port, *tokens = stack.enter_context(
            serving("benchmarks.http_guarded_gateway", plan.loop, str(base / "guarded"))
        ).split()
        bare = stack.enter_context(serving("benchmarks.http_bare_gateway", plan.loop, str(base / "bare")))
        plain, token = stack.enter_context(
            serving("benchmarks.http_gateway", plan.loop, str(base / "plain"))
        ).split()
        listed = ", ".join(f'"{token}"' for token in tokens)
        ours = wrk(plan, base, port, _SCRIPT.format(tokens=listed, keyed=""))
        everyone = ", ".join([f'"{token}"'] * len(tokens))
        off = wrk(plan, base, plain, _SCRIPT.format(tokens=everyone, keyed=""))
        none = wrk(plan, base, bare, _SCRIPT.format(tokens="", keyed=""))
        (base / "keyed").mkdir()
        keyed = wrk(plan, base / "keyed", port, _SCRIPT.format(tokens=listed, keyed=_KEYED))
        rows = _rows("all on, beside all off", *measured_in_turns(plan, ours, off), aimed=True)
        rows += _rows("all on, beside no edge at all", *measured_in_turns(plan, ours, none))
        return rows + _rows("with Idempotency-Key, beside without", *measured_in_turns(plan, keyed, ours))


def _rows(what: str, ours: Series, floor: Series, *, aimed: bool = False) -> list[Row]:
    rates, medians, worst = zip(*ours, strict=True)
    floor_rates, floor_medians, floor_worst = zip(*floor, strict=True)
    what = f"POST /api/route, {what}"
    return [
        compared(f"{what}, rate", "/s", rates, floor_rates, ratio_at_least(0.9) if aimed else None),
        compared(f"{what}, p50", "us", medians, floor_medians),
        compared(f"{what}, p99", "us", worst, floor_worst, ratio_at_most(1.1) if aimed else None),
    ]
