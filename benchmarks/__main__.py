"""`python -m benchmarks [--only NAME] [--quick] [--json] [--loop asyncio|uvloop]`, from the project's folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from benchmarks import edge, isolation, lifecycle, over_http, pins, ring, route
from benchmarks.runner import Plan, Row, describe_machine, has_uvloop, machine, table

BENCHMARKS: dict[str, Callable[[Plan], list[Row]]] = {
    "route": route.measure,
    "http": over_http.measure,
    "edge": edge.measure,
    "lifecycle": lifecycle.measure,
    "isolation": isolation.measure,
    "ring": ring.measure,
    "pins": pins.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="run this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: a look, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the event loop of the gateway"
    )
    options = parser.parse_args()
    if options.loop == "uvloop" and not has_uvloop():
        parser.error("uvloop is not installed: pip install uvloop")
    plan = Plan(3, 0.4, options.loop) if options.quick else Plan(7, 1.5, options.loop)
    facts = machine(plan)
    rows: list[Row] = []
    for name in options.only or BENCHMARKS:
        print(f"measuring {name} ...", file=sys.stderr)
        rows += BENCHMARKS[name](plan)
    if options.json:
        print(json.dumps({"machine": facts, "rows": [row.to_json() for row in rows]}, indent=2))
    else:
        print(describe_machine(facts), table(rows), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
