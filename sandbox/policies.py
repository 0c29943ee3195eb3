"""The configuration as the pure deciders want it: seconds instead of milliseconds, and only what each of them needs."""

from __future__ import annotations

from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.health import Limits
from moltbot.sandbox.lifecycle import Rules
from moltbot.sandbox.restart import RestartPolicy

STOP_GRACE = 5.0
CANCEL_GRACE = 5.0


def rules_of(config: PoolConfig) -> Rules:
    """For `lifecycle.step`."""
    return Rules(
        boot_timeout=config.boot_timeout / 1000,
        drain_timeout=config.drain_timeout / 1000,
        recycle_timeout=max(config.drain_timeout, config.request_timeout) / 1000 + 2 * CANCEL_GRACE,
        stop_grace=STOP_GRACE,
        restart=RestartPolicy(
            delay=config.restart_delay / 1000,
            window=config.restart_window / 1000,
            max_attempts=config.max_restart_attempts,
            prompt="restart_delay" not in config.model_fields_set,
        ),
    )


def limits_of(config: PoolConfig) -> Limits:
    """For `health.judge`."""
    return Limits(
        heartbeat_interval=config.heartbeat_interval / 1000,
        max_loop_lag=config.max_loop_lag / 1000,
        max_memory=config.max_memory,
        soft_memory=config.soft_memory_bytes,
        # What runs the worker counts too: two processes of the wall or a guard.
        max_tasks=config.max_processes + 2,
    )
