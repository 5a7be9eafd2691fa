"""Many processes and tasks on one store: no lost update, no deadlock, no reader behind a writer."""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from pydantic import BaseModel

from agent_memory import AgentMemory, AsyncAgentMemory, UnavailableError
from agent_memory.ids import uuid7
from agent_memory.messages import CommitWrite, Scope
from agent_memory.storage.sqlite import checkpoints as sqlite_checkpoints
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from tests.faults.processes import Child, Report, counter_of, value

Start = Callable[..., Child]


class Tally(BaseModel):
    count: int = 0
    by_writer: dict[str, int] = {}


def add(tally: Tally, writer: str) -> None:
    tally.count += 1
    tally.by_writer[writer] = tally.by_writer.get(writer, 0) + 1


def increment(report: Report, address: str, writer: str, times: int) -> None:
    with AgentMemory(address, application="faults") as memory:
        document = memory.entity("user", "1").document(Tally)
        report("ready")
        for _ in range(times):
            document.update(lambda tally: add(tally, writer))


@pytest.fixture(params=["embedded", "http"])
def address(request: pytest.FixtureRequest, database: Path) -> str:
    if request.param == "embedded":
        return str(database)
    return request.getfixturevalue("server").url


def test_eight_processes_lose_none_of_their_increments(address: str, start: Start) -> None:
    began = time.monotonic()
    for child in [start(increment, address, f"w{number}", 50) for number in range(8)]:
        child.join(timeout=30)
    assert time.monotonic() - began < 30
    with AgentMemory(address, application="faults") as memory:
        snapshot = memory.entity("user", "1").document(Tally).snapshot()
    assert snapshot is not None
    assert snapshot.value == Tally(count=400, by_writer={f"w{number}": 50 for number in range(8)})
    assert snapshot.version == 400, "an increment is a version, and nothing else is"


def test_fifty_tasks_lose_none_of_their_increments(address: str) -> None:
    async def run() -> Tally | None:
        async with AsyncAgentMemory(address, application="faults") as memory:
            document = memory.entity("user", "1").document(Tally)

            async def work(number: int) -> None:
                for _ in range(4):
                    await document.update(lambda tally: add(tally, f"t{number}"))

            await asyncio.wait_for(asyncio.gather(*map(work, range(50))), 30)
            return await document.get()

    assert asyncio.run(run()) == Tally(count=200, by_writer={f"t{number}": 4 for number in range(50)})


def test_tasks_that_update_one_key_seldom_try_for_nothing(address: str) -> None:
    """Each try calls the function; without turns fifty tasks called it thousands of times."""
    tries = 0

    def count(value: int) -> int:
        nonlocal tries
        tries += 1
        return value + 1

    async def run() -> int:
        async with AsyncAgentMemory(address, application="faults") as memory:
            counter = memory.app_state.key("counter", int)
            await counter.set(0)

            async def work() -> None:
                for _ in range(4):
                    await counter.update(count)

            await asyncio.gather(*(work() for _ in range(50)))
            return await counter.get(default=0)

    assert asyncio.run(run()) == 200
    assert tries <= 600


def test_an_update_that_awaits_something_long_holds_no_other_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a model's answer while it has its turn."""
    monkeypatch.setattr("agent_memory.turns._LONGEST", 60.0)

    async def run() -> None:
        async with AsyncAgentMemory(address, application="faults") as memory:
            counter = memory.app_state.key("counter", int)
            await counter.set(0)
            asked, answered = asyncio.Semaphore(0), asyncio.Semaphore(0)

            async def ask(value: int) -> int:
                asked.release()
                await answered.acquire()
                return value + 100

            slow = asyncio.create_task(counter.update(ask))
            for _ in range(2):
                # Each time it loses, and the second time it has had its turn.
                await asked.acquire()
                for _ in range(5):
                    began = time.monotonic()
                    await counter.update(lambda value: value + 1)
                    assert time.monotonic() - began < 10
                answered.release()
            await asked.acquire()
            answered.release()
            await slow
            assert await counter.get() == 110

    asyncio.run(run())


# -- opening ---------------------------------------------------------------------------------------------------------


def open_at(report: Report, database: Path, moment: float, name: str) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set(name, name)
        report(sorted(memory.app_state.keys()))


def test_sixteen_processes_open_the_same_new_file_at_once(tmp_path: Path, start: Start, soak: bool) -> None:
    names = [f"p{number:02}" for number in range(16)]
    for attempt in range(50 if soak else 4):
        database = tmp_path / f"new{attempt}.db"
        moment = time.monotonic() + 0.15
        for child in [start(open_at, database, moment, name) for name in names]:
            assert child.join()
        with AgentMemory(database, application="faults") as memory:
            assert list(memory.app_state.keys()) == names
            assert memory.check().ok


# -- a writer that holds its transaction -----------------------------------------------------------------------------


def hold_the_write_lock(report: Report, database: Path) -> None:
    report.wait()
    connection = apsw.Connection(str(database))
    # Readers wait for this one in every journal mode but WAL.
    connection.execute("BEGIN EXCLUSIVE").fetchall()
    report("holds")
    time.sleep(60)


def test_readers_do_not_wait_for_a_writer_in_another_process(database: Path, start: Start) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("small", value(1, 100))
        memory.app_state.set("large", value(2, 200_000))
    holder = start(hold_the_write_lock, database)
    with_lock: list[float] = []
    with AgentMemory(database, application="faults", timeout=1.0) as memory:
        holder.go()
        holder.report()
        for key in ("small", "large") * 50:
            began = time.perf_counter()
            assert counter_of(memory.app_state.get(key))
            with_lock.append(time.perf_counter() - began)
        assert list(memory.app_state.keys()) == ["large", "small"]
    assert statistics.median(with_lock) < 0.02
    assert max(with_lock) < 0.5, "a reader waited"


def test_a_writer_that_cannot_get_its_turn_says_so_by_its_deadline(database: Path, start: Start) -> None:
    holder = start(hold_the_write_lock, database)
    with AgentMemory(database, application="faults", timeout=1.5) as memory:
        memory.app_state.set("k", 1)
        holder.go()
        holder.report()
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            memory.app_state.set("k", 2)
        assert time.monotonic() - began < 4
        assert memory.app_state.get("k") == 1
        holder.kill()
        memory.app_state.set("k", 3)
        assert memory.app_state.get("k") == 3


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the locks of a process")
def test_reading_does_not_give_up_the_lock_that_keeps_the_log_from_being_deleted(database: Path) -> None:
    # POSIX drops every lock that a process has on a file when it closes any descriptor of it.
    def locks() -> int:
        inode = f":{database.stat().st_ino} "
        return sum(
            inode in line and f" {os.getpid()} " in line for line in Path("/proc/locks").read_text().splitlines()
        )

    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        assert locks()
        assert memory.app_state.get("k") == 1
        assert locks(), "a new reader closed a descriptor of the database"
        with AgentMemory(database, application="faults") as second:
            assert second.app_state.get("k") == 1
        assert locks(), "a second client closed a descriptor of the database"


def test_a_store_opens_while_another_process_holds_the_write_lock(database: Path, start: Start) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
    holder = start(hold_the_write_lock, database)
    holder.go()
    holder.report()
    began = time.monotonic()
    with AgentMemory(database, application="faults") as memory:
        assert memory.app_state.get("k") == 1
    assert time.monotonic() - began < 1, "opening waited for the writer"


def test_a_short_deadline_ends_a_write_that_has_to_wait(tmp_path: Path) -> None:
    database = tmp_path / "memory.db"
    with AgentMemory(database, application="faults", timeout=0.2) as memory:
        memory.app_state.set("key", 1)
        other = apsw.Connection(str(database))
        other.execute("BEGIN IMMEDIATE").fetchall()
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            memory.app_state.set("key", 2)
        took = time.monotonic() - began
        other.execute("ROLLBACK").fetchall()
        other.close()

        assert 0.1 < took < 0.8
        memory.app_state.set("key", 3)


def test_many_tasks_that_wait_for_their_turn_end_by_their_deadline(tmp_path: Path) -> None:
    database = tmp_path / "memory.db"

    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults", timeout=1.0) as memory:
            await memory.app_state.set("key", 1)
            other = apsw.Connection(str(database))
            other.execute("BEGIN IMMEDIATE").fetchall()
            began = time.monotonic()
            writes = [asyncio.create_task(memory.app_state.set(f"k{number}", 1)) for number in range(30)]
            await asyncio.sleep(0.1)
            assert await memory.app_state.get_many(["key", "other"]) == {"key": 1}
            assert time.monotonic() - began < 0.5, "a read waited for the writes"
            results = await asyncio.gather(*writes, return_exceptions=True)
            took = time.monotonic() - began
            other.execute("ROLLBACK").fetchall()
            other.close()

            assert all(isinstance(result, UnavailableError) for result in results)
            assert took < 1.8
            await memory.app_state.set("key", 3)

    asyncio.run(run())


def test_small_writes_do_not_wait_for_an_uploaded_value_to_be_read(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults") as memory:
            blobs = memory._client.transport().service.blobs
            digest = blobs.digest
            reading, go_on = threading.Event(), threading.Event()

            def slow(*args: object) -> object:
                reading.set()
                go_on.wait(10)
                return digest(*args)

            monkeypatch.setattr(blobs, "digest", slow)
            large = asyncio.create_task(memory.app_state.set("large", value(1, 200_000)))
            await asyncio.to_thread(reading.wait)
            for number in range(5):
                await memory.app_state.set("small", number)
            assert not large.done(), "the small ones waited for it"
            go_on.set()
            await large

    asyncio.run(run())


def test_the_writes_of_an_event_loop_take_turns_in_the_order_they_came(database: Path) -> None:
    async def run() -> list[int]:
        async with AsyncAgentMemory(database, application="faults") as memory:
            entries = await asyncio.gather(*(memory.app_state.set("key", number) for number in range(100)))
            return [entry.version for entry in entries]

    assert asyncio.run(run()) == list(range(1, 101))


def test_whoever_updates_one_key_at_once_gets_a_turn(database: Path) -> None:
    """A writer that paused, and then wrote what it had read before, lost again and again to those that did not."""
    turns = [0] * 6

    async def run() -> None:
        async with AsyncAgentMemory(database, application="faults") as memory:
            counter = memory.app_state.key("counter", int)
            await counter.set(0)
            stop = time.monotonic() + 2

            async def count(number: int) -> None:
                while time.monotonic() < stop:
                    await counter.update(lambda value: value + 1)
                    turns[number] += 1

            await asyncio.gather(*map(count, range(len(turns))))
            assert await counter.get() == sum(turns)

    asyncio.run(run())
    assert min(turns) >= 10, turns


def keep_updating(report: Report, address: str, seconds: float) -> None:
    with AgentMemory(address, application="faults") as memory:
        count = memory.app_state.key("count", int)
        report("ready")
        report.wait()
        updates, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            count.update(lambda value: value + 1, default=0)
            updates += 1
        report(updates)


def test_of_processes_that_update_one_key_all_the_time_none_keeps_the_others_out(address: str, start: Start) -> None:
    children = [start(keep_updating, address, 4.0) for _ in range(6)]
    for child in children:
        child.report()
    for child in children:
        child.go()
    updates = sorted(child.report()[0] for child in children)
    for child in children:
        child.join(timeout=10)
    # Those that get less than others, together; one may be unlucky for a while.
    assert sum(updates[:3]) >= 0.05 * sum(updates), updates


def hold_the_lock(report: Report, path: str, seconds: float) -> None:
    """Keep other writers out, except for a millisecond every twenty."""
    with closing(apsw.Connection(path)) as connection:
        connection.set_busy_timeout(10_000)
        report("ready")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(0.02)
            connection.execute("ROLLBACK")
            time.sleep(0.001)


def test_a_writer_gets_in_between_those_of_another_process(database: Path, start: Start) -> None:
    """SQLite's own pauses of up to 100 ms miss nearly every gap."""
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 0)
        child = start(hold_the_lock, str(database), 10.0)
        child.report()
        waits: list[float] = []
        for number in range(15):
            time.sleep(0.005 * (number % 5))
            began = time.monotonic()
            memory.app_state.set("k", number)
            waits.append(time.monotonic() - began)
        child.kill()
    assert sum(waits) < 1.5, waits


def test_times_to_live_that_are_restarted_at_once_share_a_transaction(database: Path) -> None:
    scope, moment = Scope("default", "faults"), [1]
    keys = [f"k{number}" for number in range(5)]
    with closing(SqliteCatalog(database, clock=lambda: moment[0])) as catalog:
        for key in keys:
            catalog.write(CommitWrite(scope, key, uuid7(), b"{}", None, sha256="0" * 64, ttl_seconds=100))
        commits: list[int] = []
        catalog._writing.connection.set_wal_hook(lambda *commit: commits.append(commit[-1]) or 0)
        moment[0] = 50_000_000
        with ThreadPoolExecutor(len(keys)) as pool:
            with catalog._writing.lock:
                readers = [pool.submit(catalog.touch, scope, [key]) for key in keys]
                while len(catalog._touches._group.places) < len(keys):
                    time.sleep(0.001)
            for reader in readers:
                reader.result(10)
        assert {catalog.read(scope, key).entry.expires_us for key in keys} == {150_000_000}
    assert len(commits) == 1


def test_readers_that_restart_times_to_live_wait_no_longer_than_a_writer_would(database: Path) -> None:
    scope = Scope("default", "faults")
    with closing(SqliteCatalog(database, busy_seconds=0.1)) as catalog, ThreadPoolExecutor(4) as pool:
        catalog.write(CommitWrite(scope, "k", uuid7(), b"{}", None, sha256="0" * 64, ttl_seconds=100))
        began = time.monotonic()
        with catalog._writing.lock:
            readers = [pool.submit(catalog.touch, scope, ["k"]) for _ in range(4)]
            errors = [reader.exception(10) for reader in readers]
        assert [type(error) for error in errors] == [UnavailableError] * 4
        assert time.monotonic() - began < 1
        catalog.touch(scope, ["k"])


def test_times_to_live_are_restarted_again_after_one_that_a_signal_kept_from_it(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    scope = Scope("default", "faults")
    with closing(SqliteCatalog(database, busy_seconds=0.1)) as catalog:
        catalog.write(CommitWrite(scope, "k", uuid7(), b"{}", None, sha256="0" * 64, ttl_seconds=100))
        with monkeypatch.context() as patch:
            patch.setattr(catalog._touches, "_carry_out", interrupted)
            with pytest.raises(KeyboardInterrupt):
                catalog.touch(scope, ["k"])
        with pytest.raises(UnavailableError):
            catalog.touch(scope, ["k"])
        catalog.touch(scope, ["k"])


# -- the write-ahead log ---------------------------------------------------------------------------------------------


def read_all_the_time(path: Path, stop: threading.Event) -> None:
    """Have two readers take turns so that one of them is always in the middle of a read."""
    first, second = apsw.Connection(str(path)), apsw.Connection(str(path))
    first.execute("BEGIN").execute("SELECT count(*) FROM entry").fetchall()
    while not stop.wait(0.01):
        second.execute("BEGIN").execute("SELECT count(*) FROM entry").fetchall()
        first.execute("COMMIT")
        first, second = second, first
    first.close()
    second.close()


def fill(catalog: SqliteCatalog, megabytes: int) -> list[float]:
    """Write so much over the same keys, and return how many seconds each write took."""
    took: list[float] = []
    for number in range(megabytes * 20):
        began = time.monotonic()
        catalog.write(CommitWrite(Scope("default", "app"), f"k{number % 5}", uuid7(), value(number, 50_000), None))
        took.append(time.monotonic() - began)
    return took


def fill_in_batches(catalog: SqliteCatalog, megabytes: int) -> None:
    for batch in range(megabytes // 5):
        scope = Scope("default", "app")
        writes = [CommitWrite(scope, f"k{n}", uuid7(), value(batch + n, 50_000), None) for n in range(100)]
        catalog.apply(writes, lambda *_: b"")


def log_megabytes(path: Path) -> float:
    return Path(f"{path}-wal").stat().st_size / 1e6


@pytest.mark.parametrize("write", [fill, fill_in_batches])
@pytest.mark.parametrize("linked", [False, True])
def test_readers_that_overlap_all_the_time_do_not_make_the_log_grow(
    database: Path, linked: bool, write: Callable[[SqliteCatalog, int], object]
) -> None:
    path = database
    if linked:
        path = database.with_name("link.db")
        path.symlink_to(database)
        SqliteCatalog(database).close()
    with closing(SqliteCatalog(path, durable=False)) as catalog:
        stop = threading.Event()
        reader = threading.Thread(target=read_all_the_time, args=(database, stop))
        reader.start()
        try:
            write(catalog, 50)
            assert log_megabytes(database) < 30
        finally:
            stop.set()
            reader.join()


def test_a_reader_that_stays_holds_writers_up_a_few_times_only(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    waiting = sqlite_checkpoints.waiting
    monkeypatch.setattr(sqlite_checkpoints, "waiting", lambda seconds: allowed.append(seconds) or waiting(seconds))
    with closing(SqliteCatalog(database, durable=False, busy_seconds=0.3)) as catalog:
        reader = apsw.Connection(str(database))
        reader.execute("BEGIN").execute("SELECT count(*) FROM entry").fetchall()
        waited = [seconds for seconds in fill(catalog, 50) if seconds >= 0.1]
        # Every process that writes has to find it out for itself, and holds up all of them meanwhile.
        assert [round(seconds, 1) for seconds in allowed if seconds < 0.3] == [0.1, 0.2], "at 16 and 32 MiB"
        assert len(waited) >= 2
        long = log_megabytes(database)
        reader.close()
        fill(catalog, 10)
        assert log_megabytes(database) < long + 1, "it begins anew when the reader has left"
