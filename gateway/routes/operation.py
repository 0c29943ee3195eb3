"""`/livez`, `/readyz`, `/health`: for load balancers and people at 3 a.m. Without a credential they give the bare word.

What an operator is told beyond it by `/readyz?verbose` is found out in `readiness.py`.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from moltbot.core.jsonable import iso_time, jsonable
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.bodies import json_response
from moltbot.gateway.keys import ROUTER
from moltbot.gateway.readiness import examine
from moltbot.gateway.visit import VISIT
from moltbot.router.status import PoolStatus


async def get_livez(request: web.Request) -> web.Response:
    """200 as long as this process answers at all."""
    return json_response({"status": "alive"})


async def get_readyz(request: web.Request) -> web.Response:
    """200 while a worker is ready and the gateway takes requests, else 503."""
    router, edge = request.app[ROUTER], request[VISIT].edge
    status = router.get_status()
    if router.draining:
        word = "draining"
    elif not edge.opened:
        word = "starting"
    else:
        word = "ready" if status is not None and status.healthy_workers > 0 else "not ready"
    document: dict[str, Any] = {"status": word}
    if "verbose" in request.query and edge.is_operator(request):
        document |= await examine(request.app, status)
    return json_response(document, status=200 if word == "ready" else 503)


async def get_health(request: web.Request) -> web.Response:
    """The state of the whole: `healthy`, `degraded` (some workers are not ready) or `unhealthy` (none is, 503)."""
    status = request.app[ROUTER].get_status()
    word = _word(status)
    document: dict[str, Any] = {"status": word}
    if status is not None and request[VISIT].edge.is_operator(request):
        document |= _details(status)
    return json_response(document, status=503 if word == "unhealthy" else 200)


def _word(status: PoolStatus | None) -> str:
    if status is None or status.healthy_workers == 0:
        return "unhealthy"
    return "healthy" if status.healthy_workers == status.total_workers else "degraded"


def _details(status: PoolStatus) -> dict[str, Any]:
    pending, running = status.queued_requests, status.running_requests
    return {
        "timestamp": iso_time(status.timestamp),
        "queue": {
            "size": pending + running,
            "pending": pending,
            "running": running,
            "completed": status.completed_requests,
            "failed": status.failed_requests,
        },
        "workerMode": "managed",
        "workers": {
            "count": status.total_workers,
            "healthy": status.healthy_workers == status.total_workers,
            "ready": status.healthy_workers,
        },
        "users": status.routing_table_size,
        "isolation": status.isolation,
        "protections": jsonable(status.protections),
        "warning": status.warning,
    }


ROUTES = (
    Route("GET", "/livez", get_livez, Scope.READ, "anyone", any_host=True, api=False),
    Route("GET", "/readyz", get_readyz, Scope.READ, "anyone", any_host=True, api=False),
    Route("GET", "/health", get_health, Scope.READ, "anyone", api=False),
)
