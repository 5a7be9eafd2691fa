"""G5: what was acknowledged survives ``kill -9`` of the process that wrote it, and of the server; nothing is torn."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_memory import AgentMemory, UnavailableError
from agent_memory.ids import uuid7
from agent_memory.maintenance import blob_folder
from agent_memory.service import StateService
from agent_memory.storage import blobs
from agent_memory.storage.sqlite import catalog as sqlite
from tests.faults.processes import Child, Report, counter_of, value
from tests.support.api import wait_for

LARGE = 200 * 1024
SIZES = (LARGE, 300, 40_000)
"""A file, one page of the database, and many of them."""

Start = Callable[..., Child]


def write_on(report: Report, database: Path, name: str, first: int) -> None:
    """Write small and large values without end; report each when it is acknowledged."""
    report("started")
    with AgentMemory(database, application="faults") as memory:
        for counter in itertools.count(first):
            key = f"{name}{counter % 5}"
            memory.app_state.set(key, value(counter, SIZES[counter % 3]))
            report(key, counter)


def acknowledged(reports: list[tuple[Any, ...]]) -> dict[str, int]:
    return {report[0]: report[1] for report in reports if len(report) == 2}


def seconds_to_open(database: Path) -> float:
    began = time.monotonic()
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.get("none")
        return time.monotonic() - began


def check_store(database: Path, known: dict[str, int]) -> int:
    """Open the store at once, find every acknowledged write or a later one, whole; return the highest counter."""
    with ThreadPoolExecutor(1) as beside:
        control = beside.submit(seconds_to_open, database.with_name(f"{uuid7()}.db"))
        took = seconds_to_open(database)
    # A disk that keeps others waiting keeps a new store waiting as well.
    assert took < 1 + control.result(), "the store was slow to open after a kill"
    with AgentMemory(database, application="faults") as memory:
        highest = 0
        for key in list(memory.app_state.keys()):
            highest = max(highest, counter_of(memory.app_state.get(key)))
        for key, counter in known.items():
            data = memory.app_state.get(key)
            assert data is not None, f"{key} is lost"
            assert counter_of(data) >= counter, f"{key} was acknowledged with {counter}"
        report = memory.check()
        assert report.ok, report.problems
    return highest


def test_no_acknowledged_write_is_lost_when_writers_are_killed(database: Path, start: Start, soak: bool) -> None:
    dice = random.Random(20)
    known: dict[str, int] = {}
    first, kills = 1, 0
    rounds = 1_000 if soak else 60
    for number in range(rounds):
        # Two at once: the one that lives on recovers what the other left.
        writers = [start(write_on, database, name, first) for name in "ab"]
        for writer in writers:
            if number % 2:
                # From the first acknowledgement on; else from the start, opening included.
                writer.report(), known.update(acknowledged([writer.report()]))
            time.sleep(dice.uniform(0.001, 0.030))
            known.update(acknowledged(writer.kill()))
            kills += 1
        highest = check_store(database, known)
        first = max(highest, *known.values(), first) + 1
    assert kills == 2 * rounds
    assert len(known) == 10


def test_a_process_that_lives_on_is_not_harmed_when_another_is_killed(database: Path, start: Start) -> None:
    dice = random.Random(21)
    survivor = start(write_on, database, "survivor", 1)
    known: dict[str, int] = {}
    for number in range(20):
        victim = start(write_on, database, "victim", 1 + number * 100_000)
        victim.report()
        time.sleep(dice.uniform(0.001, 0.030))
        known.update(acknowledged(victim.kill()))
        known.update(acknowledged(survivor.reported()))
    assert len(survivor.report()) == 2, "the survivor goes on writing"
    known.update(acknowledged(survivor.kill()))
    check_store(database, known)


def test_what_a_killed_writer_left_behind_goes_with_the_next_sweep(database: Path, start: Start) -> None:
    dice = random.Random(22)
    for number in range(20):
        writer = start(write_on, database, "k", 1 + number * 100_000)
        writer.report(), writer.report()
        time.sleep(dice.uniform(0.001, 0.020))
        writer.kill()
    catalog = sqlite.SqliteCatalog(database, clock=lambda: sqlite.system_clock() + 2 * 86_400 * 1_000_000)
    service = StateService(catalog, blobs.FileBlobs(blob_folder(database)))
    try:
        service.sweep()
        live = {stored.blob_id for stored in catalog.values() if stored.blob_id}
        left = {found.blob_id for found in service.blobs.objects()}
        assert left == live
    finally:
        service.close()


# -- a server --------------------------------------------------------------------------------------------------------


def test_no_write_that_a_server_acknowledged_is_lost_when_it_is_killed(
    database: Path, start_server: Callable[[Path], Any], soak: bool
) -> None:
    dice = random.Random(23)
    known: dict[str, int] = {}
    first = 1
    for _ in range(400 if soak else 30):
        server = start_server(database)
        stop = threading.Event()
        threads = [
            threading.Thread(target=write_to_server, args=(server.url, name, first, known, stop)) for name in "ab"
        ]
        before = dict(known)
        for thread in threads:
            thread.start()
        wait_for(lambda before=before: known != before)
        time.sleep(dice.uniform(0, 0.06))
        server.process.kill()
        stop.set()
        for thread in threads:
            thread.join()
        first = max(check_store(database, known), first, *known.values()) + 1
    assert {key[0] for key in known} == {"a", "b"}


def write_to_server(url: str, name: str, first: int, known: dict[str, int], stop: threading.Event) -> None:
    with AgentMemory(url, application="faults", timeout=0.3) as memory:
        for counter in itertools.count(first):
            key = f"{name}{counter % 5}"
            if stop.is_set():
                return
            try:
                memory.app_state.set(key, value(counter, SIZES[counter % 3]))
            except UnavailableError:
                continue
            known[key] = counter


# -- power loss ------------------------------------------------------------------------------------------------------


def test_every_commit_reaches_the_disk_before_it_is_acknowledged(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", 1)
        open_ones = [one for one in apsw.connections() if one.filename == str(database)]
        assert open_ones
        for connection in open_ones:
            assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
            assert connection.execute("PRAGMA synchronous").fetchall() == [(2,)], "FULL: a commit syncs the log"


def test_a_large_value_and_its_name_are_on_the_disk_before_the_commit(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_link = os.fsync, os.link

    def sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"sync {'folder' if path.is_dir() else 'file'}")
        real_sync(descriptor)

    def link(*args: Any, **options: Any) -> None:
        real_link(*args, **options)
        events.append("link")

    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("k", value(0, LARGE))
        catalog = memory._client.transport().service.catalog
        real_write = catalog.write

        def write(*args: Any, **options: Any) -> Any:
            events.append("commit")
            return real_write(*args, **options)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(catalog, "write", write)
        # Enough of them for a folder that is there and one that is not.
        for counter in range(3):
            memory.app_state.set("k", value(counter, LARGE))
        monkeypatch.undo()
    commits = [number for number, event in enumerate(events) if event == "commit"]
    assert len(commits) == 3
    begin = 0
    for commit in commits:
        steps = events[begin:commit]
        assert Counter(steps)["link"] == 1
        at = steps.index("link")
        assert "sync file" in steps[:at], "the bytes come before the name"
        assert "sync folder" in steps[at:], "the name comes before the commit"
        begin = commit + 1
