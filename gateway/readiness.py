"""What an operator is told of a gateway that runs: one check for each thing that can be wrong while it still answers.

The bare word and who may learn more are in `routes/operation.py`; how the machine itself is examined before a start is in
`sandbox/isolation/checkup.py`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from aiohttp import web

from moltbot.core.errors import MoltbotError
from moltbot.core.jsonable import iso_time, jsonable
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.listening import SEATS, Seats
from moltbot.gateway.tls import TLS, Tls
from moltbot.router.gateway_router import GatewayRouter
from moltbot.router.status import PoolStatus, WorkerStatus, is_healthy

PATIENCE = 2.0
"""Seconds for the database or a disk to answer; after them, that it does not is the answer."""
MIN_FREE_BYTES = 256 << 20
_SHOWN = 20  # workers that are described; the others are only counted


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. detail: a phrase for people, also when all is well."""

    name: str
    ok: bool
    detail: str


async def examine(app: web.Application, status: PoolStatus | None) -> dict[str, Any]:
    """`degraded`, `checks`, and `since` if it is known when a worker that is missing was lost."""
    router = app[ROUTER]
    database, storage = _probes.setdefault(router, (_Probe(), _Probe()))
    checks = [
        _workers(status),
        *await asyncio.gather(_database(database, router), _storage(storage, router.config.sandbox_base_dir)),
        _isolation(status),
        _connections(app[SEATS]),
    ]
    tls = app[TLS]
    if tls is not None:
        checks.append(_certificate(tls))
    document: dict[str, Any] = {
        "degraded": not all(check.ok for check in checks),
        "checks": [jsonable(check) for check in checks],
    }
    lost = [
        worker.last_exit.at
        for worker in (status.workers if status is not None else ())
        if worker.last_exit is not None and not is_healthy(worker)
    ]
    if lost:
        document["since"] = iso_time(min(lost))
    return document


def _workers(status: PoolStatus | None) -> Check:
    if status is None:
        return Check("workers", False, "there are none yet")
    missing = [_description(worker) for worker in status.workers if not is_healthy(worker)]
    told = [f"{status.healthy_workers} of {status.total_workers} are ready", *missing[:_SHOWN]]
    if len(missing) > _SHOWN:
        told.append(f"and {len(missing) - _SHOWN} more are not")
    return Check("workers", not missing, "; ".join(told))


def _description(worker: WorkerStatus) -> str:
    last = worker.last_exit
    if last is None:
        return f"{worker.worker_id} is {worker.state}"
    why = f"{last.reason}: {last.detail}" if last.detail else last.reason
    return f"{worker.worker_id} is {worker.state} ({why})"


class _Probe:
    """Asks what may hang one question at a time: what it has not answered is not asked again."""

    def __init__(self) -> None:
        self._question: asyncio.Future[Check] | None = None
        self._asked = 0.0

    async def ask(self, question: Callable[[], Coroutine[Any, Any, Check]]) -> Check | float:
        """The answer, or for how many seconds there has been none; waits only where PATIENCE is not used up."""
        loop = asyncio.get_running_loop()
        if self._question is None or self._question.done():
            self._question, self._asked = loop.create_task(question()), loop.time()
        left = self._asked + PATIENCE - loop.time()
        done, _ = await asyncio.wait([self._question], timeout=max(0.0, left))
        return self._question.result() if done else loop.time() - self._asked


_probes: WeakKeyDictionary[GatewayRouter, tuple[_Probe, _Probe]] = WeakKeyDictionary()


async def _database(probe: _Probe, router: GatewayRouter) -> Check:
    async def question() -> Check:
        try:
            await router.database.submit(lambda connection: connection.execute(sa.text("SELECT 1")).scalar())
        except MoltbotError as error:
            return Check("database", False, error.message)
        return Check("database", True, "it answers")

    answer = await probe.ask(question)
    if isinstance(answer, Check):
        return answer
    why = "what was deleted is being wiped from it, or its disk is slow"
    return Check("database", False, f"it has not answered for {answer:.0f} s: {why}")


async def _storage(probe: _Probe, path: Path) -> Check:
    async def question() -> Check:
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, path)
        except OSError as error:
            return Check("storage", False, f"{path} cannot be examined: {error.strerror}")
        free = f"{usage.free >> 20} MB of {usage.total >> 20} MB are free at {path}"
        return Check("storage", usage.free >= MIN_FREE_BYTES, free)

    answer = await probe.ask(question)
    if isinstance(answer, Check):
        return answer
    return Check("storage", False, f"{path} has not answered for {answer:.0f} s: see to its disk")


def _isolation(status: PoolStatus | None) -> Check:
    if status is None:
        return Check("isolation", False, "it is not known yet")
    return Check("isolation", status.warning is None, status.warning or f"the level is {status.isolation}")


def _connections(seats: Seats) -> Check:
    taken, idle = len(seats.taken), len(seats.idle)
    detail = f"{taken} of {seats.limit} are open, {idle} of them idle; {seats.refused} were refused"
    return Check("connections", taken - idle < seats.limit, detail)


def _certificate(tls: Tls) -> Check:
    return Check("certificate", not tls.expired(), f"it ends on {tls.pair.ends.isoformat()}")
