"""G5 without power: a crash at any moment, of which only what was synced is sure to be left."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from agent_memory import AgentMemory
from agent_memory.maintenance import signing_key_file
from agent_memory.operations import Set
from agent_memory.storage.blobs import FileBlobs
from tests.support.models import Counter
from tests.support.power import Crash, Disk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is synced is named by /proc")

KEYS: Final = ("small", "page", "large", "chunks", "pickle", "count")
SIZES: Final = {"page": 50_000, "large": 100_000, "chunks": 200_000}


def value_of(key: str, number: int) -> Any:
    """Return a value that says which one it is, from its beginning to its end."""
    if key == "pickle":
        return number, "what JSON has no form for is pickled"
    if key not in SIZES:
        return {"count": number}
    size = SIZES[key] + number % 7
    return (b"%08d" % number * (size // 8 + 1))[:size]


class Work:
    """Writes, updates and deletes, and remembers what every key held, None where it was deleted."""

    def __init__(self, disk: Disk) -> None:
        self.history: dict[str, list[Any]] = {key: [None] for key in KEYS}
        self._disk = disk
        self._chance = random.Random(1)
        self._number = 0

    def go_on(self, memory: AgentMemory, rounds: int) -> None:
        for _ in range(rounds):
            self._number += 1
            one = self._chance.choice([*KEYS, "batch"])
            keys = ["small", "page"] if one == "batch" else [one]
            values = {key: value_of(key, self._number) for key in keys}
            if one not in ("batch", "count") and self._chance.random() < 0.1:
                values = {one: None}
            for key, value in values.items():
                self.history[key].append(value)
                self._disk.add("begun", self._disk.folder / key)
            self._change(memory, one, values)
            for key in values:
                self._disk.add("acknowledged", self._disk.folder / key)

    def _change(self, memory: AgentMemory, one: str, values: dict[str, Any]) -> None:
        if one == "count":
            memory.app_state.key("count", Counter).update(count=self._number)
        elif one == "batch":
            memory.app_state.batch([Set(key, value) for key, value in values.items()])
        elif values[one] is None:
            memory.app_state.delete(one)
        else:
            memory.app_state.set(one, values[one])


def opened(folder: Path, name: str = "store.db") -> AgentMemory:
    return AgentMemory(folder / name, application="test", chunk_size=65_536)


def wrong_in(memory: AgentMemory) -> list[Any]:
    """Return what the store says is wrong with itself, but for bytes that nobody needs any more."""
    return [problem for problem in memory.check().problems if problem.kind not in ("unused", "orphan")]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory, if there is one: what lasts is only reckoned here, and a real disk is slow to sync."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture
def disk(place: Path) -> Disk:
    (place / "disk").mkdir()
    return Disk(place / "disk")


def test_no_acknowledged_write_is_lost_with_the_power(disk: Disk, place: Path, soak: bool) -> None:
    work = Work(disk)
    with disk.recording():
        for _ in range(3):
            with opened(disk.folder) as memory:
                work.go_on(memory, 400 if soak else 120)
    chance, crash, crashes = random.Random(2), Crash(), 0
    often = (400 if soak else 120) / len(disk.events)
    begun, acknowledged = dict.fromkeys(KEYS, 0), dict.fromkeys(KEYS, 0)
    for event in disk.events:
        if event.what == "begun":
            begun[event.path] += 1
        elif event.what == "acknowledged":
            acknowledged[event.path] = begun[event.path]
        else:
            crash.replay(event)
        if not any(acknowledged.values()) or chance.random() > often:
            continue
        crashes += 1
        folder = place / f"crash {crashes}"
        folder.mkdir()
        crash.leave(folder, chance)
        with opened(folder) as memory:
            for key, values in work.history.items():
                assert memory.app_state.get(key) in values[acknowledged[key] : begun[key] + 1], key
            assert wrong_in(memory) == []
            memory.app_state.set("small", value_of("small", 0))
        shutil.rmtree(folder)
    assert crashes > 50


def test_an_upload_that_is_repeated_lasts_though_the_first_was_cut_short(disk: Disk) -> None:
    blobs = FileBlobs(disk.folder / "blobs")
    blobs.put("0" * 32, 0, memoryview(b"bytes"))
    with disk.recording():
        blobs.put("0" * 32, 0, memoryview(b"bytes"))
    assert "sync folder" in [event.what for event in disk.events]


def test_an_upload_lasts_though_who_made_its_folder_was_killed(disk: Disk) -> None:
    (disk.folder / "blobs" / "00").mkdir(parents=True)
    blobs = FileBlobs(disk.folder / "blobs")
    with disk.recording():
        blobs.put("0" * 32, 0, memoryview(b"bytes"))
    assert {event.path for event in disk.events if event.what == "sync folder"} == {".", "blobs", "blobs/00"}
    seen = len(disk.events)
    with disk.recording():
        blobs.put("0" * 32, 1, memoryview(b"bytes"))
    synced = [event.path for event in disk.events[seen:] if event.what == "sync folder"]
    assert synced == ["blobs/00"], "once is enough"


def test_the_key_of_a_pickle_lasts_though_who_made_it_was_killed(disk: Disk) -> None:
    signing_key_file(disk.folder / "store.db").write_text("ab" * 32)
    with opened(disk.folder) as memory:
        memory.app_state.set("before", 0)
        with disk.recording():
            memory.app_state.set("pickle", value_of("pickle", 1))
        assert "sync folder" in [event.what for event in disk.events]
        seen = len(disk.events)
        with disk.recording():
            memory.app_state.set("pickle", value_of("pickle", 2))
        assert "sync folder" not in [event.what for event in disk.events[seen:]], "once is enough"


def test_a_backup_that_is_done_is_not_lost_with_the_power(disk: Disk, place: Path) -> None:
    work = Work(disk)
    with opened(disk.folder) as memory:
        work.go_on(memory, 60)
        with disk.recording():
            memory.backup(disk.folder / "backup.db")
    crash = Crash()
    for event in disk.events:
        if event.what not in ("begun", "acknowledged"):
            crash.replay(event)
    for seed in range(10):
        folder = place / f"crash {seed}"
        folder.mkdir()
        crash.leave(folder, random.Random(seed))
        with opened(folder, "backup.db") as memory:
            assert {key: memory.app_state.get(key) for key in KEYS} == {key: work.history[key][-1] for key in KEYS}
            assert wrong_in(memory) == []
