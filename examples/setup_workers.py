"""Three users on three workers: start a pool inside your own program, route requests, look at it, stop it.

    python examples/setup_workers.py               # a fresh directory, removed at the end: safe to run again and again
    python examples/setup_workers.py ./workers     # keeps everything there: a second run finds every user where they were

Shows `create_gateway_router()` with the camelCase, nested configuration of the setup guide; snake_case does as well.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile

from moltbot import MoltbotError, Request, create_gateway_router

USERS = ("user-a", "user-b", "user-c")
LINE = "─" * 30


async def main(directory: str) -> None:
    print("Starting worker pool with 3 workers...\n")
    router = create_gateway_router(
        pool_config={
            "workerCount": 3,
            "sandboxBaseDir": directory,
            "workerConfig": {
                "maxConcurrent": 10,
                "requestTimeout": 60_000,  # milliseconds; "60s" does as well
                "heartbeatInterval": 5_000,
                "maxMemory": 256 * 1024 * 1024,  # bytes; "256MB" does as well
                "maxRequests": 5_000,
            },
        }
    )
    async with router:
        print("Worker pool ready!\n")

        print(f"Routing assignments:\n{LINE}")
        for user in USERS:
            await router.route(Request("agent", user, {"message": "test"}))
            print(f"  {user:<10} → {router.get_worker_for_user(user)}")

        print(f"\nVerifying sticky routing (10 requests each):\n{LINE}")
        for user in USERS:
            replies = [await router.route(Request("agent", user, {"message": "test"})) for _ in range(10)]
            workers = sorted({reply.worker_id for reply in replies})
            print(f"  {user:<10} → always {', '.join(workers)}")

        print(f"\nWorker Status:\n{LINE}")
        status = router.get_status()
        for worker in status.workers if status else []:
            print(f"  {worker.worker_id}: {worker.state} (pid: {worker.pid})")

        print("\nStopping workers...")
    print("Done!")


if __name__ == "__main__":
    try:
        if len(sys.argv) > 1:
            asyncio.run(main(sys.argv[1]))
        else:
            with tempfile.TemporaryDirectory(prefix="moltbot-workers-") as fresh:
                asyncio.run(main(fresh))
    except MoltbotError as error:
        sys.exit(f"setup_workers: {error}")
