"""A cancelled write is whole or absent, and the connection that carried it goes on working."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent_memory import AgentMemory, AsyncAgentMemory, UnavailableError
from agent_memory.ids import uuid7
from agent_memory.messages import CommitWrite, Scope
from agent_memory.operations import Get
from agent_memory.storage.postgres.catalog import PostgresCatalog
from tests.faults.processes import counter_of, value
from tests.support.postgres import PostgresServer

# Hypothesis measures the garbage collector by a callback, and an interrupt may come in there as well.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function gc_cumulative_time:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(params=["embedded", "http"])
def address(request: pytest.FixtureRequest, database: Path) -> str:
    if request.param == "embedded":
        return str(database)
    return request.getfixturevalue("server").url


async def time_of(call: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds a call takes on this machine, now."""
    times: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@pytest.mark.parametrize("size", [300, 400_000], ids=["small", "large"])
def test_a_cancelled_write_is_whole_or_absent_and_the_next_call_works(address: str, size: int, soak: bool) -> None:
    dice = random.Random(30)

    async def run() -> tuple[int, int]:
        cancelled = written = 0
        seen: dict[str, int] = {}
        # Several chunks: a write is cancelled between them, too.
        async with AsyncAgentMemory(address, application="faults", chunk_size=100_000) as memory:
            longest = 1.5 * await time_of(lambda: memory.app_state.set("timed", value(0, size)))
            for counter in range(1, 1_000 if soak else 90):
                # A key each: a server may finish an abandoned write after a later one.
                key = f"k{counter}"
                await memory.app_state.set(key, value(0, size))
                task = asyncio.create_task(memory.app_state.set(key, value(counter, size)))
                await asyncio.sleep(dice.uniform(0, longest) if counter % 4 else 0)
                task.cancel()
                try:
                    await task
                    acknowledged = True
                except asyncio.CancelledError:
                    acknowledged = False
                    cancelled += 1
                now = counter_of(await memory.app_state.get(key))
                assert now in (0, counter), "neither the value before nor the one that was written"
                assert now == counter or not acknowledged
                written += now == counter
                seen[key] = now
            if not address.startswith("http"):
                # An embedded write is over when its cancellation is: nothing lands behind the caller's back.
                await asyncio.sleep(0.05)
                assert seen == {key: counter_of(await memory.app_state.get(key)) for key in seen}
        return cancelled, written

    cancelled, written = asyncio.run(run())
    assert cancelled > 10, "the cancellations came too late to be a test"
    assert written > 0, "the cancellations came too early to be a test"


def test_a_cancelled_read_of_a_large_value_leaves_the_connection_usable(address: str) -> None:
    dice = random.Random(31)
    data = value(7, 1_000_000)

    async def run() -> int:
        cancelled = 0
        async with AsyncAgentMemory(address, application="faults", chunk_size=100_000) as memory:
            await memory.app_state.set("k", data)
            longest = await time_of(lambda: memory.app_state.get("k"))
            for _ in range(60):
                task = asyncio.create_task(memory.app_state.get("k"))
                await asyncio.sleep(dice.uniform(0, longest))
                task.cancel()
                try:
                    assert await task == data
                except asyncio.CancelledError:
                    cancelled += 1
            assert await memory.app_state.get("k") == data
        return cancelled

    assert asyncio.run(run()) > 5


def test_many_writes_cancelled_at_once_leave_one_whole_value_each(address: str) -> None:
    dice = random.Random(32)

    async def run() -> None:
        async with AsyncAgentMemory(address, application="faults", chunk_size=100_000) as memory:
            keys = [f"k{number}" for number in range(20)]
            for round_number in range(5):
                size = 300 if round_number % 2 else 150_000
                tasks = [asyncio.create_task(memory.app_state.set(key, value(round_number, size))) for key in keys]
                for task in tasks:
                    await asyncio.sleep(dice.uniform(0, 0.001))
                    if dice.random() < 0.7:
                        task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(not isinstance(one, Exception) for one in results)
                for key, result in zip(keys, results, strict=True):
                    data = await memory.app_state.get(key)
                    if not isinstance(result, BaseException):
                        assert counter_of(data) == round_number
                    elif data is not None:
                        assert counter_of(data) <= round_number

    asyncio.run(run())


def test_cancelled_calls_give_their_connections_back(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, soak: bool
) -> None:
    # Few enough for calls to wait for them.
    monkeypatch.setattr("agent_memory.transports.async_pool.CONNECTIONS", 2)
    address = request.getfixturevalue("server").url
    dice = random.Random(33)

    async def run() -> None:
        async with AsyncAgentMemory(address, application="faults", chunk_size=100_000, timeout=5.0) as memory:
            for size in (300, 250_000):
                longest = 1.2 * await time_of(lambda size=size: memory.app_state.set("key", value(1, size)))
                for number in range(300 if soak else 60):
                    task = asyncio.create_task(memory.app_state.set("key", value(number, size)))
                    for _ in range(1 + number % 3):
                        await asyncio.sleep(dice.uniform(0, longest))
                        task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await memory.app_state.set("key", "last")
            assert await memory.app_state.get("key") == "last"
            transport: Any = memory._client.transport()
            [pool] = transport._async_pools.values()
            connections = [connection.info() for connection in pool.transport._pool.connections]
            assert len(connections) <= 2, connections
            assert all("IDLE" in one for one in connections), connections

    asyncio.run(run())


def test_a_call_that_is_cancelled_by_a_timeout_frees_its_thread(database: Path) -> None:
    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults") as memory:
            for _ in range(100):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(memory.app_state.set("k", value(1, 200_000)), 0.0001)
            await asyncio.wait_for(memory.app_state.set("k", 1), 5)
            assert await memory.app_state.get("k") == 1

    asyncio.run(run())


def test_a_write_that_is_cancelled_before_its_turn_is_not_carried_out(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults") as memory:
            service = memory._client.transport().service
            handle = service.handle

            begun, go_on = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def slow(message: object) -> object:
                loop.call_soon_threadsafe(begun.set)
                go_on.wait(10)
                return handle(message)

            monkeypatch.setattr(service, "handle", slow)
            first = asyncio.create_task(memory.app_state.set("first", 1))
            await begun.wait()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(memory.app_state.set("second", 2), 0.05)
            assert not first.done(), "the second waited for its turn"
            go_on.set()
            await first
            assert await memory.app_state.get_many(["first", "second"]) == {"first": 1}

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 2])
def test_a_write_is_over_when_its_cancelled_task_is(
    database: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults") as memory:
            service = memory._client.transport().service
            begun = asyncio.Event()
            loop = asyncio.get_running_loop()
            handle, replies = service.handle, list[object]()

            def slow(message: object) -> object:
                loop.call_soon_threadsafe(begun.set)
                time.sleep(0.1)
                replies.append(reply := handle(message))
                return reply

            monkeypatch.setattr(service, "handle", slow)
            task = asyncio.create_task(memory.app_state.set("k", "cancelled"))
            await begun.wait()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(replies) == 1
            monkeypatch.undo()
            # Else the cancelled write would land on this one, which was acknowledged.
            await memory.app_state.set("k", "later")
            await asyncio.sleep(0.2)
            assert await memory.app_state.get("k") == "later"

    asyncio.run(run())


def test_a_store_is_closed_although_the_task_that_closes_it_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.transports.local._THREADS", 1)

    async def run() -> None:
        memory = AsyncAgentMemory("memory://", application="faults")
        transport: Any = memory._client.transport()
        folder = Path(memory._client.config.url).parent
        handle, begun, go_on = transport.service.handle, threading.Event(), threading.Event()

        def slow(message: object) -> object:
            begun.set()
            go_on.wait(10)
            return handle(message)

        monkeypatch.setattr(transport.service, "handle", slow)
        # No thread is free to begin at once.
        searching = asyncio.create_task(memory.app_state.search(""))
        await asyncio.to_thread(begun.wait, 10)
        with anyio.CancelScope() as scope:
            async with memory:
                asyncio.get_running_loop().call_later(0.05, go_on.set)
                scope.cancel()
                await anyio.sleep(10)
        assert not folder.exists()
        await asyncio.gather(searching, return_exceptions=True)

    asyncio.run(run())


def test_an_error_that_comes_together_with_a_cancellation_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        memory = AsyncAgentMemory(url, application="faults")
        caller = asyncio.ensure_future(memory.app_state.get("key"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        [inner] = [task for task in asyncio.all_tasks() if "_Call._run" in repr(task)]
        # In the same turn of the loop in which the request fails.
        inner.add_done_callback(lambda _: caller.cancel())
        with pytest.raises(asyncio.CancelledError):
            await caller
        await memory.close()
        server.close()

    asyncio.run(run())
    # The call's frames hold the task whose error it is.
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], None]]:
    """Raises KeyboardInterrupt on the main thread after so many seconds; with 0 none any more, though it be late."""
    armed = False

    def arrived(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    def arm(seconds: float) -> None:
        nonlocal armed
        armed = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, arrived)
    yield arm
    arm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_write_that_is_interrupted_counts_once_or_not_at_all_and_the_next_one_works(
    interrupt: Callable[[float], None], soak: bool
) -> None:
    dice, interrupted = random.Random(31), 0
    # Closed at the end alone: where a write left the lock behind, that would wait for ever.
    memory = AgentMemory("memory://", application="faults", timeout=2)
    count = memory.app_state.key("count", int)
    before = count.set(0).version
    for _ in range(20_000 if soak else 4_000):
        written = False
        try:
            interrupt(dice.uniform(0.00001, 0.0004))
            try:
                count.set(1)
                written = True
            finally:
                interrupt(0)
        except KeyboardInterrupt:
            interrupted += 1
        entry = memory.app_state.snapshot("count").entry
        assert entry.version - before in ((1,) if written else (0, 1))
        before = entry.version
    count.set(2)
    assert memory.check().ok
    memory.close()
    assert interrupted > 100


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_reads_that_are_interrupted_leave_later_ones_no_old_value_and_a_fork_no_one_to_wait_for(
    interrupt: Callable[[float], None], soak: bool
) -> None:
    dice, interrupted = random.Random(32), 0
    with AgentMemory("memory://", application="faults", timeout=2) as memory:
        for counter in range(10_000 if soak else 2_000):
            memory.app_state.set("count", counter)
            try:
                interrupt(dice.uniform(0.00001, 0.0002))
                try:
                    # Several keys are read in a transaction.
                    memory.app_state.batch([Get("count"), Get("other")])
                    list(memory.app_state.keys())
                finally:
                    interrupt(0)
            except KeyboardInterrupt:
                interrupted += 1
            assert memory.app_state.get("count") == counter
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert time.monotonic() - began < 5
    assert interrupted > 100


def test_calls_to_postgresql_that_are_interrupted_leave_every_connection_to_later_ones(
    interrupt: Callable[[float], None], soak: bool
) -> None:
    dice, interrupted = random.Random(33), 0
    with PostgresServer() as server, closing(PostgresCatalog(server.database(), connections=4)) as catalog:
        scope = Scope("default", "faults")
        for _ in range(20_000 if soak else 3_000):
            try:
                interrupt(dice.uniform(0.00001, 0.0005))
                try:
                    catalog.read(scope, "k")
                    catalog.write(CommitWrite(scope, "k", uuid7(), b"1", None))
                finally:
                    interrupt(0)
            except KeyboardInterrupt:
                interrupted += 1
            except UnavailableError:
                # Half-open connections came faster than a busy PostgreSQL took them away.
                time.sleep(0.1)
        at_once, done = threading.Barrier(4), threading.Semaphore(0)
        for _ in range(4):
            # Where one hangs, the test is not to.
            threading.Thread(
                target=lambda: (catalog._pool.run(lambda _: at_once.wait(20)), done.release()), daemon=True
            ).start()
        assert all(done.acquire(timeout=20) for _ in range(4))
    assert interrupted > 100
