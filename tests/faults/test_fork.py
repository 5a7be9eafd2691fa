"""The sync API after ``fork``: the child opens anew, the parent's connections are unharmed, nothing is lost."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentMemory, opening
from agent_memory.client import Config, Opened
from agent_memory.storage.sqlite import connections as sqlite_connections
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from tests.faults.processes import Child, Report, counter_of, value

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

Start = Callable[..., Child]


@pytest.fixture(params=["file", "memory://"])
def memory(request: pytest.FixtureRequest, database: Path) -> Any:
    address = str(database) if request.param == "file" else request.param
    with AgentMemory(address, application="faults", timeout=5) as memory:
        yield memory


def read_and_write(report: Report, memory: AgentMemory, name: str) -> None:
    """Use a client that was made before the fork."""
    seen = memory.app_state.get("parent")
    memory.app_state.set(name, seen)
    memory.app_state.set(f"{name} large", value(1, 200_000))
    report(seen)


def test_a_forked_child_reads_and_writes_what_its_parent_does(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)
    assert start(read_and_write, memory, "child").join() == [(1,)]
    assert memory.app_state.get("child") == 1
    assert counter_of(memory.app_state.get("child large")) == 1
    memory.app_state.set("parent", 2)
    assert start(read_and_write, memory, "child").join() == [(2,)]
    assert memory.app_state.get("child") == 2
    assert memory.check().ok


def close(report: Report, memory: AgentMemory) -> None:
    memory.close()
    report("closed")


def test_a_child_that_closes_the_memory_closes_its_own(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)
    assert start(close, memory).join() == [("closed",)]
    assert memory.app_state.get("parent") == 1
    memory.app_state.set("parent", 2)
    assert memory.app_state.get("parent") == 2


def use_at_once_and_close(report: Report, memory: AgentMemory) -> None:
    # What earlier tests left to the garbage collector is not to be closed in between.
    gc.collect()
    before, client = len(os.listdir("/dev/fd")), memory._client

    def slow(config: Config) -> Opened:
        time.sleep(0.1)
        return opening.open_config(config)

    client.config = client.config._replace(open=slow)
    threads = [threading.Thread(target=memory.app_state.get, args=("parent",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory.close()
    report(len(os.listdir("/dev/fd")) - before)


def test_threads_of_a_child_that_begin_at_once_open_the_memory_once(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)
    assert start(use_at_once_and_close, memory).join() == [(0,)], "what else was opened is never closed"


def use_and_close(report: Report, memory: AgentMemory) -> None:
    with memory:
        report(memory.app_state.get("parent"))


def test_a_child_does_not_remove_its_parents_volatile_store(start: Start) -> None:
    with AgentMemory("memory://", application="faults") as memory:
        memory.app_state.set("parent", 1)
        memory.app_state.set("large", value(1, 200_000))
        assert start(use_and_close, memory).join() == [(1,)]
        assert memory.app_state.get("parent") == 1
        assert counter_of(memory.app_state.get("large")) == 1


def increment(memory: AgentMemory, times: int) -> None:
    for _ in range(times):
        memory.app_state.key("count", int).update(lambda count: count + 1, default=0)


def test_children_of_multiprocessing_share_the_memory_they_inherit(memory: AgentMemory) -> None:
    memory.app_state.set("count", 0)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=increment, args=(memory, 20)) for _ in range(4)]
    for child in children:
        child.start()
    increment(memory, 20)
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert memory.app_state.get("count") == 100


def test_a_child_waits_for_no_turn_of_its_parents_threads(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("count", 0)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with memory.app_state._client.turns._lock:
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(5)
    try:
        children = [start(increment_in_turn, memory) for _ in range(3)]
        assert [child.join() for child in children] == [[("done",)]] * 3
    finally:
        leave.set()
        holder.join()
    assert memory.app_state.get("count") == 60


def increment_in_turn(report: Report, memory: AgentMemory) -> None:
    increment(memory, 20)
    report("done")


def write_after_the_parent_closed(report: Report, memory: AgentMemory) -> None:
    memory.app_state.set("first", 1)
    report("opened")
    report.wait()
    memory.app_state.set("second", 2)
    report("acknowledged")


def test_what_a_child_writes_survives_when_its_parent_closes(database: Path, start: Start) -> None:
    memory = AgentMemory(database, application="faults")
    memory.app_state.set("k", 1)
    child = start(write_after_the_parent_closed, memory)
    child.report()
    memory.close()
    child.go()
    assert child.join() == [("acknowledged",)]
    with AgentMemory(database, application="faults") as again:
        assert again.app_state.get("second") == 2, "an acknowledged write is lost"


def test_children_that_are_forked_while_other_threads_use_the_store_can_use_it(
    memory: AgentMemory, start: Start, soak: bool
) -> None:
    memory.app_state.set("parent", 1)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        counter = 0
        try:
            while not stop.is_set():
                counter += 1
                memory.app_state.set(f"t{number}", value(counter, 100_000 if counter % 5 == 0 else 300))
                assert counter_of(memory.app_state.get(f"t{number}")) == counter
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1_000 if soak else 40):
            assert start(read_and_write, memory, f"child{number}").join(timeout=10) == [(1,)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert memory.check().ok


def test_a_child_that_is_forked_in_the_middle_of_a_write_can_write(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)
    catalog = memory._client.transport().service.catalog
    writing, finish = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        writing.set()
        finish.wait(1)

    thread = threading.Thread(target=catalog._writing.transaction, args=[hold])
    thread.start()
    assert writing.wait(5)
    child = start(read_and_write, memory, "child")
    finish.set()
    thread.join()
    assert child.join(timeout=10) == [(1,)]
    assert memory.app_state.get("child") == 1


def test_a_child_of_a_child_works_too(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)

    def nested(report: Report) -> None:
        memory.app_state.set("child", 1)
        pid = os.fork()
        if pid == 0:
            try:
                memory.app_state.set("grandchild", memory.app_state.get("child"))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        report(memory.app_state.get("grandchild"))

    assert start(nested).join(timeout=10) == [(1,)]
    assert memory.app_state.get("grandchild") == 1


def test_a_fork_is_not_slow_while_the_store_is_idle(memory: AgentMemory, start: Start) -> None:
    memory.app_state.set("parent", 1)
    began = time.monotonic()
    start(lambda report: report("here")).join()
    assert time.monotonic() - began < 1


def test_an_error_of_a_closed_store_that_is_kept_holds_no_fork_up(database: Path, start: Start) -> None:
    kept: list[Exception] = []
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("key", 1)
        catalog = memory._client.transport().service.catalog
        try:
            with catalog._connections.reading() as connection:
                connection.execute("SELECT * FROM nowhere")
        except Exception as error:
            kept.append(error)
    began = time.monotonic()
    start(lambda report: report("lives")).join()
    assert time.monotonic() - began < 5
    assert kept


def test_threads_that_fork_at_once_leave_no_lock_behind(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> None:
        sqlite_connections._before_fork()
        sqlite_connections._after_fork(child=False)

    monkeypatch.setattr(sqlite_connections, "_FORK_SECONDS", 0.05)
    catalog = SqliteCatalog(database)
    sqlite_connections._before_fork()
    other = threading.Thread(target=fork)
    other.start()
    other.join(0.2)
    sqlite_connections._after_fork(child=False)
    other.join(5)
    assert catalog._writing.lock.acquire(timeout=1)
    catalog._writing.lock.release()
    catalog.close()


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_a_fork_waits_for_a_call_leaves_the_parent_a_store_that_works(
    memory: AgentMemory, start: Start, what: str
) -> None:
    memory.app_state.set("parent", 1)
    catalog = memory._client.transport().service.catalog
    inside, finish = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        inside.set()
        finish.wait(10)

    def read() -> None:
        with catalog._connections.reading() as connection:
            hold(connection)

    thread = threading.Thread(target=read if what == "read" else lambda: catalog._writing.transaction(hold))
    thread.start()
    assert inside.wait(5)
    main = threading.main_thread().ident
    assert main is not None
    timers = [threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]), threading.Timer(0.5, finish.set)]
    for timer in timers:
        timer.start()
    child = start(read_and_write, memory, "child")
    for each in (thread, *timers):
        each.join()
    assert child.join(timeout=10) == [(1,)]
    memory.app_state.set("parent", 2)
    assert memory.app_state.get("child") == 1


def test_ctrl_c_right_after_a_fork_leaves_no_lock_behind(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = SqliteCatalog(database)
    sqlite_connections._before_fork()

    def interrupt(_: Any, *, child: bool) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_connections.Connections, "after_fork", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sqlite_connections._after_fork(child=False)
    sqlite_connections._after_fork(child=False)
    assert catalog._writing.lock.acquire(timeout=1)
    catalog._writing.lock.release()
    catalog.close()
