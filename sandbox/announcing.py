"""Tells that a slot went from one state to another: a line in the pool's log, and the event for whoever listens.

Which transitions there are is `lifecycle.py`'s; when one happened, `supervisor.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from moltbot.core.events import WorkerChanged
from moltbot.sandbox.lifecycle import Slot, State

log = logging.getLogger("moltbot.worker")

_GRAVE = (State.KILLING, State.BACKOFF, State.QUARANTINED)


def announce(
    worker_id: str, before: Slot, slot: Slot, now: float, fields: Mapping[str, Any]
) -> WorkerChanged:
    """Log the change from `before` to `slot` and return its event; fields: what the log's lines have besides."""
    ending = slot.state not in (State.STARTING, State.READY)
    reason = str(slot.reason) if slot.reason and ending else None
    detail = slot.detail if ending else None
    log.log(
        logging.WARNING if slot.state in _GRAVE else logging.INFO,
        "%s #%d: %s -> %s%s",
        worker_id,
        slot.incarnation,
        before.state,
        slot.state,
        f" ({reason}{': ' + detail if detail else ''})" if reason else "",
        extra=fields,
    )
    return WorkerChanged(now, worker_id, slot.incarnation, str(before.state), str(slot.state), reason, detail)
