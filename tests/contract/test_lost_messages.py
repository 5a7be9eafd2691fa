"""For each phase of the protocol: the request is lost, or the reply. What is stored is the old value or the new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentMemory, UnavailableError
from agent_memory.drivers import Transport
from agent_memory.messages import Batch, CommitWrite, Delete, GetRange, List, PrepareRead, PrepareWrite, PutChunk, Scope
from agent_memory.operations import Delete as DeleteKey
from agent_memory.operations import Get, Set
from agent_memory.transports.local import LocalTransport
from tests.support.faults import Lossy, put_between
from tests.support.models import Counter

OLD = b"old" * 70_000
NEW = b"new" * 90_000

WHEN = pytest.mark.parametrize("when", ["request", "reply"])
FOR_EVER = None


def lossy(memory: Any, kind: type, when: Any, times: int | None = 1) -> Lossy:
    def make(inner: Transport) -> Lossy:
        return Lossy(inner, kind, when, times)

    return put_between(memory, make)


@WHEN
@pytest.mark.parametrize("kind", [PrepareWrite, PutChunk, CommitWrite])
def test_a_large_write_survives_one_loss_and_makes_one_version(store: Any, kind: type, when: str) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD)
    transport = lossy(memory, kind, when)
    entry = memory.app_state.set("key", NEW)

    assert transport.lost == 1
    assert entry.version == 2
    assert store.open().app_state.snapshot("key") == (NEW, entry)


@WHEN
def test_a_small_write_survives_one_loss_and_makes_one_version(store: Any, when: str) -> None:
    memory = store.open()
    lossy(memory, CommitWrite, when)
    entry = memory.app_state.set("key", "new")

    assert entry.version == 1
    assert store.open().app_state.snapshot("key") == ("new", entry)


@WHEN
def test_a_deletion_survives_one_loss_and_makes_one_version(store: Any, when: str) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD)
    lossy(memory, Delete, when)

    assert memory.app_state.delete("key").version == 2
    assert store.open().app_state.set("key", 1).version == 3


@WHEN
@pytest.mark.parametrize("kind", [PrepareRead, GetRange])
def test_a_read_survives_one_loss(store: Any, kind: type, when: str) -> None:
    memory = store.open(chunk_size=65_536)
    memory.app_state.set("key", OLD)
    transport = lossy(memory, kind, when)

    assert memory.app_state.get("key") == OLD
    assert transport.lost == 1


@WHEN
def test_a_listing_survives_one_loss(store: Any, when: str) -> None:
    memory = store.open()
    memory.app_state.set("key", 1)
    lossy(memory, List, when)

    assert list(memory.app_state.keys()) == ["key"]


@WHEN
def test_a_batch_survives_one_loss_and_happens_once(store: Any, when: str) -> None:
    memory = store.open()
    memory.app_state.set("gone", 1)
    lossy(memory, Batch, when)
    written, deleted = memory.app_state.batch([Set("key", "new"), DeleteKey("gone")])

    assert (written.version, deleted.version) == (1, 2)
    assert store.open().app_state.get_many(["key", "gone"]) == {"key": "new"}


@WHEN
def test_a_batch_with_vectors_survives_one_loss_and_happens_once(store: Any, when: str) -> None:
    memory = store.open()
    lossy(memory, Batch, when)
    entries = memory.app_state.batch([Set(key, {"n": 1}, vectors=[[1.0, 0.0]]) for key in ("one", "two")])

    assert [entry.version for entry in entries] == [1, 1]
    assert [hit.score for hit in memory.app_state.search(vector=[1.0, 0.0])] == [1.0, 1.0]


def test_a_batch_whose_reads_fail_behind_its_writes_happens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "memory.db", application="test") as memory:
        transport = memory._client.transport()
        assert isinstance(transport, LocalTransport)
        touch, failures = transport.service.catalog.touch, [UnavailableError("busy")]

        def fail_first(scope: Scope, keys: Sequence[str]) -> None:
            if failures:
                raise failures.pop()
            touch(scope, keys)

        memory.app_state.set("session", 1, ttl=60)
        monkeypatch.setattr(transport.service.catalog, "touch", fail_first)
        read, written = memory.app_state.batch([Get("session", refresh_ttl=True), Set("key", 1)])

    assert (failures, read.value, written.version) == ([], 1, 1)


@WHEN
def test_a_creation_survives_one_loss_without_meeting_itself(store: Any, when: str) -> None:
    memory = store.open()
    lossy(memory, CommitWrite, when)

    assert memory.app_state.key("key", Counter).create(Counter()).version == 1


@WHEN
def test_a_replacement_survives_one_loss_without_meeting_itself(store: Any, when: str) -> None:
    memory = store.open()
    counter = memory.app_state.key("key", Counter)
    counter.set(Counter())
    lossy(memory, CommitWrite, when)

    assert counter.replace(Counter(count=1), expected=counter.snapshot()).version == 2


@WHEN
@pytest.mark.parametrize("kind", [PrepareRead, CommitWrite])
def test_an_update_survives_one_loss_and_counts_once(store: Any, kind: type, when: str) -> None:
    memory = store.open()
    lossy(memory, kind, when)
    snapshot = memory.app_state.key("key", Counter).update(lambda value: Counter(count=value.count + 1))

    assert (snapshot.value, snapshot.version) == (Counter(count=1), 1)
    assert store.open().app_state.get("key") == {"count": 1}


@WHEN
def test_an_addition_survives_one_loss_and_is_there_once(store: Any, when: str) -> None:
    memory = store.open()
    items = memory.entity("user", "1").collection(Counter)
    lossy(memory, CommitWrite, when)
    item_id = items.add(Counter(count=1))

    assert [(found.id, found.version) for found in items.list()] == [(item_id, 1)]


@WHEN
def test_several_losses_in_a_row_are_survived(store: Any, when: str) -> None:
    memory = store.open(chunk_size=65_536)
    for kind in (PrepareWrite, PutChunk, CommitWrite):
        lossy(memory, kind, when, times=2)

    assert memory.app_state.set("key", NEW).version == 1
    assert store.open().app_state.get("key") == NEW


@pytest.mark.parametrize("kind", [PrepareWrite, PutChunk, CommitWrite])
def test_a_write_whose_requests_are_all_lost_leaves_the_old_value(store: Any, kind: type) -> None:
    memory = store.open()
    old = memory.app_state.set("key", OLD)
    lossy(memory, kind, "request", FOR_EVER)
    with pytest.raises(UnavailableError):
        memory.app_state.set("key", NEW)

    assert store.open().app_state.snapshot("key") == (OLD, old)


@pytest.mark.parametrize(("kind", "expected"), [(PrepareWrite, OLD), (PutChunk, OLD), (CommitWrite, NEW)])
def test_a_write_whose_replies_are_all_lost_happens_once_or_not_at_all(store: Any, kind: type, expected: bytes) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD)
    lossy(memory, kind, "reply", FOR_EVER)
    with pytest.raises(UnavailableError):
        memory.app_state.set("key", NEW)

    snapshot = store.open().app_state.snapshot("key")
    assert (snapshot.value, snapshot.version) == (expected, 1 if expected == OLD else 2)


@pytest.mark.parametrize(("when", "expected"), [("request", OLD), ("reply", None)])
def test_a_deletion_that_is_lost_for_good_happens_once_or_not_at_all(
    store: Any, when: str, expected: bytes | None
) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD)
    lossy(memory, Delete, when, FOR_EVER)
    with pytest.raises(UnavailableError):
        memory.app_state.delete("key")

    assert store.open().app_state.get("key") == expected


@pytest.mark.parametrize(("when", "expected"), [("request", {"b": 1}), ("reply", {"a": 2})])
def test_a_batch_that_is_lost_for_good_happens_whole_or_not_at_all(store: Any, when: str, expected: Any) -> None:
    memory = store.open()
    memory.app_state.set("b", 1)
    lossy(memory, Batch, when, FOR_EVER)
    with pytest.raises(UnavailableError):
        memory.app_state.batch([Set("a", 2), DeleteKey("b")])

    assert store.open().app_state.get_many(["a", "b"]) == expected


@WHEN
@pytest.mark.parametrize("kind", [PrepareRead, GetRange])
def test_a_read_that_is_lost_for_good_is_an_error_and_not_absence(store: Any, kind: type, when: str) -> None:
    memory = store.open()
    memory.app_state.set("key", OLD)
    lossy(memory, kind, when, FOR_EVER)

    with pytest.raises(UnavailableError):
        memory.app_state.get("key", default="absent")


@pytest.mark.parametrize("kind", [PrepareRead, CommitWrite])
def test_losses_are_repeated_until_the_calls_time_is_over(store: Any, kind: type) -> None:
    memory = store.open(timeout=0.3)
    transport = lossy(memory, kind, "request", 10**9)
    with pytest.raises(UnavailableError):
        memory.app_state.key("key", Counter).update(count=1)

    assert transport.lost > 1


@pytest.mark.parametrize("kind", [List, Batch])
def test_a_listing_that_is_lost_for_good_is_an_error_and_not_emptiness(store: Any, kind: type) -> None:
    memory = store.open()
    memory.app_state.set("key", 1)
    lossy(memory, kind, "reply", FOR_EVER)

    with pytest.raises(UnavailableError):
        list(memory.app_state.keys()) if kind is List else memory.app_state.get_many(["key"])
