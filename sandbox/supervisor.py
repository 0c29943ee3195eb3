"""One worker slot, kept alive: events in, `lifecycle.step` decides, actions out.

The supervisor owns the incarnation's process, channel and timer, and counts what it serves. It decides nothing that could be
decided purely: transitions are in `lifecycle.py`, delays in `restart.py`, health in `health.py`. Which requests come here,
and in which order, is the router's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moltbot import __version__
from moltbot.core.clock import Clock, Timer
from moltbot.core.errors import BaseDirectoryError, Cancelled, RequestTimeout, Unavailable
from moltbot.core.events import Broadcast, PoolEvent, RequestOverdue, UserUnloaded, WorkerChanged
from moltbot.core.framing import Frame
from moltbot.core.messages import Request
from moltbot.core.units import format_duration, format_size
from moltbot.sandbox import lifecycle
from moltbot.sandbox.channel import Call, Channel
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.health import Limits, Sample, judge
from moltbot.sandbox.launch import hello_config, launch_spec
from moltbot.sandbox.lifecycle import Action, ExitReason, Rules, Slot, State
from moltbot.sandbox.logs import LogPump
from moltbot.sandbox.memory import Usage
from moltbot.sandbox.process import WorkerProcess
from moltbot.sandbox.restart import RestartPolicy

STOP_GRACE = 5.0
CANCEL_GRACE = 5.0

log = logging.getLogger("moltbot.worker")


@dataclass
class Counters:
    """What a slot has served since the pool started; `served` is of this incarnation."""

    requests: int = 0
    served: int = 0
    errors: int = 0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class LastExit:
    """How the slot's last incarnation ended."""

    incarnation: int
    reason: str
    detail: str | None
    at: float


class Supervisor:
    """Keeps one slot in the wanted state. All methods are for the loop's thread."""

    def __init__(
        self,
        worker_id: str,
        config: PoolConfig,
        *,
        directories: WorkerDirectories,
        clock: Clock,
        logs: LogPump,
        events: Broadcast[PoolEvent],
        recycling: asyncio.Lock,
    ) -> None:
        self.worker_id = worker_id
        self.slot = Slot(incarnation=directories.read_incarnation())
        self.counters = Counters()
        self.usage = Usage(0, 0.0)
        self.cpu_percent = 0.0
        self.started_at: float | None = None
        self.last_beat_at: float | None = None
        self._last_beat = 0.0
        self._lag = 0.0
        self._config = config
        self._rules = rules_of(config)
        self._limits = limits_of(config)
        self._directories = directories
        self._clock = clock
        self._logs = logs
        self._events = events
        self._recycling = recycling
        self._first_id = 1
        self._loaded: dict[str, int] = {}
        self._leaving: set[str] = set()
        self.last_exit: LastExit | None = None
        self._timer: Timer | None = None
        self._changed = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._recycle_task: asyncio.Task[None] | None = None
        self._actions: dict[Action, Callable[[], None]] = {
            Action.SPAWN: self._spawn,
            Action.SEND_DRAIN: self._send_drain,
            Action.SEND_SHUTDOWN: self._send_shutdown,
            Action.DUMP_STACKS: self._dump_stacks,
            Action.KILL: self._kill,
            Action.KILL_TREE: self._kill_tree,
            Action.SETTLE: self._settle,
        }

    # --- what others see ------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.slot.state

    @property
    def in_flight(self) -> int:
        return self._channel.in_flight if self._channel is not None else 0

    @property
    def pid(self) -> int | None:
        """The worker's process as this machine numbers it; None while there is none."""
        return self._process.worker_pid if self._process is not None and self._process.running else None

    @property
    def guard_pid(self) -> int | None:
        """The root of the worker's process tree."""
        return self._process.guard_pid if self._process is not None and self._process.running else None

    @property
    def connected(self) -> bool:
        return self.state in (State.READY, State.DRAINING, State.STOPPING)

    @property
    def has_room(self) -> bool:
        """True if a request may be dispatched now."""
        channel = self._channel
        return (
            self.slot.state is State.READY
            and channel is not None
            and channel.in_flight < self._config.max_concurrent
        )

    @property
    def loaded_users(self) -> list[str]:
        """The users in this incarnation's memory."""
        return list(self._loaded)

    def is_loaded(self, user_id: str) -> bool:
        return user_id in self._loaded

    async def settled(self, *states: State) -> State:
        """Wait until the slot is in one of `states`; bounded, for every state on the way has a deadline."""
        while self.slot.state not in states:
            self._changed.clear()
            await self._changed.wait()
        return self.slot.state

    # --- requests -------------------------------------------------------------------------------------

    def dispatch(self, request: Request, epoch: int, on_end: Callable[[Call], None]) -> Call:
        """Write a request to the worker, its user first if need be; only while `has_room`. Raises InvalidRequest."""
        channel = self._channel
        if channel is None or self.slot.state is not State.READY:
            raise Unavailable(f"{self.worker_id} is {self.slot.state}", worker=self.worker_id)
        user_id = request.user_id
        if self._loaded.get(user_id) != epoch:
            channel.send(lambda session: session.arrive(user_id, epoch))
            self._loaded[user_id] = epoch
        limit = self._config.request_timeout
        timeout = limit if request.timeout is None else min(request.timeout, limit)

        def ended(call: Call) -> None:
            if call.failure is not None and not isinstance(call.failure, Cancelled):
                self.counters.errors += 1
            on_end(call)

        meta = {"request_id": request.id, **request.meta}
        call = channel.call(
            request.type, user_id, request.payload, epoch=epoch, deadline_ms=timeout, meta=meta, on_end=ended
        )
        call.timer = self._clock.call_later(timeout / 1000, lambda: self._expire(call, request, timeout))
        counters = self.counters
        counters.requests += 1
        counters.served += 1
        if counters.served >= self._config.max_requests:
            self._recycle(f"{counters.served} requests served")
        return call

    def _expire(self, call: Call, request: Request, timeout: float) -> None:
        call.abandon(
            RequestTimeout(
                f"the request ran longer than {format_duration(timeout)} on {self.worker_id}",
                worker=self.worker_id,
                verdict="maybe_ran",
            )
        )
        call.timer = self._clock.call_later(CANCEL_GRACE, lambda: self._overdue(call, request))

    def _overdue(self, call: Call, request: Request) -> None:
        """The handler ignores its cancellation: only the end of the process ends it."""
        if call.ended:
            return
        self._events.publish(
            RequestOverdue(self._clock.time(), request.user_id, self.worker_id, request.id or str(call.id))
        )
        self.handle(lifecycle.Drain(ExitReason.OVERDUE, f"request {request.id} ignored its cancellation"))

    def unload(self, user_id: str) -> None:
        """Tell the worker to drop a user from memory; only when none of their requests is in flight."""
        if self._loaded.pop(user_id, None) is not None and self._channel is not None:
            self._leaving.add(user_id)
            self._channel.send(lambda session: session.leave(user_id))

    # --- events ---------------------------------------------------------------------------------------

    def handle(self, event: lifecycle.Event) -> None:
        """Let the lifecycle decide about `event`, tell of the change, do what it says."""
        before = self.slot
        self.slot, actions = lifecycle.step(before, event, self._clock.monotonic(), self._rules)
        if self.slot.deadline != before.deadline:
            self._arm_timer()
        for action in actions:
            self._actions[action]()
        if self.slot.state is not before.state:
            self._announce(before)

    def _announce(self, before: Slot) -> None:
        slot = self.slot
        self._changed.set()
        ending = slot.state not in (State.STARTING, State.READY)
        reason = str(slot.reason) if slot.reason and ending else None
        detail = slot.detail if ending else None
        level = (
            logging.WARNING
            if slot.state in (State.KILLING, State.BACKOFF, State.QUARANTINED)
            else logging.INFO
        )
        log.log(
            level,
            "%s #%d: %s -> %s%s",
            self.worker_id,
            slot.incarnation,
            before.state,
            slot.state,
            f" ({reason}: {detail})" if reason else "",
        )
        self._events.publish(
            WorkerChanged(
                self._clock.time(),
                self.worker_id,
                slot.incarnation,
                str(before.state),
                str(slot.state),
                reason,
                detail,
            )
        )

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.slot.deadline is not None:
            delay = max(0.0, self.slot.deadline - self._clock.monotonic())
            self._timer = self._clock.call_later(delay, lambda: self.handle(lifecycle.Deadline()))

    def _notice(self, kind: str, frame: Frame) -> None:
        match kind:
            case "ready":
                self._became_ready(frame["pid"])
            case "beat":
                self._last_beat = self._clock.monotonic()
                self.last_beat_at = self._clock.time()
                self._lag = max(0.0, frame["lag_ms"] / 1000)
            case "drained":
                self.handle(lifecycle.Drained())
            case "arrived" if frame.get("error") is not None:
                self._loaded.pop(frame["user_id"], None)  # the next request lets the user arrive again
            case "left" if (
                frame["user_id"] in self._leaving
            ):  # a worker may say what it likes; only what was asked counts
                self._leaving.discard(frame["user_id"])
                self._events.publish(UserUnloaded(self._clock.time(), frame["user_id"], self.worker_id))
            case "error":
                self.handle(lifecycle.Trouble(ExitReason.BOOT_FAILED, frame["message"]))

    def _became_ready(self, claimed_pid: int) -> None:
        if self._process is not None:
            self._process.identify(claimed_pid)
        self._last_beat = self._clock.monotonic()
        self._lag = 0.0
        self.handle(lifecycle.BecameReady())

    # --- health ---------------------------------------------------------------------------------------

    def sampled(self, usage: Usage, seconds: float) -> None:
        """Take note of a measurement made `seconds` after the last one."""
        used = usage.cpu_seconds - self.usage.cpu_seconds
        self.cpu_percent = round(max(0.0, used) / seconds * 100, 1) if seconds > 0 else 0.0
        self.usage = usage

    def check_health(self) -> None:
        """Judge the worker as it is now, and act."""
        if self.slot.state not in (State.READY, State.DRAINING):
            return
        since_beat = self._clock.monotonic() - self._last_beat
        finding = judge(Sample(since_beat, self._lag, self.in_flight, self.usage.memory), self._limits)
        if finding is None:
            return
        if finding.reason is ExitReason.RECYCLED:
            self._recycle(finding.detail)
        else:
            self.handle(lifecycle.Trouble(finding.reason, finding.detail))

    def _recycle(self, detail: str) -> None:
        """Restart in order as soon as no other worker of the pool is doing so."""
        if self._recycle_task is None or self._recycle_task.done():
            self._recycle_task = self._run(self._recycle_in_turn(detail, self.slot.incarnation))

    async def _recycle_in_turn(self, detail: str, incarnation: int) -> None:
        async with self._recycling:
            if self.slot.incarnation != incarnation or self.slot.state is not State.READY:
                return
            self.handle(lifecycle.Drain(ExitReason.RECYCLED, detail))
            await self.settled(State.READY, State.BACKOFF, State.QUARANTINED, State.STOPPED)

    # --- actions --------------------------------------------------------------------------------------

    def _run(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawn(self) -> None:
        if self.started_at is not None:
            self.counters.restarts += 1
        self.started_at = self._clock.time()
        self.counters.served = 0
        self.usage = Usage(0, 0.0)
        self._run(self._live(self.slot.incarnation))

    async def _live(self, incarnation: int) -> None:
        """One incarnation from its spawn to its last process's end."""
        jitter = random.random()
        try:
            process = await self._launch(incarnation)
        except (OSError, BaseDirectoryError) as error:
            self.handle(lifecycle.Exited(None, None, detail=f"cannot start it: {error}", jitter=jitter))
            return
        code, signal, oom = await process.wait()
        self.handle(lifecycle.Exited(code, signal, oom, jitter=jitter))

    async def _launch(self, incarnation: int) -> WorkerProcess:
        directories, config = self._directories, self._config
        directories.create()
        directories.open_temp(incarnation)
        directories.write_metadata(self._metadata(incarnation))
        self._run(directories.remove_old_temps(incarnation))
        spec = launch_spec(directories, incarnation, config, os.environ, os.getpid())
        ours, theirs = socket.socketpair()
        stdout, stderr = self._logs.attach(directories.log_file, incarnation)
        try:
            process = self._process = await WorkerProcess.spawn(spec, theirs, stdout, stderr)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(stdout)
            os.close(stderr)
        channel = self._channel = Channel(ours, self.worker_id, self._first_id, self._notice, self._lost)
        channel.send(
            lambda session: session.hello(
                self.worker_id, incarnation, hello_config(directories, incarnation, config)
            )
        )
        if self.slot.state is State.KILLING:  # stopped while the process was being made
            process.kill()
        return process

    def _metadata(self, incarnation: int) -> dict[str, Any]:
        config = self._config
        return {
            "created": datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="seconds"),
            "incarnation": incarnation,
            "isolation": "directories",
            "limits": {
                "maxConcurrent": config.max_concurrent,
                "requestTimeout": format_duration(config.request_timeout),
                "maxMemory": format_size(config.max_memory),
                "maxRequests": config.max_requests,
                "maxOpenFiles": config.max_open_files,
            },
            "versions": {"moltbot": __version__},
        }

    def _lost(self, detail: str | None) -> None:
        self.handle(lifecycle.ChannelLost(detail))

    def _send_drain(self) -> None:
        if self._channel is not None:
            self._channel.send(lambda session: session.drain())

    def _send_shutdown(self) -> None:
        if self._channel is not None:
            self._channel.send(lambda session: session.shutdown(STOP_GRACE * 800))

    def _dump_stacks(self) -> None:
        if self._process is not None:
            self._process.dump_stacks()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _kill_tree(self) -> None:
        if self._process is not None:
            self._process.kill_tree()

    def _settle(self) -> None:
        slot = self.slot
        # A recycled slot is already on its next incarnation here.
        ended = slot.incarnation - 1 if slot.state is State.STARTING else slot.incarnation
        self.last_exit = LastExit(
            ended, str(slot.reason or ExitReason.CRASHED), slot.detail, self._clock.time()
        )
        channel, self._channel = self._channel, None
        self._loaded.clear()
        self._leaving.clear()
        if channel is not None:
            self._first_id = channel.next_id
            channel.close(str(self.slot.reason or ExitReason.CRASHED), self.slot.detail or "no detail")

    async def close(self) -> None:
        """End what is left of the supervisor's own tasks, after STOPPED."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


def rules_of(config: PoolConfig) -> Rules:
    return Rules(
        boot_timeout=config.boot_timeout / 1000,
        drain_timeout=config.drain_timeout / 1000,
        stop_grace=STOP_GRACE,
        restart=RestartPolicy(
            delay=config.restart_delay / 1000,
            window=config.restart_window / 1000,
            max_attempts=config.max_restart_attempts,
            prompt="restart_delay" not in config.model_fields_set,
        ),
    )


def limits_of(config: PoolConfig) -> Limits:
    return Limits(
        heartbeat_interval=config.heartbeat_interval / 1000,
        max_loop_lag=config.max_loop_lag / 1000,
        max_memory=config.max_memory,
        soft_memory=config.soft_memory_bytes,
    )
