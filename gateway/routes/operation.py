"""`/livez`, `/readyz`, `/health`: for load balancers and people at 3 a.m. Without a credential they give the bare word."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from moltbot.core.jsonable import iso_time, jsonable
from moltbot.gateway.bodies import json_response
from moltbot.gateway.keys import AUTH, ROUTER
from moltbot.router.status import PoolStatus

PROBES = frozenset({"/livez", "/readyz"})
"""Answered to any Host."""

PUBLIC_PATHS = PROBES | {"/health"}
"""Answered without a credential."""


async def get_livez(request: web.Request) -> web.Response:
    """200 as long as this process answers at all."""
    return json_response({"status": "alive"})


async def get_readyz(request: web.Request) -> web.Response:
    """200 while a worker is ready and the gateway takes requests, else 503."""
    router = request.app[ROUTER]
    status = router.get_status()
    ready = status is not None and status.healthy_workers > 0 and not router.draining
    word = "ready" if ready else "draining" if router.draining else "not ready"
    return json_response({"status": word}, status=200 if ready else 503)


async def get_health(request: web.Request) -> web.Response:
    """The state of the whole: `healthy`, `degraded` (some workers are not ready) or `unhealthy` (none is, 503)."""
    status = request.app[ROUTER].get_status()
    word = _word(status)
    document: dict[str, Any] = {"status": word}
    if status is not None and request.app[AUTH].allows(request):
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


def routes() -> list[web.RouteDef]:
    return [web.get("/livez", get_livez), web.get("/readyz", get_readyz), web.get("/health", get_health)]
