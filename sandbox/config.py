"""The settings of a pool and its router: names, defaults, limits and what they mean, in one place.

How values are written is in `setting_kinds.py`; where they come from (flags, environment, file), in `cli/settings.py`. What
belongs to the port is in `gateway/config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moltbot.sandbox.setting_kinds import (
    MAX_WORKERS,
    Bytes,
    Command,
    Count,
    Directory,
    Milliseconds,
    Names,
    Paths,
    Uids,
    normalise_names,
    settings_error,
)

WALL_SETTINGS = (
    *("handler", "worker_command", "environment", "network", "read_only_paths", "read_write_paths"),
    *("max_processes", "max_open_files", "max_disk", "max_memory"),
)
"""What a worker's wall is made from."""
LEVELS = ("bubblewrap", "landlock", "directories")
"""Isolation levels, the strongest first; what they are is in `isolation/plan.py`."""


class PoolConfig(BaseModel):
    """A checked configuration; frozen. `PoolConfig.read(mapping)` gives errors that a person understands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worker_count: Count = Field(4, ge=1, le=MAX_WORKERS, description="Number of workers")
    sandbox_base_dir: Directory = Field(
        Path("/tmp/moltbot-workers"), description="Base directory for sandboxes"
    )
    handler: str | None = Field(
        None,
        min_length=1,
        description="Handler code: path/to/file.py or module:name; the built-in handlers if unset",
    )
    worker_command: Command | None = Field(
        None, min_length=1, description="Program that speaks the frames on descriptor 3, instead of Python"
    )
    environment: Names = Field((), description="Names of environment variables that workers get")
    isolation: Literal["auto", "bubblewrap", "landlock", "directories"] = Field(
        "auto", description="Isolation level; auto takes the strongest that works here"
    )
    min_isolation: Literal["bubblewrap", "landlock", "directories"] = Field(
        "directories", description="Refuse to start below this isolation level"
    )
    network: Literal["none", "full"] = Field("none", description="What workers reach by network")
    read_only_paths: Paths = Field((), description="Further paths that workers may read")
    read_write_paths: Paths = Field((), description="Further paths that all workers may change")
    worker_uids: Uids = Field(
        (2_000_000_000, 2_000_999_999), description="Range of uids for workers, when the gateway runs as root"
    )
    max_concurrent: Count = Field(10, ge=1, le=1000, description="Max concurrent requests per worker")
    request_timeout: Milliseconds = Field(120_000, ge=1, description="Request timeout, from dispatch (ms)")
    heartbeat_interval: Milliseconds = Field(5_000, ge=50, description="Health check interval (ms)")
    max_memory: Bytes = Field(
        512 << 20,
        ge=16 << 20,
        description="Memory limit of a worker's processes before it is killed and restarted",
    )
    soft_memory: Bytes | None = Field(
        None,
        ge=8 << 20,
        description="Memory at which a worker is drained and restarted; 80% of max_memory if unset",
    )
    max_requests: Count = Field(10_000, ge=1, description="Request limit before restart")
    restart_delay: Milliseconds = Field(
        1_000,
        ge=0,
        description="Delay before restart, doubled each time (ms); unless set, the first restart is at once",
    )
    max_restart_attempts: Count = Field(5, ge=0, description="Max restarts in window")
    restart_window: Milliseconds = Field(60_000, ge=1, description="Restart tracking window (ms)")
    user_concurrency: Count = Field(
        1, ge=1, description="Requests of one user that may run at once; 1 keeps them in order"
    )
    max_queue_per_user: Count = Field(32, ge=0, description="Requests of one user that may wait")
    max_queue_per_worker: Count = Field(1_000, ge=0, description="Requests of one worker that may wait")
    queue_timeout: Milliseconds = Field(
        120_000, ge=1, description="How long a request may wait for dispatch (ms)"
    )
    boot_timeout: Milliseconds = Field(
        30_000, ge=1, description="How long a worker may take to become ready (ms)"
    )
    drain_timeout: Milliseconds = Field(
        30_000, ge=0, description="How long running requests may take to end when a worker stops (ms)"
    )
    max_loop_lag: Milliseconds = Field(
        15_000, ge=1, description="Event-loop lag with work in flight that counts as wedged (ms)"
    )
    user_idle_timeout: Milliseconds = Field(
        1_800_000,
        ge=1,
        description="After this time without a request a user leaves the worker's memory (ms)",
    )
    max_open_files: Count = Field(1_024, ge=64, description="Open files per process of a worker")
    max_processes: Count = Field(256, ge=8, description="Processes and threads of a worker")
    max_disk: Bytes = Field(1 << 30, ge=1 << 20, description="Disk space of a worker's directories")
    max_inodes: Count = Field(100_000, ge=1_000, description="Files and folders in a worker's directories")
    max_users: Count | None = Field(
        None, ge=1, description="Users that may have a worker; a new one beyond it is refused"
    )
    log_format: Literal["text", "json"] = Field("text", description="Lines of the pool's and the access log")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that the pool's log takes"
    )
    log_user_ids: bool = Field(
        False, description="Write user ids into logs as they are, instead of keyed hashes"
    )
    durable_state: bool = Field(False, description="Flush state and session files to disk before each reply")

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        return normalise_names(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.isolation != "auto" and LEVELS.index(self.isolation) > LEVELS.index(self.min_isolation):
            raise ValueError(f"isolation = {self.isolation} is below min_isolation = {self.min_isolation}")
        if self.soft_memory is not None and self.soft_memory >= self.max_memory:
            raise ValueError("soft_memory must be below max_memory")
        for name in self.environment:
            if name.upper().startswith("MOLTBOT_"):
                raise ValueError(
                    f"environment must not name {name}: the gateway's own variables never reach a worker"
                )
        return self

    @property
    def soft_memory_bytes(self) -> int:
        """The memory at which a worker is recycled."""
        return self.soft_memory if self.soft_memory is not None else self.max_memory * 8 // 10

    @classmethod
    def read(
        cls, values: Mapping[str, Any] | PoolConfig | None, *, source: str = "pool_config"
    ) -> PoolConfig:
        """Check `values`; raises SettingsError that names the setting, its value, where it came from and what to do."""
        if isinstance(values, PoolConfig):
            return values
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise settings_error(error, cls.model_fields, source) from None
