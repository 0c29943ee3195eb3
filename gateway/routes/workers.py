"""`GET /api/workers` and `GET /api/workers/{id}`: the workers as they are now."""

from __future__ import annotations

from aiohttp import web

from moltbot.core.errors import NotFound, NotRunning, quote
from moltbot.gateway.access import Route, Scope
from moltbot.gateway.bodies import json_response
from moltbot.gateway.keys import ROUTER
from moltbot.router.status import PoolStatus


def _status(request: web.Request) -> PoolStatus:
    status = request.app[ROUTER].get_status()
    if status is None:
        raise NotRunning("the workers are not running: the gateway is starting or stopping")
    return status


async def get_workers(request: web.Request) -> web.Response:
    """All workers, and whether every one is ready."""
    status = _status(request)
    document = status.to_json()
    healthy = status.healthy_workers == status.total_workers
    return json_response({"healthy": healthy, "workerCount": status.total_workers, **document})


async def get_worker(request: web.Request) -> web.Response:
    """One worker."""
    worker_id = request.match_info["worker_id"]
    for worker in _status(request).workers:
        if worker.worker_id == worker_id:
            return json_response(worker.to_json())
    raise NotFound(f"there is no worker {quote(worker_id)}: `moltbot workers status` lists them")


ROUTES = (
    Route("GET", "/workers", get_workers, Scope.READ),
    Route("GET", "/workers/{worker_id}", get_worker, Scope.READ),
)
