"""What PostgreSQL itself can get wrong: concurrent writers, lost servers, migrations, collations, JSONB, sweeps."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from agent_memory import AgentMemory
from agent_memory.cli import main
from agent_memory.errors import (
    AgentMemoryError,
    ConflictError,
    IntegrityError,
    InvalidRequestError,
    PermissionDeniedError,
    TimedOutError,
    UnavailableError,
)
from agent_memory.ids import uuid7
from agent_memory.messages import JSON, CommitWrite, Delete, Entry, List, ListParents, PrepareRead, Scope, Search
from agent_memory.operations import Set
from agent_memory.storage.catalog import DEAD, GARBAGE, LIVE, STAGED, BlobRow, Row
from agent_memory.storage.postgres import batch as postgres_batch
from agent_memory.storage.postgres import vector_index as postgres_vector_index
from agent_memory.storage.postgres.apply import apply as apply_in
from agent_memory.storage.postgres.batch import Context
from agent_memory.storage.postgres.catalog import PostgresCatalog
from agent_memory.storage.postgres.connections import Session
from agent_memory.storage.postgres.copy import analyze
from agent_memory.storage.postgres.migrations import migrate
from agent_memory.storage.postgres.vector_index import create_index, drop_index
from agent_memory.vectors import pack_vector
from tests.support.api import wait_for
from tests.support.models import Counter
from tests.support.postgres import PostgresServer, name_of
from tests.support.server import ServerProcess, child_environment

SCOPE = Scope("default", "app")
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def shared(server: PostgresServer) -> Iterator[PostgresCatalog]:
    """One database for tests that keep to a scope of their own."""
    catalog = PostgresCatalog(server.database())
    yield catalog
    catalog.close()


@pytest.fixture
def scope() -> Scope:
    return Scope("default", f"t{uuid7()}")


@pytest.fixture
def address(server: PostgresServer) -> Iterator[str]:
    """A database of the test's own."""
    address = server.database()
    yield address
    server.drop(address)


@pytest.fixture
def catalog(address: str) -> Iterator[PostgresCatalog]:
    catalog = PostgresCatalog(address)
    yield catalog
    catalog.close()


def commit(scope: Scope, key: str, value: Any = None, **options: Any) -> CommitWrite:
    data = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
    given = {"content_type": JSON, "sha256": hashlib.sha256(data).hexdigest(), **options}
    return CommitWrite(scope, key, given.pop("write_id", uuid7()), data, None, **given)


def apply(catalog: PostgresCatalog, *operations: Any) -> list[Any]:
    return catalog.apply(operations, lambda _, size: b'{"large": true}'[:size])


def put(catalog: PostgresCatalog, scope: Scope, key: str, value: Any = None, **options: Any) -> Entry:
    return apply(catalog, commit(scope, key, value, **options))[0]


def found(catalog: PostgresCatalog, scope: Scope, filter: Any = None, **options: Any) -> list[str]:
    return [row.entry.key for row, _ in apply(catalog, Search(scope, "", filter, **options))[0]]


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """Call functions on a thread each, started together; return their results, or the errors they raised."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return function()
        except AgentMemoryError as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


# -- concurrent writers ----------------------------------------------------------------------------------------------


def test_no_increment_of_eight_threads_is_lost(address: str, tmp_path: Path) -> None:
    with AgentMemory(address, application="app", blobs=tmp_path / "blobs") as memory:

        def count() -> None:
            document = memory.entity("user", "1").document(Counter)
            for _ in range(25):
                document.update(lambda counter: setattr(counter, "count", counter.count + 1), default=Counter())

        assert at_once(*[count] * 8) == [None] * 8
        snapshot = memory.entity("user", "1").document(Counter).snapshot()
    assert snapshot is not None
    assert (snapshot.value.count, snapshot.version) == (200, 200)


def test_of_eight_that_replace_one_version_one_succeeds(shared: PostgresCatalog, scope: Scope) -> None:
    first = put(shared, scope, "k")
    for _ in range(10):
        results = at_once(*[lambda etag=first.etag: put(shared, scope, "k", if_match=etag)] * 8)
        entries = [result for result in results if isinstance(result, Entry)]
        errors = [result for result in results if isinstance(result, ConflictError)]
        assert (len(entries), len(errors)) == (1, 7)
        assert all(error.found.entry.etag == entries[0].etag for error in errors)
        assert entries[0].version == first.version + 1
        first = entries[0]


def test_of_eight_that_create_a_key_one_succeeds(shared: PostgresCatalog, scope: Scope) -> None:
    for number in range(10):
        key = f"k{number}"
        results = at_once(*[lambda key=key: put(shared, scope, key, if_none_match=True)] * 8)
        assert sorted(type(result) for result in results if isinstance(result, Entry)) == [Entry]
        assert [result.version for result in results if isinstance(result, Entry)] == [1]


def test_unconditional_writers_of_a_new_key_get_versions_without_gaps(shared: PostgresCatalog, scope: Scope) -> None:
    entries = at_once(*[lambda: put(shared, scope, "k")] * 8)
    assert sorted(entry.version for entry in entries) == list(range(1, 9))


def test_a_write_that_is_sent_eight_times_at_once_is_carried_out_once(shared: PostgresCatalog, scope: Scope) -> None:
    for number in range(10):
        write = commit(scope, f"k{number}")
        results = at_once(*[lambda write=write: apply(shared, write)[0]] * 8)
        assert len(set(results)) == 1
        assert results[0].version == 1


def test_a_delete_that_is_sent_eight_times_at_once_is_carried_out_once(shared: PostgresCatalog, scope: Scope) -> None:
    put(shared, scope, "k")
    delete = Delete(scope, "k", uuid7())
    results = at_once(*[lambda: apply(shared, delete)[0]] * 8)
    assert {entry.version for entry in results} == {2}


def test_a_batch_that_is_sent_eight_times_at_once_is_carried_out_once(shared: PostgresCatalog, scope: Scope) -> None:
    operations = [commit(scope, f"k{n}") for n in range(5)] + [Delete(scope, "none", uuid7())]
    results = at_once(*[lambda: apply(shared, *operations)] * 8)
    assert all(result == results[0] for result in results)
    assert [entry and entry.version for entry in results[0]] == [1, 1, 1, 1, 1, None]


@pytest.mark.parametrize("there", [True, False])
def test_batches_that_write_the_same_keys_in_opposite_orders_all_succeed(
    shared: PostgresCatalog, scope: Scope, there: bool
) -> None:
    keys = [f"k{n}" for n in range(20)]
    if there:
        apply(shared, *[commit(scope, key) for key in keys])

    def batch(order: list[str]) -> None:
        for _ in range(5):
            writes = [commit(scope, key) for key in order]
            # A second kind of write makes a transaction of two statements.
            apply(shared, *writes[:-1], Delete(scope, order[-1], uuid7()))

    count = 3 if there else 1
    assert at_once(*[lambda: batch(keys), lambda: batch(keys[::-1])] * count) == [None, None] * count


def test_a_batch_with_one_failed_condition_changes_nothing(shared: PostgresCatalog, scope: Scope) -> None:
    put(shared, scope, "there", {"a": 1})
    for operations in (
        [commit(scope, f"k{n}", if_none_match=True) for n in range(3)] + [commit(scope, "there", if_none_match=True)],
        [commit(scope, "k0"), commit(scope, "there", if_match="1-0"), Delete(scope, "there", uuid7())],
    ):
        with pytest.raises(ConflictError) as caught:
            apply(shared, *operations)
        assert caught.value.found.entry.key == "there"
        assert [row.entry.key for row in shared.list(List(scope, ""))] == ["there"]


@pytest.mark.parametrize("kind", ["put", "swap", "delete"])
def test_a_batch_planned_for_empty_tables_reads_no_more_rows_than_it_writes(
    catalog: PostgresCatalog, address: str, kind: str
) -> None:
    def write(keys: list[str]) -> None:
        entries = apply(catalog, *[commit(SCOPE, key) for key in keys])
        if kind == "swap":
            apply(catalog, *[commit(SCOPE, entry.key, if_match=entry.etag) for entry in entries])
        if kind == "delete":
            apply(catalog, *[Delete(SCOPE, key, uuid7()) for key in keys])

    def rows_read() -> int:
        # The only session: its plans are kept, and it counts when it is told to.
        catalog._rows("SELECT pg_stat_force_next_flush()")  # pyright: ignore[reportPrivateUsage]
        catalog.ping()
        with psycopg.connect(address) as connection:
            row = connection.execute("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes").fetchone()
            assert row is not None
            return int(row[0])

    for start in range(0, 3_000, 100):
        write([f"k{n:04}" for n in range(start, start + 100)])
    before = rows_read()
    write([f"k{n:04}" for n in range(100)])
    assert rows_read() - before < 2_000


def test_operations_of_a_batch_on_one_key_are_carried_out_in_order(shared: PostgresCatalog, scope: Scope) -> None:
    first, read, gone, absent, again, page, hits = apply(
        shared,
        commit(scope, "k", {"a": 1}),
        PrepareRead(scope, "k"),
        Delete(scope, "k", uuid7()),
        PrepareRead(scope, "k"),
        commit(scope, "k", {"a": 2}, if_none_match=True),
        List(scope, ""),
        Search(scope, "", {"a": 2}),
    )
    assert (first.version, read.entry.version, gone.version, absent, again.version) == (1, 1, 2, None, 3)
    assert [row.entry.version for row in page] == [row.entry.version for row, _ in hits] == [3]


def test_a_write_id_is_used_for_one_write_only(shared: PostgresCatalog, scope: Scope) -> None:
    write = commit(scope, "k", {"a": 1})
    apply(shared, write)
    for other in (write._replace(key="j"), commit(scope, "k", {"a": 2}, write_id=write.write_id)):
        with pytest.raises(ConflictError) as caught:
            apply(shared, other)
        assert caught.value.code == "write_id_reused"
    assert apply(shared, write, write) == [apply(shared, write)[0]] * 2


# -- versions --------------------------------------------------------------------------------------------------------


def test_no_version_comes_back_while_tombstones_are_swept(catalog: PostgresCatalog) -> None:
    seen: list[int] = []
    stop = time.monotonic() + 2

    def write() -> None:
        while time.monotonic() < stop:
            for key in ("a", "b"):
                entry = put(catalog, SCOPE, key)
                gone = apply(catalog, Delete(SCOPE, key, uuid7()))[0]
                if key == "a":
                    seen.extend([entry.version, gone.version])

    def sweep() -> None:
        while time.monotonic() < stop:
            catalog.drop_tombstones(before=catalog.clock() + DAY_US, limit=10)

    assert at_once(write, sweep, sweep) == [None] * 3
    assert seen == sorted(set(seen))


def test_an_expired_row_is_absent_but_keeps_its_version(shared: PostgresCatalog, scope: Scope) -> None:
    first = put(shared, scope, "k", ttl_seconds=0.001)
    time.sleep(0.01)
    assert shared.read(scope, "k") is None
    with pytest.raises(ConflictError) as caught:
        put(shared, scope, "k", if_match=first.etag)
    assert caught.value.found is None
    assert apply(shared, Delete(scope, "k", uuid7())) == [None]
    again = put(shared, scope, "k", if_none_match=True)
    assert again.version == 2
    assert again.created_us > first.created_us


def test_a_time_to_live_is_kept_refreshed_and_ended(shared: PostgresCatalog, scope: Scope) -> None:
    first = put(shared, scope, "k", ttl_seconds=1_000)
    kept = put(shared, scope, "k", keep_ttl=True)
    swapped = put(shared, scope, "k", keep_ttl=True, if_match=kept.etag)
    assert first.expires_us == kept.expires_us == swapped.expires_us
    shared.touch(scope, ["k", "absent"])
    row = shared.read(scope, "k")
    assert row is not None
    assert row.entry.expires_us is not None
    assert first.expires_us is not None
    assert row.entry.expires_us > first.expires_us
    assert put(shared, scope, "k").expires_us is None


# -- large values ----------------------------------------------------------------------------------------------------


def staged(catalog: PostgresCatalog, key: str = "k") -> CommitWrite:
    from agent_memory.storage.blobs import blob_of

    blob = BlobRow(uuid7(), SCOPE.path, key, 15, None, STAGED, catalog.clock())
    catalog.stage([blob])
    return CommitWrite(SCOPE, key, blob.id, None, blob_of(blob.id, 15, None), sha256="0" * 64)


def state(catalog: PostgresCatalog, write: CommitWrite) -> str | None:
    row = catalog.blob(write.blob.id if write.blob else "")
    return row and row.state


def test_a_blob_is_live_from_its_commit_to_its_replacement(catalog: PostgresCatalog) -> None:
    first, second = staged(catalog), staged(catalog)
    entry = apply(catalog, first)[0]
    assert apply(catalog, first)[0] == entry
    apply(catalog, second)
    assert (state(catalog, first), state(catalog, second)) == (GARBAGE, LIVE)
    apply(catalog, Delete(SCOPE, "k", uuid7()))
    assert state(catalog, second) == GARBAGE


@pytest.mark.parametrize(
    "older", [lambda: commit(SCOPE, "k"), lambda: Delete(SCOPE, "k", uuid7())], ids=["put", "delete"]
)
def test_a_blob_is_retired_by_an_older_write_that_had_to_wait_for_it(
    catalog: PostgresCatalog, server: PostgresServer, address: str, older: Callable[[], Any]
) -> None:
    put(catalog, SCOPE, "k")
    waits = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name_of(address)}' AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool:

        def commit_before_it(session: Session) -> tuple[CommitWrite, Future[Any]]:
            with session.connection.transaction():
                session.rows("SELECT 1 FROM agent_memory.entry WHERE key = 'k' FOR UPDATE")
                waiting = pool.submit(apply, catalog, older())
                while not server.execute(waits):
                    assert not waiting.done()
                # The waiting write has begun: what is staged now is not in its snapshot.
                write = staged(catalog)
                apply_in(session, [write], Context(None, None, lambda *_: b"", 10))
            return write, waiting

        write, waiting = catalog._pool.run(commit_before_it)
        [entry] = waiting.result()

    assert entry.version == 3
    assert state(catalog, write) == GARBAGE


def test_a_blob_that_was_swept_or_whose_condition_fails_is_not_committed(catalog: PostgresCatalog) -> None:
    refused = staged(catalog)._replace(if_match="1-0")
    with pytest.raises(ConflictError):
        apply(catalog, refused)
    assert state(catalog, refused) == STAGED
    swept = staged(catalog)
    assert len(catalog.claim_blobs(staged_before=catalog.clock() + 1, garbage_before=0, limit=10)) == 2
    for others in ([], [commit(SCOPE, "other")]):
        with pytest.raises(ConflictError) as caught:
            apply(catalog, swept, *others)
        assert caught.value.code == "blob_gone"
    assert (state(catalog, swept), catalog.read(SCOPE, "k")) == (DEAD, None)


@pytest.mark.parametrize("elsewhere", [{"key": "other"}, {"scope": SCOPE._replace(request_id="r")}])
def test_a_blob_is_committed_only_to_the_key_that_it_was_staged_for(
    catalog: PostgresCatalog, elsewhere: dict[str, Any]
) -> None:
    write = staged(catalog)
    with pytest.raises(ConflictError) as caught:
        apply(catalog, write._replace(**elsewhere))
    assert (caught.value.code, state(catalog, write)) == ("blob_gone", STAGED)


def test_large_and_small_values_are_committed_in_one_batch(catalog: PostgresCatalog) -> None:
    large = [staged(catalog, f"large{n}") for n in range(60)]
    small = [commit(SCOPE, f"small{n}", b"x" * 60_000) for n in range(60)]
    assert {entry.version for entry in apply(catalog, *large, *small)} == {1}
    assert {state(catalog, write) for write in large} == {LIVE}


def test_a_blob_is_either_committed_or_swept(catalog: PostgresCatalog) -> None:
    for number in range(20):
        write = staged(catalog, f"k{number}")
        results = at_once(
            lambda write=write: apply(catalog, write)[0],
            lambda: catalog.claim_blobs(staged_before=catalog.clock() + DAY_US, garbage_before=0, limit=1),
        )
        committed = isinstance(results[0], Entry)
        assert state(catalog, write) == (LIVE if committed else DEAD)
        assert (catalog.read(SCOPE, f"k{number}") is not None) == committed


# -- sweeping --------------------------------------------------------------------------------------------------------


def test_two_sweeps_at_once_share_the_work(catalog: PostgresCatalog) -> None:
    request = Scope("default", "app", "r")
    for number in range(50):
        put(catalog, SCOPE, f"expired{number}", ttl_seconds=0.001)
        put(catalog, request, f"k{number}")
        staged(catalog, f"s{number}")
    time.sleep(0.01)
    later = catalog.clock() + DAY_US
    assert sum(at_once(*[lambda: catalog.expire(limit=1_000)] * 2)) == 50
    claimed = at_once(*[lambda: catalog.claim_blobs(staged_before=later, garbage_before=later, limit=1_000)] * 2)
    assert sum(map(len, claimed)) == 50
    assert sum(at_once(*[lambda: catalog.drop_receipts(before=later, limit=1_000)] * 2)) == 100
    assert sum(at_once(*[lambda: catalog.drop_tombstones(before=later, limit=1_000)] * 2)) == 50
    assert sum(at_once(*[lambda: catalog.drop_requests(before=later, limit=1_000)] * 2)) == 51
    assert list(catalog.values()) == []


def test_a_sweep_does_not_wait_for_what_others_have_locked(catalog: PostgresCatalog, address: str) -> None:
    put(catalog, SCOPE, "expired", ttl_seconds=0.001)
    put(catalog, SCOPE, "deleted")
    apply(catalog, Delete(SCOPE, "deleted", uuid7()))
    put(catalog, Scope("default", "app", "r"), "k")
    staged(catalog)
    time.sleep(0.01)
    later = catalog.clock() + DAY_US
    steps: list[Callable[[], Any]] = [
        lambda: len(catalog.claim_blobs(staged_before=later, garbage_before=later, limit=10)),
        lambda: catalog.drop_tombstones(before=later, limit=10),
        lambda: catalog.expire(limit=10),
        lambda: catalog.drop_receipts(before=later, limit=10),
        lambda: catalog.drop_requests(before=later, limit=10),
    ]
    with psycopg.connect(address) as other:
        for table in ("blob", "entry", "receipt", "scope"):
            other.execute(f"SELECT 1 FROM agent_memory.{table} FOR UPDATE")
        assert [step() for step in steps] == [0] * 5
    assert [step() for step in steps] == [1, 1, 1, 4, 2]

    put(catalog, Scope("default", "app", "r"), "k")
    with psycopg.connect(address) as other:
        # As a writer does that goes on to say when it wrote, and would wait for the sweep.
        other.execute("SELECT 1 FROM agent_memory.entry FOR UPDATE")
        assert steps[-1]() == 1


def test_a_sweep_of_a_request_and_its_writers_do_not_wait_for_each_other_forever(catalog: PostgresCatalog) -> None:
    request = Scope("default", "app", "r")
    stop = time.monotonic() + 1

    def write() -> None:
        while time.monotonic() < stop:
            apply(catalog, *[commit(request, f"k{n}") for n in range(5)])

    def sweep() -> None:
        while time.monotonic() < stop:
            catalog.drop_requests(before=catalog.clock() + DAY_US, limit=3)

    assert at_once(write, write, sweep, sweep) == [None] * 4


# -- keys ------------------------------------------------------------------------------------------------------------


def test_keys_are_compared_and_sorted_byte_by_byte(shared: PostgresCatalog, scope: Scope) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    keys = ["a", "B", "Z", "z", "a b", "ab", composed, decomposed, "\U0001f600", "￿", "k/%2F", "k_", "k\\", "~"]
    for key in keys:
        put(shared, scope, key)
    expected = sorted(keys, key=str.encode)
    assert [row.entry.key for row in shared.list(List(scope, ""))] == expected
    assert [row.entry.key for row in shared.list(List(scope, "", reverse=True))] == expected[::-1]
    half = expected[5]
    assert [row.entry.key for row in shared.list(List(scope, "", cursor=half))] == expected[6:]
    assert [row.entry.key for row in shared.list(List(scope, "", cursor=half, reverse=True))] == expected[4::-1]


def test_segments_and_parents_are_found_page_by_page(shared: PostgresCatalog, scope: Scope) -> None:
    names = ["a", "a-x", "a.y", "b%2Fc", "é", "\U0001f600"]
    for name in names:
        for item in range(3):
            put(shared, scope, f"user/{name}/item/{item}")
    put(shared, scope, "user/no-segment")
    expected = [name.removesuffix("/") for name in sorted((f"{name}/" for name in names), key=str.encode)]
    segments: list[str] = []
    while page := shared.list_segments(scope, "user/", after=segments[-1] if segments else None, limit=2):
        segments += page
    assert segments == expected
    parents: list[str] = []
    while page := apply(shared, ListParents(scope, "user/", parents[-1] if parents else None, 3))[0]:
        parents += page
    assert parents == sorted(["user/", *[f"user/{name}/item/" for name in names]], key=str.encode)


def test_a_page_ends_before_its_values_are_too_many_bytes(shared: PostgresCatalog, scope: Scope) -> None:
    apply(shared, *[commit(scope, f"k{n:03}", b"x" * 60_000, content_type="text/plain") for n in range(150)])
    assert len(shared.list(List(scope, "", limit=1_000, max_inline_size=65_536))) == 8 * 1024 * 1024 // 60_000
    assert len(shared.list(List(scope, "", limit=1_000))) == 150


# -- search ----------------------------------------------------------------------------------------------------------


def test_json_that_jsonb_cannot_hold_is_stored_and_found(shared: PostgresCatalog, scope: Scope) -> None:
    values = {
        "nul": b'{"a": 1, "s": "x\\u0000y"}',
        "surrogate": b'{"a": 1, "s": "\\ud800"}',
        "huge": b'{"a": 1, "n": 1e200000}',
        "pair": b'{"a": 1, "s": "\\ud83d\\ude00"}',
        "plain": b'{"a": 1, "s": "x"}',
        "broken": b'{"a": 1',
    }
    apply(shared, *[commit(scope, key, data) for key, data in values.items()])
    for key, data in values.items():
        row = shared.read(scope, key)
        assert row is not None
        assert row.data == data
    # What no reader of JSON takes is never found.
    assert set(found(shared, scope, {"a": 1})) == {"nul", "huge", "pair", "plain"}
    assert found(shared, scope, {"s": "x\0y"}) == ["nul"]
    assert found(shared, scope, {"s": "\U0001f600"}) == ["pair"]
    assert found(shared, scope, {"s\0": 1}) == []


@pytest.mark.parametrize(
    ("stored", "filter", "holds"),
    [
        ('{"n": 0.1000000000000000055}', {"n": 0.1}, True),
        ('{"n": 1.00}', {"n": 1}, True),
        ('{"n": 1e2}', {"n": {"$gte": 100}}, True),
        ('{"n": 9007199254740993}', {"n": {"$gt": 9007199254740992.0}}, True),
        ('{"n": 9007199254740993}', {"n": 9007199254740993}, True),
        ('{"n": 5}', {"n": {"$gt": 5}}, False),
        ('{"n": 5}', {"n": "5"}, False),
        ('{"n": true}', {"n": 1}, False),
        ('{"n": "5"}', {"n": {"$lt": 6}}, False),
        ('{"n": "b"}', {"n": {"$gt": "Z"}}, True),
        ('{"n": "\U0001f600"}', {"n": {"$gt": "￿"}}, True),
        ('{"n": null}', {"n": None}, True),
        ("{}", {"n": {"$ne": 1}}, False),
        ('{"a": {"b": 1}}', {"a.b": 1}, True),
        ('{"a.b": 1}', {"a.b": 1}, True),
        ('{"a": [{"b": 1}]}', {"a.0.b": 1}, False),
        ('{"a": {"b": "x", "c": 1.50}}', {"a": {"b": "x", "c": 1.5}}, True),
        ('{"a": {"b": "x"}}', {"a": {"b": "y"}}, False),
        ('{"a": [1, 2]}', {"a": [1, 2]}, True),
        ('{"a": [1, 2]}', {"a": [2, 1]}, False),
        ('{"a": [1, 2, 3]}', {"a": [1, 2]}, False),
        ('{"a": "x"}', {"a": {"$in": ["y", "x"]}}, True),
        ('{"a": "x"}', {"a": {"$in": []}}, False),
        ('{"a": "x", "b": 2}', {"$or": [{"a": "y"}, {"b": {"$lte": 2}}]}, True),
        ('{"a": "x", "b": 2}', {"$and": [{"a": "x"}, {"b": {"$lt": 2}}]}, False),
        ('{"a": "x"}', {"$or": []}, False),
        ('{"a\'\\"%(b)s": "%s"}', {"a'\"%(b)s": "%s"}, True),
    ],
)
def test_a_filter_means_what_it_means_everywhere(
    shared: PostgresCatalog, scope: Scope, stored: str, filter: Any, holds: bool
) -> None:
    put(shared, scope, "k%s", stored.encode())
    assert found(shared, scope, filter) == (["k%s"] if holds else [])


def test_a_search_goes_on_until_it_has_what_was_asked_for(shared: PostgresCatalog, scope: Scope) -> None:
    # No projection: only a look at the values tells which are meant.
    apply(shared, *[commit(scope, f"k{n:03}", {"n": n, "s": "\0"}) for n in range(300)])
    assert found(shared, scope, {"n": {"$gte": 290}}) == [f"k{n}" for n in range(290, 300)]
    assert found(shared, scope, {"n": {"$gte": 290}}, offset=8) == ["k298", "k299"]
    put(shared, scope, "k005", {"n": 500})
    assert found(shared, scope, limit=2) == ["k005", "k000"]


def test_a_search_that_skips_many_keeps_no_values_of_those(
    shared: PostgresCatalog, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(shared, *[commit(scope, f"k{n:04}", {"n": n}) for n in range(1_500)])
    most = 0
    rows = Session.rows

    def counted(self: Session, *arguments: Any, **options: Any) -> list[Any]:
        nonlocal most
        found = rows(self, *arguments, **options)
        most = max(most, len(found))
        return found

    monkeypatch.setattr(Session, "rows", counted)
    assert len(found(shared, scope, {"n": {"$gte": 0}}, limit=10, offset=1_400)) == 10
    assert most <= 1_000


def test_a_search_looks_into_large_values(catalog: PostgresCatalog) -> None:
    write = staged(catalog, "large")
    apply(catalog, write._replace(content_type=JSON))
    assert found(catalog, SCOPE, {"large": True}) == found(catalog, SCOPE) == ["large"]


# -- a server that hangs ---------------------------------------------------------------------------------------------


def test_a_server_that_hangs_is_waited_for_no_longer_than_a_statement_may_take(
    server: PostgresServer, address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    catalog = PostgresCatalog(address, statement_seconds=0.5)
    put(catalog, SCOPE, "k")
    # Connected before, as a pool is, so that the system answers for a process that does not.
    frozen = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        for call in (
            # On the connection that is there, in a pipeline and a transaction; then on new ones.
            lambda: apply(catalog, commit(SCOPE, "k"), Delete(SCOPE, "l", uuid7()), PrepareRead(SCOPE, "k")),
            lambda: catalog.read(SCOPE, "k"),
            lambda: put(catalog, SCOPE, "k"),
        ):
            began = time.monotonic()
            with pytest.raises(UnavailableError, match="PostgreSQL"):
                call()
            assert time.monotonic() - began < 3.5
    finally:
        for process in frozen:
            process.resume()
    put(catalog, SCOPE, "k")
    assert catalog.read(SCOPE, "k") is not None
    catalog.close()
    assert capfd.readouterr().err == ""


def test_reads_in_one_transaction_that_are_not_answered_are_not_sent_again(address: str) -> None:
    with closing(PostgresCatalog(address, statement_seconds=0.5)) as catalog:
        ((backend,),) = catalog._pool.run(lambda session: session.rows("SELECT pg_backend_pid()"))
        process = psutil.Process(backend)
        process.suspend()
        try:
            with pytest.raises(UnavailableError, match="does not answer"):
                apply(catalog, PrepareRead(SCOPE, "k"), List(SCOPE, ""))
        finally:
            process.resume()
        assert apply(catalog, PrepareRead(SCOPE, "k"), List(SCOPE, "")) == [None, []]


def test_where_no_host_takes_writes_and_one_answers_it_is_called_a_standby(
    server: PostgresServer, address: str
) -> None:
    server.execute(f"ALTER DATABASE {name_of(address)} SET default_transaction_read_only = on")
    hosts = address.replace("?host=", "?target_session_attrs=read-write&host=127.0.0.1,")
    with pytest.raises(UnavailableError, match="cannot connect: PostgreSQL takes no writes here") as caught:
        PostgresCatalog(hosts)
    assert caught.value.code == "read_only"


# -- a standby that does not confirm ---------------------------------------------------------------------------------


@pytest.fixture
def unconfirmed(server: PostgresServer) -> Iterator[Callable[[], None]]:
    """A function after which commits wait for a standby that is not there."""

    def wait_for_standby(names: str = "nobody") -> None:
        server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        server.execute("SELECT pg_reload_conf()")
        wait_for(lambda: server.execute("SHOW synchronous_standby_names") == [(names,)])

    yield wait_for_standby
    wait_for_standby("")


def end_waiting(server: PostgresServer, by: str) -> int:
    """End the sessions whose commit waits for a standby, or their waiting; return how many."""
    return len(server.execute(f"SELECT {by}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))


@pytest.mark.parametrize("by", ["pg_terminate_backend", "pg_cancel_backend"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_write_that_no_standby_has_is_not_acknowledged_when_it_is_sent_again(
    server: PostgresServer, address: str, unconfirmed: Callable[[], None], batched: bool, by: str
) -> None:
    server.execute(f"ALTER DATABASE {name_of(address)} SET client_min_messages = error")
    with closing(PostgresCatalog(address, statement_seconds=0.5)) as catalog, ThreadPoolExecutor(1) as thread:
        put(catalog, SCOPE, "k")
        unconfirmed()
        writes = [commit(SCOPE, key, [1]) for key in ("k", "l")[: 1 + batched]]
        sent = thread.submit(apply, catalog, *writes)
        # It is committed here, and sent again by the pool.
        wait_for(lambda: end_waiting(server, by))
        with pytest.raises(UnavailableError, match="does not answer"):
            sent.result()
        with pytest.raises(UnavailableError, match="does not answer"):
            apply(catalog, *writes)


# -- vectors ---------------------------------------------------------------------------------------------------------


def test_the_most_similar_come_first_and_those_without_vectors_last(shared: PostgresCatalog, scope: Scope) -> None:
    put(shared, scope, "none", {"a": 1})
    put(shared, scope, "far", {"a": 1}, vectors=(pack_vector([-1, 0.1]),))
    put(shared, scope, "near", {"a": 2}, vectors=(pack_vector([0, -1]), pack_vector([1, 0.1])))
    put(shared, scope, "zero", {"a": 1}, vectors=(pack_vector([0, 0]),))
    put(shared, scope, "longer", {"a": 1}, vectors=(pack_vector([1, 0, 0]),))
    query = pack_vector([1, 0])
    assert found(shared, scope, vector=query) == ["near", "far", "longer", "zero", "none"]
    assert found(shared, scope, vector=query, limit=3) == ["near", "far", "longer"]
    assert found(shared, scope, vector=query, limit=1, offset=1) == ["far"]
    assert found(shared, scope, {"a": 1}, vector=query, limit=2) == ["far", "longer"]
    hits = apply(shared, Search(scope, "", vector=query))[0]
    assert [score is None for _, score in hits] == [False, False, True, True, True]
    assert hits[0].score == pytest.approx(0.995, abs=1e-3)


def test_vectors_go_with_the_version_they_stand_for(catalog: PostgresCatalog) -> None:
    one = (pack_vector([1, 0]), pack_vector([0, 1]))
    put(catalog, SCOPE, "k", vectors=one)
    results = at_once(*[lambda: put(catalog, SCOPE, "k", vectors=one)] * 6, lambda: put(catalog, SCOPE, "k"))
    assert all(isinstance(result, Entry) for result in results)
    put(catalog, SCOPE, "k")
    hits = apply(catalog, Search(SCOPE, "", vector=one[0]))[0]
    assert [(row.entry.version, score) for row, score in hits] == [(9, None)]
    put(catalog, SCOPE, "k", vectors=one, ttl_seconds=0.001)
    time.sleep(0.01)
    catalog.expire(limit=10)
    put(catalog, Scope("default", "app", "r"), "k", vectors=one)
    catalog.drop_requests(before=catalog.clock() + DAY_US, limit=10)
    assert catalog._rows("SELECT count(*) FROM agent_memory.vector") == [(0,)]


@pytest.fixture(scope="module")
def many_vectors(server: PostgresServer) -> Iterator[str]:
    """A database with 10,000 vectors of three numbers, and some that no index has."""
    address = server.database()
    chance = random.Random(7)
    catalog = PostgresCatalog(address)
    for start in range(0, 10_000, 500):
        vectors = [pack_vector([chance.gauss(0, 1) for _ in range(3)]) for _ in range(500)]
        apply(catalog, *[commit(SCOPE, f"item/{start + n}", vectors=(one,)) for n, one in enumerate(vectors)])
    put(catalog, SCOPE, "zero", vectors=(pack_vector([0, 0, 0]),))
    put(catalog, SCOPE, "longer", vectors=(pack_vector([1, 0, 0, 0]),))
    catalog.close()
    server.execute("VACUUM ANALYZE", name_of(address))
    yield address
    server.drop(address)


def index_scans(server: PostgresServer, address: str) -> int:
    [[scans]] = server.execute(
        "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'vector_similar%'",
        name_of(address),
    )
    return int(scans)


def test_an_index_finds_nearly_what_is_found_without(server: PostgresServer, many_vectors: str) -> None:
    chance = random.Random(8)
    queries = [pack_vector([chance.gauss(0, 1) for _ in range(3)]) for _ in range(20)]

    def search() -> list[str]:
        catalog = PostgresCatalog(many_vectors)
        nearest = [found(catalog, SCOPE, vector=query, limit=10) for query in queries]
        catalog.close()
        return [key for keys in nearest for key in keys]

    exact = search()
    assert index_scans(server, many_vectors) == 0
    parts: list[tuple[int, int]] = []
    assert create_index(many_vectors, 3, progress=lambda done, of: parts.append((done, of)))
    assert parts == [(n, 16) for n in range(1, 17)]
    assert not create_index(many_vectors, 3)
    indexed = search()
    # A session tells what it did when it ends, which nobody waits for.
    wait_for(lambda: index_scans(server, many_vectors) == len(queries))
    assert len(set(indexed) & set(exact)) >= 0.95 * len(set(exact))

    catalog = PostgresCatalog(many_vectors)
    near = found(catalog, SCOPE, vector=queries[0], limit=2)
    settings = "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
    assert catalog._rows(settings) == [("100", "strict_order")]
    apply(catalog, Delete(SCOPE, near[0], uuid7()))
    put(catalog, SCOPE, near[1])
    assert not {*near} & {*found(catalog, SCOPE, vector=queries[0], limit=10)}
    assert len(found(catalog, SCOPE, vector=queries[0], limit=1_000)) == 1_000
    assert found(catalog, SCOPE, vector=pack_vector([1, 0, 0, 0]), limit=1) == ["longer"]
    few = [row.entry.key for row, _ in apply(catalog, Search(SCOPE, "item/123", vector=queries[0], limit=20))[0]]
    assert len(few) == 11
    catalog.close()

    assert drop_index(many_vectors, 3)
    assert not drop_index(many_vectors, 3)


def test_a_session_that_holds_more_candidates_already_keeps_them(server: PostgresServer, address: str) -> None:
    server.execute(f'ALTER DATABASE "{name_of(address)}" SET hnsw.ef_search = 200')
    catalog = PostgresCatalog(address)
    found(catalog, SCOPE, vector=pack_vector([1, 0, 0]))
    assert catalog._rows("SELECT current_setting('hnsw.ef_search')") == [("200",)]
    catalog.close()


def test_an_index_that_was_interrupted_is_gone_on_with(server: PostgresServer, address: str) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_index(address, 3, progress=interrupt)
    for statement in (
        "CREATE INDEX vector_similar_3_09 ON agent_memory.vector_09 (key)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'agent_memory.vector_similar_3_09'::regclass",
    ):
        server.execute(statement, name_of(address))
    assert create_index(address, 3)
    valid = "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname LIKE 'vector_similar_3%' "
    assert server.execute(f"{valid} AND indisvalid", name_of(address)) == [(17,)]
    assert drop_index(address, 3)
    assert server.execute(valid, name_of(address)) == [(0,)]


def test_who_makes_an_index_next_need_not_wait_for_a_connection_to_end(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [postgres_vector_index.connect(address) for _ in range(2)]
    for connection in kept:
        monkeypatch.setattr(connection, "close", lambda: None)
    monkeypatch.setattr(postgres_vector_index, "connect", lambda _: kept.pop())

    assert create_index(address, 3)
    assert drop_index(address, 3)


def test_the_command_makes_and_drops_an_index(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["index-vectors", "--database", address, "--dimensions", "3"]
    for options, said in (
        ([], "made the index of vectors with 3 numbers"),
        ([], "the index of vectors with 3 numbers is there already"),
        (["--drop"], "dropped the index of vectors with 3 numbers"),
        (["--drop"], "there is no index of vectors with 3 numbers"),
    ):
        assert main([*command, *options]) == 0
        assert capsys.readouterr().out == f"{said}\n"
    assert main([*command[:-1], "3000"]) == 2
    assert capsys.readouterr().err == "agent-memory: an index takes vectors of 1 to 2000 numbers, not 3000\n"


def test_writers_do_not_wait_behind_the_drop_of_an_index(address: str) -> None:
    create_index(address, 3)
    catalog = PostgresCatalog(address, statement_seconds=4)
    with psycopg.connect(address) as reader, ThreadPoolExecutor(1) as pool:
        # A transaction that stays open, as that of a backup does.
        reader.execute("SELECT count(*) FROM agent_memory.vector")
        dropped = pool.submit(drop_index, address, 3)
        wait_for(lambda: reader.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None)
        for _ in range(5):
            put(catalog, SCOPE, "k")
        assert not dropped.done()
        reader.rollback()
        assert dropped.result(10)
    catalog.close()


def test_an_index_is_refused_where_there_can_be_none(server: PostgresServer, address: str) -> None:
    for dimensions in (0, 2_001):
        with pytest.raises(InvalidRequestError, match="1 to 2000 numbers"):
            create_index(address, dimensions)
    with psycopg.connect(address, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock('agent_memory.vector'::regclass::bigint)")
        with pytest.raises(UnavailableError, match="another agent-memory index-vectors"):
            create_index(address, 3)
    empty = server.empty_database()
    with pytest.raises(UnavailableError, match="agent-memory migrate"):
        create_index(empty, 3)
    server.drop(empty)


@pytest.fixture
def without_vectors(server: PostgresServer) -> Iterator[str]:
    """A database as one is that was migrated before pgvector was there."""
    address = server.database()
    server.execute("DELETE FROM agent_memory.migration WHERE name LIKE '%vectors'", name_of(address))
    server.execute("DROP EXTENSION vector CASCADE", name_of(address))
    server.execute("DROP TABLE agent_memory.vector", name_of(address))
    yield address
    server.drop(address)


def test_without_pgvector_vectors_are_refused_by_name(without_vectors: str) -> None:
    address = without_vectors
    catalog = PostgresCatalog(address)
    put(catalog, SCOPE, "k")
    with pytest.raises(InvalidRequestError, match="pgvector"):
        put(catalog, SCOPE, "k", vectors=(pack_vector([1]),))
    with pytest.raises(InvalidRequestError, match="pgvector"):
        apply(catalog, Search(SCOPE, "", vector=pack_vector([1])))
    catalog.close()
    assert migrate(address, dry_run=True) == migrate(address) == ["0002_create_vectors"]


def test_a_migration_that_may_not_make_pgvector_says_what_is_missing(
    server: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = server.empty_database()
    server.execute(f"CREATE ROLE plain_owner LOGIN; ALTER DATABASE {name_of(empty)} OWNER TO plain_owner")
    address = f"postgresql://plain_owner@/{name_of(empty)}?host={psycopg.conninfo.conninfo_to_dict(empty)['host']}"
    for found in ("would take 0001_create_tables", "took 0001_create_tables", "the database is up to date"):
        main(["migrate", "--database", address, *(["--dry-run"] if found.startswith("would") else [])])
        first, second = capsys.readouterr().out.splitlines()
        assert first == found
        assert second.startswith("left out 0002_create_vectors: ")
        assert "CREATE EXTENSION vector" in second
    server.execute("CREATE EXTENSION vector", name_of(empty))
    main(["migrate", "--database", address])
    assert capsys.readouterr().out == "took 0002_create_vectors\n"
    server.drop(empty)


def works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except InvalidRequestError:
        return False
    return True


def test_a_server_finds_the_vectors_that_a_migration_makes_possible_while_it_runs(
    server: PostgresServer, without_vectors: str, tmp_path: Path
) -> None:
    with (
        ServerProcess(tmp_path, "--database", without_vectors, "--blobs", str(tmp_path / "blobs")) as process,
        AgentMemory(process.url, application="a") as memory,
    ):
        state, near = memory.app_state, [1.0, 0.0]

        def keep() -> None:
            state.batch([Set("note", {"text": "knee"}, vectors=[near])])

        assert not works(keep)
        migrate(without_vectors)
        wait_for(lambda: works(keep))
        assert state.search("note", vector=near)[0].score == 1
        state.delete("note")
    assert server.execute("SELECT key FROM agent_memory.vector", name_of(without_vectors)) == []


def test_a_user_without_rights_on_the_vectors_of_a_migration_goes_on_writing_without_them(
    server: PostgresServer, without_vectors: str
) -> None:
    database, host = name_of(without_vectors), psycopg.conninfo.conninfo_to_dict(without_vectors)["host"]
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agent_memory TO granted"
    server.execute(f"CREATE ROLE granted LOGIN; GRANT USAGE ON SCHEMA agent_memory TO granted; {grant}", database)
    migrate(without_vectors)
    catalog = PostgresCatalog(f"postgresql://granted@/{database}?host={host}")

    def keep() -> None:
        put(catalog, SCOPE, "k", vectors=(pack_vector([1]),))

    put(catalog, SCOPE, "k")
    assert not works(keep)
    server.execute(grant, database)
    wait_for(lambda: works(keep))
    catalog.close()


# -- migrations ------------------------------------------------------------------------------------------------------


def test_a_database_that_was_never_migrated_is_refused_and_not_changed(server: PostgresServer) -> None:
    address = server.empty_database()
    with pytest.raises(UnavailableError, match="agent-memory migrate --database") as caught:
        PostgresCatalog(address)
    assert caught.value.code == "schema_missing"
    assert migrate(address, dry_run=True) == ["0001_create_tables", "0002_create_vectors"]
    assert server.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'agent_memory'", name_of(address)) == [
        (0,)
    ]
    server.drop(address)


def test_who_does_not_own_the_tables_is_told_so(server: PostgresServer, address: str) -> None:
    rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agent_memory TO no_owner"
    server.execute(
        f"CREATE ROLE no_owner LOGIN; GRANT USAGE ON SCHEMA agent_memory TO no_owner; {rights}", name_of(address)
    )
    host, new = psycopg.conninfo.conninfo_to_dict(address)["host"], server.empty_database()
    with pytest.raises(PermissionDeniedError, match="run as the owner of the tables"):
        create_index(f"postgresql://no_owner@/{name_of(address)}?host={host}", 3)
    with pytest.raises(PermissionDeniedError, match="run as the owner of the tables"):
        migrate(f"postgresql://no_owner@/{name_of(new)}?host={host}")
    server.drop(new)


def test_of_eight_migrations_at_once_each_step_is_taken_by_one(server: PostgresServer) -> None:
    address = server.empty_database()
    taken = at_once(*[lambda: migrate(address)] * 8)
    assert sorted(name for names in taken for name in names) == ["0001_create_tables", "0002_create_vectors"]
    PostgresCatalog(address).close()
    server.drop(address)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_migration_that_is_cut_short_leaves_nothing_of_its_step_and_the_next_one_takes_it(
    server: PostgresServer, end: signal.Signals
) -> None:
    address = server.empty_database()
    server.execute("CREATE SCHEMA agent_memory", name_of(address))

    def tables() -> list[Any]:
        return server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'agent_memory'", name_of(address))

    def waiting() -> list[Any]:
        return server.execute(
            "SELECT query FROM pg_stat_activity WHERE application_name = 'agent-memory' AND wait_event_type = 'Lock'"
        )

    command = [sys.executable, "-m", "agent_memory.cli", "migrate", "--database", address]
    with psycopg.connect(address) as other:
        # It waits for whoever makes the last table of its first step under the same name.
        other.execute("CREATE TABLE agent_memory.secret (name text)")
        process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True)
        wait_for(lambda: bool(waiting()))
        assert "agent_memory.secret" in waiting()[0][0]
        process.send_signal(end)
        assert process.communicate(timeout=10)[0] == ""
        other.rollback()
    wait_for(lambda: tables() == [("migration",)])
    assert migrate(address) == ["0001_create_tables", "0002_create_vectors"]
    server.drop(address)


def slow_down(server: PostgresServer, address: str, command: str, name: str = "") -> None:
    """Let a command that concerns the name take half a second."""
    trigger = f"""
        CREATE FUNCTION public."{command}"() RETURNS event_trigger LANGUAGE plpgsql
            AS 'BEGIN IF current_query() LIKE ''%{name}%'' THEN PERFORM pg_sleep(0.5); END IF; END';
        CREATE EVENT TRIGGER "{command}" ON ddl_command_start WHEN TAG IN ('{command}')
            EXECUTE FUNCTION public."{command}"()"""
    server.execute(trigger, name_of(address))


def test_the_time_limit_of_a_user_ends_no_migration_and_no_making_of_an_index(server: PostgresServer) -> None:
    address = server.empty_database()
    server.execute(f"ALTER DATABASE {name_of(address)} SET statement_timeout = '300ms'")
    slow_down(server, address, "CREATE SCHEMA")
    assert migrate(address) == ["0001_create_tables", "0002_create_vectors"]
    slow_down(server, address, "CREATE INDEX", "_01")
    assert create_index(address, 3)
    slow_down(server, address, "DROP INDEX", "_01")
    assert drop_index(address, 3)
    server.drop(address)


def test_to_look_at_what_a_copy_brought_waits_for_nobody_and_fails_by_name(
    server: PostgresServer, address: str
) -> None:
    with psycopg.connect(address) as other:
        other.execute("LOCK TABLE agent_memory.blob")
        analyze(address)
    empty = server.empty_database()
    with pytest.raises(UnavailableError):
        analyze(empty)
    server.drop(empty)


def test_a_newer_schema_is_refused(server: PostgresServer, address: str) -> None:
    server.execute("INSERT INTO agent_memory.migration (name) VALUES ('9999_later')", name_of(address))
    for open_it in (lambda: PostgresCatalog(address), lambda: migrate(address), lambda: migrate(address, dry_run=True)):
        with pytest.raises(UnavailableError, match="9999_later") as caught:
            open_it()
        assert caught.value.code == "newer_schema"


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="PostgreSQL") as caught:
        PostgresCatalog("postgresql://me:hunter2@127.0.0.1:1/nowhere")
    assert caught.value.code == "unreachable"
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("user", "database", "text", "code"),
    [
        ("busy", "postgres", "has no connection left", "overloaded"),
        ("no_such_role", "postgres", "refuses the user or the password", "unreachable"),
        ("postgres", "no_such_database", "has no such database", "unreachable"),
    ],
)
def test_a_connection_that_is_refused_is_told_by_its_reason(
    server: PostgresServer, user: str, database: str, text: str, code: str
) -> None:
    if user == "busy":
        server.execute("CREATE ROLE busy LOGIN CONNECTION LIMIT 0")
    with pytest.raises(UnavailableError, match=text) as caught:
        PostgresCatalog(psycopg.conninfo.make_conninfo(server.address(database), user=user))
    assert caught.value.code == code
    assert database not in str(caught.value)


def test_a_server_without_tls_is_told_by_that() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(8)
                connection.sendall(b"N")

        threading.Thread(target=refuse, daemon=True).start()
        address = f"postgresql://me:hunter2@127.0.0.1:{listener.getsockname()[1]}/x?sslmode=require"
        with pytest.raises(UnavailableError, match="TLS") as caught:
            PostgresCatalog(address)
    assert "hunter2" not in str(caught.value)


def test_an_address_that_cannot_be_read_does_not_show_its_password() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PostgresCatalog("postgresql://me:hunter2@host:port/x?nonsense=1")
    assert "hunter2" not in str(caught.value)


def test_a_killed_connection_is_replaced_without_the_caller_seeing_it(
    server: PostgresServer, address: str, catalog: PostgresCatalog
) -> None:
    put(catalog, SCOPE, "k")
    kill = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name_of(address)}'"
    for use in (
        lambda: catalog.read(SCOPE, "k"),
        lambda: put(catalog, SCOPE, "k"),
        lambda: apply(catalog, commit(SCOPE, "a"), Delete(SCOPE, "b", uuid7())),
    ):
        # Several that are idle then: all of them are cut at once.
        catalog._pool.run(lambda _: catalog._pool.run(lambda _: catalog._pool.run(lambda one: one.rows("SELECT 1"))))
        server.execute(kill)
        assert use() is not None


def test_connections_are_kept_for_later_calls_until_they_are_idle_or_old(
    catalog: PostgresCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, now = catalog._pool, time.monotonic()
    sessions: list[Session] = []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool.run(lambda one: pool.run(lambda two: sessions.extend([one, two])))
    older, newer = reversed(sessions)
    assert not older.connection.closed
    assert not newer.connection.closed
    now += 301
    assert pool.run(lambda one: one) is newer
    assert older.connection.closed
    assert not newer.connection.closed
    now += 3_600
    pool.run(lambda _: None)
    assert newer.connection.closed


def test_a_connection_that_is_in_use_when_its_store_is_closed_is_closed_after_it(catalog: PostgresCatalog) -> None:
    def close(session: Session) -> Session:
        catalog.close()
        assert not session.connection.closed
        return session

    assert catalog._pool.run(close).connection.closed


def test_what_an_address_says_of_the_connection_goes_before_what_is_set(address: str) -> None:
    catalog = PostgresCatalog(f"{address}&application_name=mine")
    assert catalog._rows("SHOW application_name") == [("mine",)]
    catalog.close()


def test_a_database_of_another_encoding_is_refused(server: PostgresServer) -> None:
    server.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(UnavailableError, match="encoding UTF8"):
        PostgresCatalog(server.address("ascii"))


@pytest.mark.parametrize("state", ["40001", "40P01"], ids=["serialization failure", "deadlock"])
def test_what_lost_against_others_is_repeated_but_not_for_ever(shared: PostgresCatalog, state: str) -> None:
    tries = 0

    def work(session: Session, losing: int) -> list[Any]:
        nonlocal tries
        tries += 1
        if tries <= losing:
            session.rows(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
        return session.rows("SELECT 1")

    assert shared._pool.run(lambda session: work(session, 2)) == [(1,)]
    assert tries == 3
    with pytest.raises(UnavailableError, match="in order with others"):
        shared._pool.run(lambda session: work(session, 1_000))
    assert tries < 20


def test_the_deployment_page_gives_a_user_the_settings_that_a_connection_sets(catalog: PostgresCatalog) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    told = dict(re.findall(r"^ALTER ROLE memory SET (\w+) = '?(\w+)'?;$", page, re.M))
    set_here = dict(catalog._rows("SELECT name, current_setting(name) FROM pg_settings WHERE source = 'session'"))
    # PostgreSQL's own default.
    assert set_here.pop("default_transaction_isolation") == "read committed"
    assert set_here == told


def test_a_user_with_the_grants_of_the_deployment_page_serves_and_sweeps(
    server: PostgresServer, address: str, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
    server.execute("CREATE ROLE memory LOGIN")
    for grant in re.findall(r"^(?:GRANT|ALTER DEFAULT PRIVILEGES) .* TO memory;$", page, re.M):
        server.execute(grant, name_of(address))
    limited = psycopg.conninfo.conninfo_to_dict(address)
    store = f"postgresql://memory@/{limited['dbname']}?host={limited['host']}"
    with (
        ServerProcess(tmp_path, "--database", store, "--blobs", str(tmp_path / "blobs")) as process,
        AgentMemory(process.url, application="a") as memory,
    ):
        counter = memory.entity("user", "ada").document(Counter)
        counter.update(lambda old: Counter(count=old.count + 1))
        memory.app_state.batch([Set("note", {"text": "knee"}, vectors=[[1.0, 0.0]])])
        assert memory.app_state.search("note", vector=[1.0, 0.0])[0].score == 1
        memory.app_state.set("large", bytes(100_000))
        counter.delete()
    assert main(["sweep", "--database", store, "--blobs", str(tmp_path / "blobs")]) == 0


def test_when_every_connection_is_in_use_a_call_fails_in_time(address: str) -> None:
    catalog = PostgresCatalog(address, connections=1, wait_seconds=0.05)
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            catalog._pool.run(lambda _: catalog.read(SCOPE, "k"))
        assert (caught.value.code, caught.value.retry_after) == ("overloaded", 1.0)
    assert catalog.read(SCOPE, "k") is None
    catalog.close()
    with pytest.raises(UnavailableError) as caught:
        catalog.read(SCOPE, "k")
    assert caught.value.code == "closed"


def test_a_call_that_waits_for_another_ends_by_its_deadline(address: str, tmp_path: Path) -> None:
    with (
        AgentMemory(address, application="waiting", blobs=tmp_path, timeout=0.6) as memory,
        psycopg.connect(address) as other,
    ):
        memory.app_state.set("k", 1)
        other.execute("SELECT 1 FROM agent_memory.entry WHERE scope = 'default/waiting' FOR UPDATE")
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            memory.app_state.set("k", 2)
        assert time.monotonic() - began < 1.5


def test_a_write_waits_for_another_only_so_long(address: str) -> None:
    catalog = PostgresCatalog(address, statement_seconds=0.4)
    put(catalog, SCOPE, "k")
    with psycopg.connect(address) as other:
        other.execute("SELECT 1 FROM agent_memory.entry WHERE key = 'k' FOR UPDATE")
        with pytest.raises(UnavailableError, match="PostgreSQL kept this waiting"):
            put(catalog, SCOPE, "k")
        assert catalog.read(SCOPE, "k") is not None
    with pytest.raises(UnavailableError, match="PostgreSQL took too long"):
        catalog._rows("SELECT pg_sleep(2)")
    assert put(catalog, SCOPE, "k").version == 2
    catalog.close()


def test_a_search_that_takes_too_long_is_not_sent_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(session: Any, *_: Any) -> Any:
        return session.rows("SELECT pg_sleep(5)")

    monkeypatch.setattr(postgres_batch, "search", slow)
    with closing(PostgresCatalog(address, statement_seconds=0.4)) as catalog:
        for operations in ([Search(SCOPE, "")], [Search(SCOPE, ""), Delete(SCOPE, "k", uuid7())]):
            with pytest.raises(TimedOutError, match="search took too long") as caught:
                catalog.apply(operations, lambda *_: b"")
            assert caught.value.code == "search_timeout"
        assert put(catalog, SCOPE, "k").version == 1


def test_a_search_whose_large_values_take_too_long_ends(address: str) -> None:
    """What is looked into here PostgreSQL does not see."""
    loaded: list[str] = []

    def load(row: Row, _: int) -> bytes:
        loaded.append(row.entry.key)
        time.sleep(0.3)
        return b"{}"

    with closing(PostgresCatalog(address, statement_seconds=0.5)) as catalog:
        for number in range(9):
            put(catalog, SCOPE, f"k{number}", {"a": 1})
        catalog._rows("UPDATE agent_memory.entry SET value = NULL, projection = NULL, blob_id = 'b', size = 8")
        with pytest.raises(TimedOutError) as caught:
            catalog.apply([Search(SCOPE, "", {"a": 2})], load)
    assert caught.value.code == "search_timeout"
    assert len(loaded) < 9


def test_text_that_postgresql_cannot_hold_is_an_invalid_request(shared: PostgresCatalog, scope: Scope) -> None:
    for text in ("a\0b", "a\ud800b"):
        with pytest.raises(InvalidRequestError, match="NUL"):
            put(shared, scope, "k", schema_name=text)
    put(shared, scope, "k", provenance={"reason": "a\0b"})
    row = shared.read(scope, "k")
    assert row is not None
    assert row.entry.provenance == {"reason": "a\0b"}


def test_what_was_acknowledged_survives_a_server_that_crashes_under_load(tmp_path: Path) -> None:
    with PostgresServer() as server, ThreadPoolExecutor(4) as pool:
        address = server.database()
        # The test's server does without fsync; a crash of its processes loses nothing all the same.
        with AgentMemory(address, application="app", blobs=tmp_path / "blobs", timeout=30) as memory:
            stop = threading.Event()

            def write(number: int) -> int:
                counter = memory.entity("user", str(number)).document(Counter)
                count = 0
                while not stop.is_set():
                    counter.update(lambda one: setattr(one, "count", one.count + 1), default=Counter())
                    count += 1
                return count

            writers = [pool.submit(write, number) for number in range(4)]
            time.sleep(0.3)
            server.stop(kill=True)
            time.sleep(0.2)
            server.start()
            time.sleep(0.5)
            stop.set()
            counts = [writer.result(timeout=30) for writer in writers]
            for number, count in enumerate(counts):
                snapshot = memory.entity("user", str(number)).document(Counter).snapshot()
                assert snapshot is not None
                assert snapshot.value.count == snapshot.version == count


@pytest.mark.parametrize(
    "harm",
    [
        "size = -1",
        "provenance = '{'",
        "provenance = '[1]'",
        "provenance = '{\"a\": [1]}'",
        "provenance = repeat('[', 100000)",
        "updated_us = 1 << 62",
        "version = 1 << 60",
        "value = NULL",
    ],
)
def test_a_row_that_cannot_be_true_is_an_integrity_error(
    server: PostgresServer, address: str, tmp_path: Path, harm: str
) -> None:
    with AgentMemory(address, application="app", blobs=str(tmp_path)) as memory:
        memory.app_state.set("a/k", {"is": 1})
        memory.app_state.set("other", 1)
        server.execute(
            f"UPDATE agent_memory.entry SET {harm.replace('1 <<', '1::bigint <<')} WHERE key = 'a/k'", name_of(address)
        )
        for call in (lambda: memory.app_state.get("a/k"), lambda: memory.app_state.get_many(["a/k", "other"])):
            with pytest.raises(IntegrityError):
                call()
        assert ("damaged", "default/app a/k") in {(one.kind, one.place) for one in memory.check().problems}
        assert memory.app_state.get("other") == 1


def test_a_row_that_names_the_blob_of_another_key_takes_nothing_from_it(
    server: PostgresServer, address: str, tmp_path: Path
) -> None:
    with AgentMemory(address, application="app", blobs=str(tmp_path)) as memory:
        for key in ("a", "b", "c"):
            memory.app_state.set(key, key.encode() * 100_000)
        other = "(SELECT blob_id FROM agent_memory.entry WHERE key = 'c')"
        server.execute(f"UPDATE agent_memory.entry SET blob_id = {other} WHERE key <> 'c'", name_of(address))
        with pytest.raises(IntegrityError):
            memory.app_state.get("a")
        memory.app_state.set("a", 1)
        memory.app_state.delete("b")
        states = server.execute("SELECT state FROM agent_memory.blob WHERE key = 'c'", name_of(address))
        assert states == [("live",)]
        assert memory.app_state.get("c") == b"c" * 100_000
