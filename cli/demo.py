"""`moltbot workers demo`: a story in four acts, every sentence of it checked.

A real gateway, real workers, real HTTP requests, a real SIGKILL. The exit status is 0 only if all that was shown is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moltbot.cli.loops import run
from moltbot.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, fail, progress, say, say_json, table
from moltbot.cli.settings import DEFAULT_PORT, Settings, load_settings
from moltbot.cli.wiring import build_gateway
from moltbot.cli.workers import status_text
from moltbot.client.http import GatewayClient
from moltbot.core.errors import MoltbotError, PortInUse, SettingsError, StartupError
from moltbot.core.events import PoolEvent, Subscription, WorkerChanged
from moltbot.core.messages import Request
from moltbot.core.units import parse_duration
from moltbot.gateway.server import Gateway
from moltbot.sandbox.directories import remove_trees

USERS = ("user-a", "user-b", "user-c")
ROUNDS = 10
RECOVERY_SECONDS = 30.0


def run_demo(*, workers: int, linger: str, directory: Path | None, port: int | None, as_json: bool) -> int:
    """Tell the story and return the exit status; `linger`: how long to stay afterwards, `0` until Ctrl+C.

    Without `directory` it has one of its own, which is removed if all went well.
    """
    try:
        seconds = parse_duration(linger) / 1000
    except ValueError as error:
        raise SettingsError(f"--timeout {linger!r} is impossible: {error}") from None
    base = directory or _fresh_directory()
    flags = {
        "worker_count": workers,
        "sandbox_base_dir": base,
        "port": DEFAULT_PORT if port is None else port,
    }
    settings, _ = load_settings(flags)
    story = Story(settings, any_port=port is None, fresh=directory is None, quiet=as_json)
    try:
        run(story.tell(seconds))
    except MoltbotError as error:
        status = fail(error, as_json=as_json)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED if not story.finished else story.exit_status
    else:
        status = story.exit_status
        if as_json:
            say_json(story.document)
    if not as_json and base.exists():
        say(f"Its directory is kept: {base}")
    return status


def _fresh_directory() -> Path:
    """A name that nobody has yet; the directory itself is made once the port is ours."""
    parent = Path("/tmp/moltbot-workers")
    if parent.is_symlink() or (parent.exists() and parent.stat().st_uid != os.geteuid()):
        parent = parent.with_name(f"moltbot-workers-{os.geteuid()}")  # somebody else tried it first
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"{parent} cannot be used ({error.strerror}): name another directory with -s"
        ) from None
    return parent / f"demo-{secrets.token_hex(4)}"


class Story:
    """The acts, what was found true in each, and the document of it all."""

    def __init__(self, settings: Settings, *, any_port: bool, fresh: bool, quiet: bool) -> None:
        self._settings = settings
        self._any_port = any_port
        self._fresh = fresh
        self._quiet = quiet
        self.finished = False
        self.document: dict[str, Any] = {
            "ok": False,
            "directory": str(settings.sandbox_base_dir),
            "checks": [],
        }

    @property
    def exit_status(self) -> int:
        return 0 if self.document["ok"] else EXIT_FAILED

    def _say(self, text: str = "") -> None:
        if not self._quiet:
            say(text)

    def _check(self, true: bool, text: str) -> None:
        """State something; it counts only if it is true."""
        self.document["checks"].append({"ok": true, "text": text})
        self._say(f"  {'✓' if true else '✗'} {text}")

    async def tell(self, linger: float) -> None:
        """All acts; afterwards the gateway stays for `linger` seconds."""
        gateway = await self._start()
        try:
            self._introduce(gateway)
            async with GatewayClient(
                gateway.url, gateway.token, timeout=60, fingerprint=gateway.fingerprint
            ) as client:
                homes = await self._assign(client)
                await self._repeat(client, homes)
                await self._kill_one(gateway, client, homes)
                await self._show_status(client)
            self.document["ok"] = all(check["ok"] for check in self.document["checks"])
            self.finished = True
            await self._linger(gateway, linger)
        finally:
            await gateway.stop()
        if self._fresh and self.document["ok"]:
            await remove_trees([str(self._settings.sandbox_base_dir)])
        self._say(
            "All workers stopped." if self.document["ok"] else "Not all of it was true; see the lines with ✗."
        )

    async def _start(self) -> Gateway:
        settings = self._settings
        text = f"Starting a gateway and {settings.worker_count} workers in {settings.sandbox_base_dir} ..."
        with progress(text, quiet=self._quiet):
            gateway = build_gateway(settings)
            try:
                await gateway.start()
            except PortInUse as error:
                if not self._any_port:
                    raise
                self._say(f"{error.message.partition(':')[0]}; taking a free one.")
                gateway = build_gateway(settings.model_copy(update={"port": 0}))
                await gateway.start()
        return gateway

    def _introduce(self, gateway: Gateway) -> None:
        status = gateway.router.get_status()
        assert status is not None
        self.document["url"] = gateway.url
        self.document["isolation"] = status.isolation
        self._say(f"Gateway on {gateway.url}, isolation level {status.isolation}.")

    async def _assign(self, client: GatewayClient) -> dict[str, str]:
        """Act 1: everybody gets a worker."""
        self._say("\n1. Three users say hello, over HTTP")
        replies = {user: await client.route(_hello(user)) for user in USERS}
        homes = {user: reply["workerId"] for user, reply in replies.items()}
        self.document["assignments"] = homes
        rows = [
            [user, "->", homes[user], f"{reply['durationMs']:.1f} ms", reply["payload"]]
            for user, reply in replies.items()
        ]
        self._say(table(["USER", "", "WORKER", "TIME", "ANSWER"], rows))
        used = len(set(homes.values()))
        expected = min(len(USERS), self._settings.worker_count)
        if not any(check for check in [await self._earlier_users(client)]):
            self._check(
                used == expected, f"they are spread over {used} of {self._settings.worker_count} workers"
            )
        return homes

    async def _earlier_users(self, client: GatewayClient) -> bool:
        """True if the directory already had users of its own: then their pins decide."""
        return bool((await client.workers())["routingTableSize"] > len(USERS))

    async def _repeat(self, client: GatewayClient, homes: dict[str, str]) -> None:
        """Act 2: they always come back to it."""
        self._say(f"\n2. Each sends {ROUNDS} more requests")
        for user in USERS:
            seen = {(await client.route(_hello(user)))["workerId"] for _ in range(ROUNDS)}
            self._check(seen == {homes[user]}, f"{user} always reached {', '.join(sorted(seen))}")

    async def _kill_one(self, gateway: Gateway, client: GatewayClient, homes: dict[str, str]) -> None:
        """Act 3: one worker is killed; the others never notice, and it comes back as it was."""
        victim = homes["user-b"]
        before = await _by_id(client)
        turns = await _turns(client, "user-b")
        others = [user for user in USERS if homes[user] != victim]
        self._say(f"\n3. SIGKILL to {victim} (pid {before[victim]['pid']}), while the others go on sending")
        with gateway.router.events() as events:
            stop = asyncio.Event()
            traffic = [asyncio.create_task(_keep_sending(client, user, stop)) for user in others]
            os.kill(before[victim]["pid"], signal.SIGKILL)
            started = asyncio.get_running_loop().time()
            back = await _came_back(events, victim)
            recovery = (asyncio.get_running_loop().time() - started) * 1000
            stop.set()
            sent = await asyncio.gather(*traffic)
        if not back:
            self._check(False, f"{victim} is not back under its name after {recovery:.0f} ms")
            return
        after = await _by_id(client)
        self.document["crash"] = {
            "worker": victim,
            "recoveryMs": round(recovery, 1),
            "otherRequests": sum(sent),
        }
        untouched = all(after[name]["pid"] == before[name]["pid"] for name in after if name != victim)
        if others:
            self._check(
                untouched and all(count > 0 for count in sent),
                f"the others answered {sum(sent)} requests meanwhile, none failed, their processes are the same",
            )
        else:
            self._say("  (every user lives on this worker: nobody else was there to notice)")
        new_pid, old_pid = after[victim]["pid"], before[victim]["pid"]
        self._check(
            new_pid not in (None, old_pid),
            f"{victim} is back under its name after {recovery:.0f} ms, with pid {new_pid}",
        )
        self._check(
            await _turns(client, "user-b") == turns, f"user-b's {turns} turns of conversation are all there"
        )
        reply = await client.route(_hello("user-b"))
        self._check(
            reply["workerId"] == victim and f"turn {turns + 1} " in reply["payload"],
            f"user-b goes on where they were: {reply['payload']!r}",
        )

    async def _show_status(self, client: GatewayClient) -> None:
        """Act 4: what an operator sees."""
        document = await client.workers()
        self.document["status"] = document
        self._say("\n4. The status, as `moltbot workers status` shows it")
        self._say(status_text(document))

    async def _linger(self, gateway: Gateway, seconds: float) -> None:
        if self._quiet:
            return
        wait = "at Ctrl+C" if seconds == 0 else f"in {seconds:g} s"
        token = self._settings.sandbox_base_dir / "token"
        verdict = (
            "All of it was true." if self.document["ok"] else "Not all of it was true: see the lines with ✗."
        )
        with _interruption() as ended:
            self._say(f"\n{verdict} Stopping {wait}.")
            self._say(f'Until then: curl -H "Authorization: Bearer $(cat {token})" {gateway.url}/api/workers')
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds if seconds else None):
                    await ended.wait()


def _hello(user: str) -> Request:
    return Request("agent", user, {"message": f"hello from {user}"})


async def _came_back(events: Subscription[PoolEvent], victim: str) -> bool:
    """Wait until the victim is ready again; False if it is given up, or takes too long."""
    try:
        async with asyncio.timeout(RECOVERY_SECONDS):
            async for event in events:
                if isinstance(event, WorkerChanged) and event.worker_id == victim:
                    if event.state == "ready":
                        return True
                    if event.state == "quarantined":
                        return False
    except TimeoutError:
        pass
    return False


async def _turns(client: GatewayClient, user: str) -> int:
    """How often the user spoke, from the conversation on the worker's disk."""
    history = (await client.route(Request("command", user, {"command": "history"})))["payload"]
    return sum(1 for entry in history if entry["role"] == "user")


async def _by_id(client: GatewayClient) -> dict[str, dict[str, Any]]:
    return {worker["workerId"]: worker for worker in (await client.workers())["workers"]}


async def _keep_sending(client: GatewayClient, user: str, stop: asyncio.Event) -> int:
    """Send until told to stop; any failure is raised. Returns how many were answered."""
    count = 0
    while not stop.is_set():
        await client.route(_hello(user))
        count += 1
    return count


@contextlib.contextmanager
def _interruption() -> Iterator[asyncio.Event]:
    """An event that Ctrl+C or SIGTERM sets."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        yield ended
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
