"""One worker slot, kept alive: events in, `lifecycle.step` decides, actions out.

The supervisor holds the slot, its timer and its counters, and one `Incarnation` after the other. It decides nothing that
could be decided purely: transitions are in `lifecycle.py`, delays in `restart.py`, health in `health.py`, storage in
`storage.py`. Requests in flight are `requests.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

from moltbot.core.clock import Clock, Timer
from moltbot.core.errors import (
    BaseDirectoryError,
    MoltbotError,
    StorageFull,
    Unavailable,
    UserForgetting,
    clean_text,
)
from moltbot.core.events import (
    Broadcast,
    PoolEvent,
    RequestOverdue,
    StorageAlarm,
    UserUnloaded,
)
from moltbot.core.frames import PROTOCOL_VERSION
from moltbot.core.framing import Frame
from moltbot.core.messages import Request
from moltbot.sandbox import lifecycle
from moltbot.sandbox.announcing import announce
from moltbot.sandbox.channel import Call
from moltbot.sandbox.config import PoolConfig
from moltbot.sandbox.directories import WorkerDirectories
from moltbot.sandbox.disk import DiskLimits, DiskUse
from moltbot.sandbox.health import Sample, judge
from moltbot.sandbox.incarnation import Incarnation, LastExit
from moltbot.sandbox.isolation.isolation import Isolation
from moltbot.sandbox.lifecycle import Action, ExitReason, Slot, State
from moltbot.sandbox.logs import LogPump
from moltbot.sandbox.memory import Usage
from moltbot.sandbox.policies import STOP_GRACE, limits_of, rules_of
from moltbot.sandbox.recycling import Recycler
from moltbot.sandbox.requests import Counters, Requests
from moltbot.sandbox.storage import StorageRule

SHUTDOWN_GRACE = 0.8 * STOP_GRACE  # what hooks get of it; the rest is for the process to end

log = logging.getLogger("moltbot.worker")


class Supervisor:
    """Keeps one slot in the wanted state. All methods are for the loop's thread."""

    def __init__(
        self,
        worker_id: str,
        config: PoolConfig,
        *,
        directories: WorkerDirectories,
        isolation: Isolation,
        clock: Clock,
        logs: LogPump,
        events: Broadcast[PoolEvent],
        recycling: asyncio.Lock,
    ) -> None:
        self.worker_id = worker_id
        self.slot = Slot(incarnation=directories.read_incarnation())
        self.counters = Counters()
        self.life: Incarnation | None = None
        self.last_exit: LastExit | None = None
        self._config = config
        self._rules = rules_of(config)
        self._limits = limits_of(config)
        self.directories = directories
        self.isolation = isolation
        self._clock = clock
        self._logs = logs
        self._events = events
        self.disk = DiskUse(0, 0)
        self._clear_cache = False
        self._next_id = 1
        self._timer: Timer | None = None
        self._requests = Requests(worker_id, self.counters, config.request_timeout, clock, self._overdue)
        self._storage = StorageRule(DiskLimits(config.max_disk, config.max_inodes))
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._recycler = Recycler(self, recycling, self._rules.restart.window, clock)
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
        life = self.life
        return life.channel.in_flight if life is not None and life.channel is not None else 0

    @property
    def pid(self) -> int | None:
        """The worker's process as this machine numbers it; None while there is none."""
        return self.life.pid if self.life is not None else None

    @property
    def root_pid(self) -> int | None:
        """The root of the worker's process tree."""
        return self.life.root_pid if self.life is not None else None

    @property
    def filesystems(self) -> tuple[str, ...]:
        """Paths of the filesystems that the worker has in memory, seen through its process."""
        return self.life.filesystems if self.life is not None else ()

    @property
    def connected(self) -> bool:
        return self.state in (State.READY, State.DRAINING, State.STOPPING)

    @property
    def has_room(self) -> bool:
        """True if a request may be dispatched now."""
        life = self.life  # asked several times a request: no detour
        if self.slot.state is not State.READY or life is None or life.channel is None:
            return False
        return life.channel.in_flight < self._config.max_concurrent

    @property
    def loaded_users(self) -> list[str]:
        """The users in this incarnation's memory."""
        return list(self.life.loaded) if self.life is not None else []

    def is_loaded(self, user_id: str) -> bool:
        return self.life is not None and user_id in self.life.loaded

    async def settled(self, *states: State) -> State:
        """Wait until the slot is in one of `states`; bounded, for every state on the way has a deadline."""
        await self.until(lambda: self.slot.state in states)
        return self.slot.state

    async def until(self, promise: Callable[[], bool]) -> None:
        """Wait for a change of the slot, or a user's leave, after which `promise` is true; the caller sets the deadline."""
        while not promise():
            self._changed.clear()
            await self._changed.wait()

    # --- requests -------------------------------------------------------------------------------------

    def dispatch(self, request: Request, request_id: str, epoch: int, on_end: Callable[[Call], None]) -> Call:
        """Write a request to the worker, its user first if need be; only while `has_room`.

        Raises InvalidRequest, and StorageFull while the worker's directories are beyond their limits.
        """
        life = self.life
        if life is None or life.channel is None or self.slot.state is not State.READY:
            raise Unavailable(
                f"{self.worker_id} is {self.slot.state}", worker=self.worker_id, retry_after=1.0
            )
        call = self._requests.dispatch(life, life.channel, request, request_id, epoch, on_end)
        if life.served >= self._config.max_requests:
            self._recycler.soon(f"{life.served} requests served")
        return call

    def _overdue(self, call: Call) -> None:
        # Who was interrupted for full storage need not have caused it; and nothing is noted of one who is forgotten.
        if not isinstance(call.failure, StorageFull | UserForgetting):
            self._events.publish(
                RequestOverdue(self._clock.time(), call.user_id, self.worker_id, call.request_id)
            )
        where = {"worker": self.worker_id, "incarnation": call.incarnation, "requestId": call.request_id}
        log.warning("%s: a request ignored its cancellation", self.worker_id, extra=where)
        # Others whose requests end with the worker are told why; whose request it was is not their business.
        self.handle(lifecycle.Drain(ExitReason.OVERDUE, "a request ignored its cancellation"))

    def interrupt(self, user_id: str, error: Callable[[], MoltbotError]) -> None:
        """Cancel what runs of one user, with the usual grace: what ignores it ends with the worker, which drains."""
        self._requests.interrupt(self.life.channel if self.life is not None else None, user_id, error)

    def unload(self, user_id: str) -> None:
        """Tell the worker to drop a user from memory; only when none of their requests is in flight."""
        if self.life is not None:
            self.life.unload(user_id)

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
            self._changed.set()
            now = self._clock.time()
            self._events.publish(announce(self.worker_id, before, self.slot, now, self._fields))

    @property
    def _fields(self) -> dict[str, object]:
        """What the log says beside a sentence."""
        return {"worker": self.worker_id, "incarnation": self.slot.incarnation}

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.slot.deadline is not None:
            delay = max(0.0, self.slot.deadline - self._clock.monotonic())
            self._timer = self._clock.call_later(delay, lambda: self.handle(lifecycle.Deadline()))

    def _notice(self, kind: str, frame: Frame) -> None:
        """Take what the worker says of itself; what was not asked for is a breach, and so no flood can be made of it."""
        life = self.life
        if life is None:
            return
        match kind:
            case "ready" if self.slot.state is State.STARTING:
                self._became_ready(life, frame)
            case "ready" if self.slot.state is State.KILLING:
                pass  # it came a moment too late
            case "beat":
                if not life.beat(frame["lag_ms"], self._limits.heartbeat_interval):
                    self._lost("it beats far more often than it was told to")
            case "drained" if self.slot.state is not State.READY:
                self.handle(lifecycle.Drained())
            case "arrived" if life.arrived(frame["user_id"], failed=frame.get("error") is not None):
                pass
            case "left" if life.left(frame["user_id"]):
                self._changed.set()
                self._events.publish(UserUnloaded(self._clock.time(), frame["user_id"], self.worker_id))
            case "error":
                self.handle(lifecycle.Trouble(ExitReason.BOOT_FAILED, clean_text(frame["message"])))
            case _:
                self._lost(f"it sent {kind} unasked")

    def _became_ready(self, life: Incarnation, frame: Frame) -> None:
        if frame["v"] != PROTOCOL_VERSION:
            detail = f"it speaks version {frame['v']} of the frames, this gateway {PROTOCOL_VERSION}"
            self.handle(lifecycle.Trouble(ExitReason.BOOT_FAILED, detail))
            return
        if gaps := life.identify():
            self.handle(
                lifecycle.Trouble(ExitReason.BOOT_FAILED, f"its wall does not hold: {'; '.join(gaps)}")
            )
            return
        life.beat(0.0, self._limits.heartbeat_interval)
        self.handle(lifecycle.BecameReady())

    # --- health ---------------------------------------------------------------------------------------

    def measured(self, usage: Usage, seconds: float) -> None:
        """Take note of a measurement of the process tree, made `seconds` after the last one."""
        if self.life is not None:
            self.life.measured(usage, seconds)

    def disk_measured(self, use: DiskUse) -> None:
        """Take note of what the worker's directories hold, and act if it is too much."""
        self.disk = use
        verdict = self._storage.judge(use, ready=self.slot.state is State.READY)
        if verdict.alarm is not None:
            log.warning("%s: %s", self.worker_id, verdict.alarm.detail, extra=self._fields)
            self._events.publish(
                StorageAlarm(self._clock.time(), self.worker_id, verdict.alarm.hard, verdict.alarm.detail)
            )
        if verdict.full is None:
            self._requests.storage_full = None
        elif self._requests.storage_full is None:
            self._requests.fill_storage(self.life.channel if self.life is not None else None, verdict.full)
        if verdict.restart is not None:
            self._clear_cache = True
            self.handle(lifecycle.Trouble(ExitReason.OVER_DISK, verdict.restart))

    def check_health(self) -> None:
        """Judge the worker as it is now, and act."""
        life = self.life
        if life is None or self.slot.state not in (State.READY, State.DRAINING):
            return
        since_beat = self._clock.monotonic() - life.last_beat
        finding = judge(
            Sample(since_beat, life.lag, self.in_flight, life.usage.memory, life.usage.tasks), self._limits
        )
        if finding is None:
            return
        if finding.reason is ExitReason.RECYCLED:
            self._recycler.for_memory(finding.detail)
        else:
            self.handle(lifecycle.Trouble(finding.reason, finding.detail))

    # --- actions --------------------------------------------------------------------------------------

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _spawn(self) -> None:
        if self.life is not None:
            self.counters.restarts += 1
        self.life = Incarnation(
            self.slot.incarnation, self.directories, self._config, self.isolation, self._clock
        )
        self._run(self._live(self.life))

    async def _live(self, life: Incarnation) -> None:
        """One incarnation from its spawn to its last process's end."""
        jitter = random.random()
        try:
            if self._clear_cache:  # temporary files go at every start, cached ones only when there is no room
                self.directories.create(self.isolation.wall.owner(self.worker_id))  # also the trash
                self.directories.put_cache_aside()
                self._clear_cache = False
            process = await life.launch(self._logs, self._next_id, self._notice, self._lost)
        except Exception as error:  # whatever it is: the slot must learn that nothing runs
            if not isinstance(error, OSError | BaseDirectoryError):
                log.exception(
                    "%s #%d cannot be started",
                    self.worker_id,
                    life.number,
                    extra={"worker": self.worker_id, "incarnation": life.number},
                )
            self.handle(lifecycle.Exited(None, None, detail=f"cannot start it: {error}", jitter=jitter))
            return
        self._run(self._empty_trash())
        if self.slot.state is State.KILLING:  # stopped while the process was being made
            process.kill()
        code, signal, oom = await process.wait()
        self.handle(lifecycle.Exited(code, signal, oom, jitter=jitter))

    async def _empty_trash(self) -> None:
        try:
            await self.directories.empty_trash()
        except OSError as error:
            log.warning(
                "%s: what it left behind cannot be deleted now: %s",
                self.worker_id,
                error,
                extra=self._fields,
            )

    def _lost(self, detail: str | None) -> None:
        self.handle(lifecycle.ChannelLost(detail))

    def _send_drain(self) -> None:
        if self.life is not None and self.life.channel is not None:
            self.life.channel.send(lambda session: session.drain())

    def _send_shutdown(self) -> None:
        if self.life is not None and self.life.channel is not None:
            self.life.channel.send(lambda session: session.shutdown(SHUTDOWN_GRACE * 1000))

    def _dump_stacks(self) -> None:
        if self.life is not None and self.life.process is not None:
            self.life.process.dump_stacks()

    def _kill(self) -> None:
        if self.life is not None and self.life.process is not None:
            self.life.process.kill()

    def _kill_tree(self) -> None:
        if self.life is not None and self.life.process is not None:
            self.life.process.kill_tree()

    def _settle(self) -> None:
        life, slot = self.life, self.slot
        if life is None:
            return
        reason = str(slot.reason or ExitReason.CRASHED)
        self.last_exit = LastExit(life.number, reason, slot.detail, self._clock.time())
        self._next_id = life.end(reason, slot.detail or "its connection ended") or self._next_id

    async def close(self) -> None:
        """End what is left of the supervisor's own tasks, after STOPPED."""
        self._requests.close()
        if self._timer is not None:
            self._timer.cancel()
        await self._recycler.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
