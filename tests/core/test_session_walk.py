"""Random walks over a session: any cuts of the bytes, any readers, and nothing is lost or out of order.

The worker streams numbered chunks, the gateway reads, consumes and cancels at random, and the bytes of both directions
arrive in pieces of any size. Every step checks the window; the end checks that all that was owed has come.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moltbot.core.frames import CancelRequested, CreditGranted, Final, Requested, Streamed
from moltbot.core.session import Callee, Caller

LARGEST = 400


class Walk:
    """Two sessions, the bytes between them, and what should come out."""

    def __init__(self, chance: random.Random, window: int) -> None:
        self.chance = chance
        self.window = window
        self.caller = Caller(credit=window)
        self.callee = Callee(credit=window)
        self.down = bytearray()
        self.up = bytearray()
        self.serving: set[int] = set()
        self.sent: dict[int, int] = defaultdict(int)
        self.taken: dict[int, int] = defaultdict(int)
        self.held: dict[int, int] = defaultdict(int)  # bytes read, not yet consumed
        self.cancelled: set[int] = set()
        self.finals: dict[int, int] = defaultdict(int)
        self.promised: dict[int, int] = {}  # chunks streamed when the final was sent

    def request(self) -> None:
        self.caller.request("agent", "ada", None, epoch=1, deadline_ms=1, meta={})

    def cancel(self) -> None:
        id = self.chance.randint(1, self.caller.next_id)
        self.caller.cancel(id)
        self.cancelled.add(id)

    def stream(self) -> None:
        if self.serving:
            id = self.chance.choice(sorted(self.serving))
            self.callee.stream(id, "chunk", data=[self.sent[id], "x" * self.chance.randrange(LARGEST)])
            self.sent[id] += 1

    def finish(self) -> None:
        if self.serving:
            id = self.chance.choice(sorted(self.serving))
            self.serving.remove(id)
            self.promised[id] = self.sent[id]
            self.callee.finish(id, self.callee.prepare(id, "reply", payload=self.sent[id], usage={}))

    def consume(self) -> None:
        if self.held:
            id = self.chance.choice(sorted(self.held))
            self.caller.consumed(id, self.held.pop(id))

    def cut(self, pipe: bytearray) -> bytes:
        size = self.chance.choice((1, 2, 3, 10, 100, 1000, len(pipe)))
        piece = bytes(pipe[:size])
        del pipe[:size]
        return piece

    def arrive_below(self) -> None:
        self.down += self.caller.data_to_send()
        for event in self.callee.receive(self.cut(self.down)):
            match event:
                case Requested(id, _):
                    self.serving.add(id)
                case CancelRequested(id) | CreditGranted(id):
                    assert self.finals[id] == 0

    def arrive_above(self) -> None:
        self.up += self.callee.data_to_send()
        for event in self.caller.receive(self.cut(self.up)):
            match event:
                case Streamed(id, _, frame, size):
                    assert frame["data"][0] == self.taken[id], "lost or out of order"
                    assert self.finals[id] == 0
                    # In the window: what the reader holds was sent with credit, but for the last frame.
                    assert self.held[id] < self.window
                    self.taken[id] += 1
                    self.held[id] += size
                case Final(id, _, frame):
                    self.finals[id] += 1
                    if id not in self.cancelled:
                        assert frame["payload"] == self.taken[id] == self.promised[id]

    def step(self) -> None:
        self.chance.choice(
            (
                self.request,
                self.stream,
                self.stream,
                self.stream,
                self.finish,
                self.consume,
                self.consume,
                self.arrive_below,
                self.arrive_below,
                self.arrive_above,
                self.arrive_above,
                *((self.cancel,) if self.chance.random() < 0.3 else ()),
            )
        )()

    def end(self) -> None:
        """Let everything arrive and be read, and every handler finish."""
        while self.caller.open_calls:
            self.finish()
            self.consume()
            self.arrive_below()
            self.arrive_above()

    def check(self) -> None:
        assert self.callee.in_flight == 0
        assert dict(self.finals) == dict.fromkeys(range(1, self.caller.next_id), 1)
        assert not self.up
        assert not self.callee.wants_to_send


def walk(seed: int, steps: int, window: int) -> None:
    walker = Walk(random.Random(seed), window)
    for _ in range(steps):
        walker.step()
    walker.end()
    walker.check()


@pytest.mark.parametrize("window", [1, 50, 300, 5000])
@pytest.mark.parametrize("seed", range(15))
def test_a_long_walk_loses_nothing_and_reorders_nothing(seed: int, window: int) -> None:
    walk(seed, 1500, window)


@given(st.integers(0, 1 << 32), st.integers(0, 120), st.integers(1, 1000))
def test_any_short_walk_loses_nothing_and_reorders_nothing(seed: int, steps: int, window: int) -> None:
    walk(seed, steps, window)
