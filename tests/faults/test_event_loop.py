"""Async calls do not hold up the event loop, whatever other processes do to the store."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from pydantic import BaseModel, field_validator

from agent_memory import AgentMemory, AsyncAgentMemory
from agent_memory.messages import PAGE_LIMIT
from agent_memory.transports.local import LocalTransport
from tests.faults.processes import Child, Report, value

HELD_SECONDS = 0.4
"""How long the other process keeps the write lock: a write on the loop's thread would stop the loop for as long."""

Start = Callable[..., Child]


def hog(report: Report, database: Path) -> None:
    """Write all the time, and between writes hold the lock."""
    report.wait()
    with AgentMemory(database, application="faults") as memory:
        connection = apsw.Connection(str(database))
        connection.set_busy_timeout(5000)
        for counter in itertools.count():
            memory.app_state.set("theirs", value(counter, 300))
            connection.execute("BEGIN IMMEDIATE").fetchall()
            if counter == 0:
                report("ready")
            time.sleep(HELD_SECONDS)
            connection.execute("ROLLBACK").fetchall()


async def gaps_while(work: Callable[[], Awaitable[Any]], seconds: float) -> list[float]:
    """Return by how much each sleep of a millisecond took longer, in rising order, while ``work`` ran over and over."""

    async def repeat() -> None:
        while True:
            await work()

    task = asyncio.create_task(repeat())
    gaps: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await asyncio.sleep(0.001)
        gaps.append(time.perf_counter() - began - 0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return sorted(gaps)


async def measure(database: Path, hogging: Child, seconds: float = 1.5) -> tuple[list[float], list[float]]:
    """Return the gaps of a loop that does as much without the store, and of one that reads and writes."""
    counter = itertools.count()
    async with AsyncAgentMemory(database, application="faults") as memory:
        await memory.app_state.set("mine", b"")
        await memory.app_state.set("large", value(1, 200_000))
        hogging.go()
        hogging.report()

        async def nothing() -> None:
            await asyncio.to_thread(time.sleep, 0.001)

        async def calls() -> None:
            await memory.app_state.get("theirs")
            await asyncio.gather(
                memory.app_state.set("mine", value(next(counter), 300)),
                memory.app_state.set("large", value(1, 200_000)),
                memory.app_state.get("large"),
                memory.app_state.get("mine"),
            )

        return await gaps_while(nothing, seconds), await gaps_while(calls, seconds)


def at(share: float, ordered: list[float]) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def test_the_loop_goes_on_while_another_process_writes_and_holds_the_lock(database: Path, start: Start) -> None:
    hogging = start(hog, database)
    control, gaps = asyncio.run(measure(database, hogging))
    noise = max(control)
    assert at(0.99, gaps) < at(0.99, control) + 0.015
    assert max(gaps) - noise < HELD_SECONDS / 2, "the loop stood still"


def test_the_measurement_notices_writes_on_the_loop(
    database: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def on_the_loop(self: LocalTransport, message: Any, deadline: float) -> Any:
        return self.service.handle(message)

    monkeypatch.setattr(LocalTransport, "asend", on_the_loop)
    hogging = start(hog, database)
    control, gaps = asyncio.run(measure(database, hogging))
    assert max(gaps) - max(control) > HELD_SECONDS / 2


def test_an_async_read_does_not_wait_for_the_write_lock(database: Path, start: Start) -> None:
    hogging = start(hog, database)

    async def run() -> list[float]:
        times: list[float] = []
        async with AsyncAgentMemory(database, application="faults") as memory:
            hogging.go()
            hogging.report()
            for _ in range(500):
                began = time.perf_counter()
                assert await memory.app_state.get("theirs")
                times.append(time.perf_counter() - began)
        return sorted(times)

    times = asyncio.run(run())
    assert at(0.95, times) < 0.005
    assert max(times) < HELD_SECONDS / 2


def test_large_values_are_hashed_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    sizes: list[int] = []

    class Watched:
        def __init__(self, data: bytes = b"") -> None:
            self._real = hashlib.sha256(data)
            self.hexdigest = self._real.hexdigest

        def update(self, data: memoryview) -> None:
            sizes.append(len(data))
            threads.add(threading.get_ident())
            self._real.update(data)

    monkeypatch.setattr("agent_memory.flows.hashlib", SimpleNamespace(sha256=Watched))
    data = random.Random(1).randbytes(20_000_000)

    async def run() -> None:
        async with AsyncAgentMemory(tmp_path / "memory.db", application="test") as memory:
            await memory.app_state.set("large", data)
            assert await memory.app_state.get("large") == data

    asyncio.run(run())
    assert sum(sizes) == 2 * len(data)
    assert threading.get_ident() not in threads


def test_the_loop_goes_on_while_the_pages_of_a_long_list_are_loaded(database: Path) -> None:
    turn, seen = 0, list[int]()

    class Reading(BaseModel):
        at: int

        @field_validator("at")
        @classmethod
        def see(cls, at: int) -> int:
            seen.append(turn)
            return at

    async def run() -> None:
        nonlocal turn

        async def count() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        async with AsyncAgentMemory(database, application="faults") as memory:
            readings = memory.entity("site", "north").collection(Reading)
            await readings.add_many([Reading(at=number) for number in range(PAGE_LIMIT + 1)])
            seen.clear()
            counting = asyncio.create_task(count())
            assert len(await readings.list()) == PAGE_LIMIT + 1
            counting.cancel()

    asyncio.run(run())
    assert seen[-1] > seen[0]


def test_the_threads_of_an_event_loop_end_with_it(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    async def write_and_read(memory: AsyncAgentMemory) -> Any:
        await asyncio.gather(*[memory.app_state.set(f"key {number}", number) for number in range(20)])
        return await memory.app_state.get("key 7")

    memory = AsyncAgentMemory(tmp_path / "memory.db", application="test")
    assert [asyncio.run(write_and_read(memory)) for _ in range(3)] == [7, 7, 7]
    memory.sync.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, "threads are left behind"
        gc.collect()
        time.sleep(0.01)
