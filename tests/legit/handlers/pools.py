"""Honest programs that share work among processes by `multiprocessing`; each checks its own results.

The functions that children run are at the top: a child finds them by importing this file.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from moltbot import Context, handler

PATIENCE = 25.0


def square(number: int) -> int:
    return number * number


def add_to(total: Any, lock: Any, results: Any) -> None:
    """What a child of `locks_and_queues` does."""
    for _ in range(100):
        with lock:
            total.value += 1
    results.put(os.getpid())


def bytes_of(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None
    return memory.buf


def fill(name: str) -> None:
    memory = SharedMemory(name=name)
    bytes_of(memory)[:5] = b"hello"
    memory.close()


def pool(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as workers:
        assert workers.map_async(square, range(20)).get(PATIENCE) == [square(n) for n in range(20)]


@handler("pool_by_fork")
def pool_by_fork(ctx: Context, payload: Any) -> None:
    pool("fork")


@handler("pool_by_spawn")
def pool_by_spawn(ctx: Context, payload: Any) -> None:
    pool("spawn")


@handler("pool_by_forkserver")
def pool_by_forkserver(ctx: Context, payload: Any) -> None:
    pool("forkserver")


@handler("executor_of_processes")
async def executor_of_processes(ctx: Context, payload: Any) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as executor:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, square, n) for n in range(10)]
        assert await asyncio.wait_for(asyncio.gather(*calls), PATIENCE) == [square(n) for n in range(10)]


def start(context: BaseContext, function: Any, *arguments: Any) -> Any:
    process = context.Process(target=function, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return process


@handler("locks_and_queues")
def locks_and_queues(ctx: Context, payload: Any) -> None:
    context = multiprocessing.get_context("spawn")
    total, lock, results = context.Value("i", 0, lock=False), context.Lock(), context.Queue()
    children = [start(context, add_to, total, lock, results) for _ in range(2)]
    assert {results.get(timeout=PATIENCE) for _ in children} == {child.pid for child in children}
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0
    assert total.value == 200
    semaphore = context.BoundedSemaphore(1)
    assert semaphore.acquire(timeout=PATIENCE)
    assert not semaphore.acquire(block=False)
    semaphore.release()


@handler("shared_memory")
def shared_memory(ctx: Context, payload: Any) -> None:
    memory = SharedMemory(create=True, size=8 << 20)
    try:
        child = start(multiprocessing.get_context("spawn"), fill, memory.name)
        child.join(PATIENCE)
        assert child.exitcode == 0
        assert bytes(bytes_of(memory)[:5]) == b"hello"
    finally:
        memory.close()
        memory.unlink()


@handler("manager")
def manager(ctx: Context, payload: Any) -> None:
    with multiprocessing.get_context("spawn").Manager() as shared:
        table = shared.dict(one=1)
        table["two"] = 2
        assert dict(table) == {"one": 1, "two": 2}
