"""G2 and the life of what nobody can reach any more: what a sweep takes away, and when."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_memory import AgentMemory, ConflictError, IntegrityError, UnavailableError
from agent_memory.ids import uuid7
from agent_memory.maintenance import blob_folder
from agent_memory.messages import (
    INLINE_LIMIT,
    JSON,
    Blob,
    Chunk,
    CommitWrite,
    Delete,
    Entry,
    Found,
    GetRange,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
)
from agent_memory.service import StateService
from agent_memory.storage.blobs import GRACE_SECONDS, FileBlobs
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from agent_memory.sweeping import DEAD_SECONDS, RECEIPT_SECONDS, REQUEST_SECONDS, TOMBSTONE_SECONDS, SweepReport
from tests.faults.processes import Child, Report, counter_of, value
from tests.support.strict_s3 import StrictS3

SCOPE = Scope("default", "app")
LARGE = 200_000


class Time:
    """A clock that goes on when it is told to, in seconds."""

    def __init__(self) -> None:
        self.us = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.us += 1
        return self.us

    def go_on(self, seconds: float) -> None:
        self.us += round(seconds * 1_000_000)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def service(tmp_path: Path, clock: Time) -> Iterator[StateService]:
    database = tmp_path / "store.db"
    service = StateService(SqliteCatalog(database, clock=clock), FileBlobs(blob_folder(database)))
    yield service
    service.close()


def put(service: StateService, key: str, data: bytes, *, scope: Scope = SCOPE, write_id: str | None = None) -> Entry:
    """Write a value in the phases that its size asks for."""
    if len(data) <= INLINE_LIMIT:
        return service.write(CommitWrite(scope, key, write_id or uuid7(), data, None))
    return service.write(uploaded(service, key, data, scope=scope))


def uploaded(service: StateService, key: str, data: bytes, *, scope: Scope = SCOPE) -> CommitWrite:
    """Prepare and upload, and return the commit that is still to come."""
    blob = service.prepare_write(PrepareWrite(scope, key, len(data)))
    service.put_chunk(PutChunk(blob.chunks[0], memoryview(data)))
    return CommitWrite(scope, key, blob.id, None, blob, sha256=hashlib.sha256(data).hexdigest())


def fetch(service: StateService, blob: Blob) -> bytes:
    data = bytearray(blob.size)
    view, start = memoryview(data), 0
    for chunk in blob.chunks:
        service.get_range(GetRange(chunk, 0, view[start : start + chunk.size]))
        start += chunk.size
    return bytes(data)


def get(service: StateService, key: str, *, scope: Scope = SCOPE) -> Found | None:
    return service.prepare_read(PrepareRead(scope, key, INLINE_LIMIT))


def files(service: StateService) -> set[str]:
    return {found.blob_id for found in service.blobs.objects()}


# -- writes that were never committed --------------------------------------------------------------------------------


def test_an_uploaded_write_that_is_never_committed_is_invisible_and_leaves_nothing(
    service: StateService, clock: Time
) -> None:
    uploaded(service, "k", value(1, LARGE))
    assert get(service, "k") is None
    clock.go_on(GRACE_SECONDS + 1)
    assert service.sweep().blobs == 1
    assert files(service) == set()
    clock.go_on(DEAD_SECONDS + 1)
    service.sweep()
    assert list(service.catalog.blobs()) == []


def test_a_prepared_write_without_an_upload_leaves_nothing(service: StateService, clock: Time) -> None:
    service.prepare_write(PrepareWrite(SCOPE, "k", LARGE, 65_536))
    clock.go_on(GRACE_SECONDS + 1)
    assert service.sweep().blobs == 1
    clock.go_on(DEAD_SECONDS + 1)
    service.sweep()
    assert list(service.catalog.blobs()) == []


def test_an_upload_that_was_cut_off_leaves_nothing(service: StateService, clock: Time) -> None:
    blob = service.prepare_write(PrepareWrite(SCOPE, "k", LARGE))
    blobs = service.blobs
    assert isinstance(blobs, FileBlobs)
    upload = blobs.writer(blob.id, 0)
    upload.write(b"x" * 1000)
    upload._file.close()
    assert len(list(service.blobs.objects())) == 1, "as a killed process leaves it"
    clock.go_on(GRACE_SECONDS + 1)
    service.sweep()
    assert list(service.blobs.objects()) == []


def test_a_write_in_its_grace_is_left_alone(service: StateService, clock: Time) -> None:
    commit = uploaded(service, "k", value(1, LARGE))
    clock.go_on(GRACE_SECONDS - 1)
    assert service.sweep() == SweepReport()
    service.write(commit)
    assert get(service, "k") is not None


def test_renewing_a_prepared_write_restarts_its_life(service: StateService, clock: Time) -> None:
    commit = uploaded(service, "k", value(1, LARGE))
    clock.go_on(GRACE_SECONDS - 1)
    service.prepare_write(PrepareWrite(SCOPE, "k", LARGE, None, commit.write_id))
    clock.go_on(GRACE_SECONDS - 1)
    service.sweep()
    service.write(commit)
    found = get(service, "k")
    assert found is not None
    assert found.blob is not None
    assert counter_of(fetch(service, found.blob)) == 1


def test_a_prepared_write_is_renewed_for_a_day_and_then_swept(service: StateService, clock: Time) -> None:
    clock.us = time.time_ns() // 1_000
    commit = uploaded(service, "k", value(1, LARGE))
    again = PrepareWrite(SCOPE, "k", LARGE, None, commit.write_id)
    for _ in range(86_400 // GRACE_SECONDS):
        clock.go_on(GRACE_SECONDS - 1)
        service.prepare_write(again)

    clock.go_on(GRACE_SECONDS - 1)
    with pytest.raises(ConflictError, match="prepare it again"):
        service.prepare_write(again)
    clock.go_on(GRACE_SECONDS + 1)
    assert service.sweep().blobs == 1


def test_a_commit_after_the_sweep_is_refused_and_changes_nothing(service: StateService, clock: Time) -> None:
    put(service, "k", b"old")
    commit = uploaded(service, "k", value(1, LARGE))
    clock.go_on(GRACE_SECONDS + 1)
    service.sweep()
    with pytest.raises(ConflictError) as caught:
        service.write(commit)
    assert caught.value.code == "blob_gone"
    found = get(service, "k")
    assert found is not None
    assert found.data == b"old"


def test_a_late_upload_into_a_dead_blob_is_deleted_again(service: StateService, clock: Time) -> None:
    data = value(1, LARGE)
    commit = uploaded(service, "k", data)
    clock.go_on(GRACE_SECONDS + 1)
    service.sweep()
    assert not service.uploadable(commit.write_id)
    # An object store accepts a presigned upload whatever the catalog says.
    assert commit.blob is not None
    service.put_chunk(PutChunk(commit.blob.chunks[0], memoryview(data)))
    assert files(service) == {commit.write_id}
    with pytest.raises(ConflictError):
        service.write(commit)
    clock.go_on(DEAD_SECONDS - 10)
    service.sweep()
    assert [blob.state for blob in service.catalog.blobs()] == ["dead"], "it is remembered for a day"
    clock.go_on(20)
    service.sweep()
    assert files(service) == set()
    assert list(service.catalog.blobs()) == []


# -- versions that were overwritten ----------------------------------------------------------------------------------


def test_a_reader_within_the_grace_still_reads_the_version_it_prepared(service: StateService, clock: Time) -> None:
    put(service, "k", value(1, LARGE))
    found = get(service, "k")
    assert found is not None
    assert found.blob is not None
    put(service, "k", value(2, LARGE))
    clock.go_on(GRACE_SECONDS - 1)
    service.sweep()
    assert counter_of(fetch(service, found.blob)) == 1


def test_an_overwritten_large_value_goes_only_after_the_grace(service: StateService, clock: Time) -> None:
    put(service, "k", value(1, LARGE))
    first = get(service, "k")
    put(service, "k", value(2, LARGE))
    assert first is not None
    assert first.blob is not None
    clock.go_on(GRACE_SECONDS + 1)
    assert service.sweep().blobs == 1
    with pytest.raises(IntegrityError) as caught:
        fetch(service, first.blob)
    assert caught.value.code == "chunk_missing"
    second = get(service, "k")
    assert second is not None
    assert second.blob is not None
    assert counter_of(fetch(service, second.blob)) == 2
    assert files(service) == {second.blob.id}


def test_the_grace_starts_when_a_value_is_overwritten_not_when_it_was_written(
    service: StateService, clock: Time
) -> None:
    put(service, "k", value(1, LARGE))
    clock.go_on(30 * 86_400)
    service.sweep()
    found = get(service, "k")
    assert found is not None
    assert found.blob is not None
    put(service, "k", value(2, LARGE))
    service.sweep()
    assert counter_of(fetch(service, found.blob)) == 1


@pytest.mark.parametrize("end", ["deleted", "overwritten with a small value", "expired"])
def test_the_file_of_a_value_that_is_gone_goes_too(service: StateService, clock: Time, end: str) -> None:
    commit = uploaded(service, "k", value(1, LARGE))
    service.write(commit._replace(ttl_seconds=60.0) if end == "expired" else commit)
    if end == "deleted":
        service.write(Delete(SCOPE, "k", uuid7()))
    elif end == "expired":
        clock.go_on(61)
        assert get(service, "k") is None
        assert service.sweep().expired == 1
    else:
        put(service, "k", b"small")
    service.sweep()
    assert len(files(service)) == 1
    clock.go_on(GRACE_SECONDS + 1)
    service.sweep()
    assert files(service) == set()


def test_a_live_value_is_never_swept(service: StateService, clock: Time) -> None:
    put(service, "small", b"x")
    put(service, "large", value(1, LARGE))
    for _ in range(5):
        clock.go_on(100 * 86_400)
        service.sweep()
    small, large = get(service, "small"), get(service, "large")
    assert small is not None
    assert small.data == b"x"
    assert large is not None
    assert large.blob is not None
    assert counter_of(fetch(service, large.blob)) == 1


def test_the_copy_that_a_reader_of_a_small_value_was_given_goes_after_the_grace(
    service: StateService, clock: Time
) -> None:
    put(service, "k", b"small")
    found = service.prepare_read(PrepareRead(SCOPE, "k", 0))
    assert found is not None
    assert found.blob is not None
    put(service, "k", b"other")
    clock.go_on(GRACE_SECONDS - 1)
    service.sweep()
    assert fetch(service, found.blob) == b"small"
    clock.go_on(2)
    service.sweep()
    assert files(service) == set()


# -- tombstones, receipts, requests ----------------------------------------------------------------------------------


def test_a_key_that_comes_back_after_its_tombstone_went_has_a_higher_version(
    service: StateService, clock: Time
) -> None:
    etags = {put(service, "k", b"1").etag, put(service, "k", b"2").etag}
    put(service, "other", b"1")
    deleted = service.write(Delete(SCOPE, "k", uuid7()))
    assert deleted is not None
    assert deleted.version == 3
    clock.go_on(TOMBSTONE_SECONDS - 1)
    assert service.sweep().tombstones == 0
    clock.go_on(2)
    assert service.sweep().tombstones == 1
    again = put(service, "k", b"3")
    assert again.version > 3
    assert again.etag not in etags
    assert again.created_us == again.updated_us
    assert put(service, "new", b"1").version > 3, "any key without a row starts above the floor"
    assert put(service, "other", b"2").version == 2, "a key with a row goes on as before"
    for etag in (*etags, deleted.etag):
        with pytest.raises(ConflictError):
            service.write(CommitWrite(SCOPE, "k", uuid7(), b"x", None, if_match=etag))


def test_the_floor_never_falls(service: StateService, clock: Time) -> None:
    put(service, "short", b"x")
    for _ in range(5):
        put(service, "long", b"x")
    for key in ("long", "short"):
        service.write(Delete(SCOPE, key, uuid7()))
        clock.go_on(TOMBSTONE_SECONDS + 1)
        assert service.sweep().tombstones == 1
    assert put(service, "long", b"x").version > 6


def test_the_floor_of_one_scope_is_not_another_s(service: StateService, clock: Time) -> None:
    other = Scope("default", "other")
    put(service, "k", b"x")
    service.write(Delete(SCOPE, "k", uuid7()))
    clock.go_on(TOMBSTONE_SECONDS + 1)
    service.sweep()
    assert put(service, "k", b"x", scope=other).version == 1


def test_an_etag_of_a_request_s_state_does_not_match_after_that_was_swept(service: StateService, clock: Time) -> None:
    scope = SCOPE._replace(request_id="r")
    first = put(service, "k", b"1", scope=scope)
    clock.go_on(REQUEST_SECONDS + 1)
    service.sweep()
    again = put(service, "k", b"1", scope=scope)
    assert again.etag != first.etag
    with pytest.raises(ConflictError):
        service.write(CommitWrite(scope, "k", uuid7(), b"x", None, if_match=first.etag))


def test_a_receipt_answers_a_repeated_write_for_an_hour(service: StateService, clock: Time) -> None:
    write_id = uuid7()
    first = put(service, "k", b"1", write_id=write_id)
    put(service, "k", b"2")
    clock.go_on(RECEIPT_SECONDS - 1)
    service.sweep()
    assert put(service, "k", b"1", write_id=write_id).version == first.version
    found = get(service, "k")
    assert found is not None
    assert found.data == b"2"
    clock.go_on(RECEIPT_SECONDS + 2)
    assert service.sweep().receipts == 2, "receipts go by the hour: one lives at most two"
    assert put(service, "k", b"1", write_id=write_id).version == 3


def test_a_receipt_outlives_the_value_that_its_write_made(service: StateService, clock: Time) -> None:
    write = CommitWrite(SCOPE, "k", uuid7(), b"1", None, ttl_seconds=60.0)
    first = service.write(write)
    clock.go_on(61)
    assert service.sweep().expired == 1
    clock.go_on(RECEIPT_SECONDS - 100)
    service.sweep()
    assert service.write(write) == first
    assert get(service, "k") is None


def test_the_state_of_a_request_goes_seven_days_after_its_last_write(service: StateService, clock: Time) -> None:
    scope, other = SCOPE._replace(request_id="r"), SCOPE._replace(request_id="r2")
    put(service, "small", b"1", scope=scope)
    put(service, "large", value(1, LARGE), scope=scope)
    put(service, "k", b"application")
    clock.go_on(REQUEST_SECONDS - 10)
    put(service, "k", b"2", scope=other)
    put(service, "small", b"2", scope=scope)
    clock.go_on(REQUEST_SECONDS - 10)
    service.sweep()
    found = get(service, "small", scope=scope)
    assert found is not None, "a write restarts the seven days of the whole request"
    put(service, "k", b"3", scope=other)
    clock.go_on(11)
    assert service.sweep().request_keys > 0
    assert get(service, "small", scope=scope) is None
    assert get(service, "large", scope=scope) is None
    assert get(service, "k", scope=other) is not None
    assert get(service, "k") is not None
    clock.go_on(GRACE_SECONDS + 1)
    service.sweep()
    assert files(service) == set()


def test_vectors_go_with_the_values_that_a_sweep_takes(service: StateService, clock: Time, tmp_path: Path) -> None:
    for scope, ttl in ((SCOPE, 60.0), (SCOPE._replace(request_id="r"), None)):
        commit = CommitWrite(scope, "k", uuid7(), b"{}", None, content_type=JSON, vectors=(bytes(8),), ttl_seconds=ttl)
        service.write(commit)
    clock.go_on(REQUEST_SECONDS + 1)
    service.sweep()
    with contextlib.closing(apsw.Connection(str(tmp_path / "store.db"))) as connection:
        assert connection.execute("SELECT count(*) FROM vector").fetchall() == [(0,)]


def test_a_bounded_sweep_does_the_rest_the_next_times(service: StateService, clock: Time) -> None:
    for number in range(25):
        service.prepare_write(PrepareWrite(SCOPE, f"k{number}", LARGE))
    clock.go_on(GRACE_SECONDS + 1)
    assert [service.sweep(limit=10).blobs for _ in range(4)] == [10, 10, 5, 0]


def test_an_unbounded_sweep_takes_everything(service: StateService, clock: Time, tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.executemany(
        "INSERT INTO blob VALUES (?, 'default/app', 'k', 70000, NULL, 'staged', 0)",
        [(uuid7(),) for _ in range(2_500)],
    ).fetchall()
    connection.close()
    assert service.sweep().blobs == 2_500
    clock.go_on(DEAD_SECONDS + 1)
    service.sweep()
    assert list(service.catalog.blobs()) == []


# -- races -----------------------------------------------------------------------------------------------------------


def test_a_commit_that_races_a_sweep_either_wins_with_its_bytes_or_loses(service: StateService, clock: Time) -> None:
    dice = random.Random(40)
    outcomes: set[str] = set()
    for counter in range(1, 80):
        data = value(counter, LARGE)
        commit = uploaded(service, "k", data)
        clock.go_on(GRACE_SECONDS + 1)
        start = threading.Barrier(2)

        def sweep(start: threading.Barrier = start, pause: float = counter % 2 * dice.uniform(0, 0.002)) -> None:
            start.wait()
            time.sleep(pause)
            with contextlib.suppress(UnavailableError):
                service.sweep()

        thread = threading.Thread(target=sweep)
        thread.start()
        start.wait()
        # Each has a head start half of the time, so that each wins some.
        time.sleep((counter + 1) % 2 * dice.uniform(0, 0.004))
        try:
            entry = service.write(commit)
        except ConflictError as error:
            outcomes.add(error.code)
            entry = None
        thread.join()
        found = get(service, "k")
        if entry is not None:
            outcomes.add("committed")
            assert found is not None
            assert found.entry.etag == entry.etag
        if found is not None:
            assert found.blob is not None
            assert hashlib.sha256(fetch(service, found.blob)).hexdigest() == found.entry.sha256
    assert outcomes <= {"committed", "blob_gone", "blob_incomplete"}
    assert "committed" in outcomes
    assert len(outcomes) > 1, "the sweep never won: this was no race"


def test_a_sweep_between_the_check_of_the_bytes_and_the_commit_makes_the_commit_lose(
    service: StateService, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = uploaded(service, "k", value(1, LARGE))
    clock.go_on(GRACE_SECONDS + 1)
    digest = service.blobs.digest

    def then_sweep(*args: Any) -> Any:
        found = digest(*args)
        service.sweep()
        return found

    monkeypatch.setattr(service.blobs, "digest", then_sweep)
    with pytest.raises(ConflictError) as caught:
        service.write(commit)
    assert caught.value.code == "blob_gone"
    assert get(service, "k") is None


def test_a_sweep_that_chose_a_blob_before_it_was_committed_does_not_delete_it(
    service: StateService, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = uploaded(service, "k", value(1, LARGE))
    clock.go_on(GRACE_SECONDS + 1)
    claim = service.catalog.claim_blobs

    def commit_first(**options: Any) -> Any:
        service.write(commit)
        return claim(**options)

    monkeypatch.setattr(service.catalog, "claim_blobs", commit_first)
    service.sweep()
    found = get(service, "k")
    assert found is not None
    assert found.blob is not None
    assert counter_of(fetch(service, found.blob)) == 1


def sweep_and_write(report: Report, database: Path, name: str, moment: float) -> None:
    clock = Time()
    clock.go_on(10 * 86_400)
    # However slow the disk: nothing here is repeated, and a sweep that is cut short says nothing of what it did.
    catalog = SqliteCatalog(database, clock=clock, busy_seconds=60)
    service = StateService(catalog, FileBlobs(blob_folder(database)))
    time.sleep(max(0.0, moment - time.monotonic()))
    swept = 0
    for counter in range(20):
        swept += service.sweep().blobs
        put(service, name, value(counter, LARGE))
        put(service, "shared", value(counter, LARGE))
    service.close()
    report(swept)


def test_two_processes_may_sweep_at_once(tmp_path: Path) -> None:
    database = tmp_path / "store.db"
    old = StateService(SqliteCatalog(database, clock=Time()), FileBlobs(blob_folder(database)))
    for number in range(200):
        uploaded(old, f"k{number}", value(number, 70_000))
        put(old, f"kept{number % 10}", value(number, 70_000))
    old.close()
    moment = time.monotonic() + 0.1
    children = [Child(sweep_and_write, database, name, moment) for name in ("a", "b", "c")]
    try:
        swept = sum(child.join()[0][0] for child in children)
    finally:
        for child in children:
            child.close()
    assert swept == 200 + 190, "each is swept by exactly one"
    with AgentMemory(database, application="app") as memory:
        assert memory.check().ok
        for key in ("a", "b", "shared"):
            assert counter_of(memory.app_state.get(key)) == 19
        for number in range(10):
            assert counter_of(memory.app_state.get(f"kept{number}")) == 190 + number


# -- by itself -------------------------------------------------------------------------------------------------------


def test_an_embedded_store_sweeps_after_a_write_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        service = memory._client.transport().service
        sweeps: list[int | None] = []
        real = service.sweep

        def sweep(*, limit: int | None = None) -> SweepReport:
            sweeps.append(limit)
            return real(limit=limit)

        monkeypatch.setattr(service, "sweep", sweep)
        memory.app_state.set("k", 1)
        assert sweeps == [], "a process that has just begun has other things to do"
        later = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: later)
        memory.app_state.set("k", 2)
        memory.app_state.set("k", 3)
        service._sweeper.thread.join()
        assert len(sweeps) == 1
        assert sweeps[0] is not None, "a bounded number of things"


def leave_behind(database: Path, count: int) -> None:
    """Make a store hold so many uploads that were abandoned long ago."""
    connection = apsw.Connection(str(database))
    connection.executemany(
        "INSERT INTO blob VALUES (?, 'default/app', 'k', 70000, NULL, 'staged', 0)", [(uuid7(),) for _ in range(count)]
    ).fetchall()
    connection.close()


def left(service: StateService) -> int:
    return sum(blob.state == "staged" for blob in service.catalog.blobs())


def test_an_embedded_store_sweeps_until_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        service = memory._client.transport().service
        leave_behind(tmp_path / "store.db", 1_050)
        monkeypatch.setattr(service._sweeper, "_next", 0.0)
        memory.app_state.set("k", 1)
        service._sweeper.thread.join()
        assert left(service) == 0, "a hundred a minute would never keep up with two a second"


def test_between_the_pieces_of_a_sweep_others_may_write_for_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []

    def sweep(**_: object) -> SweepReport:
        times.append(time.monotonic())
        time.sleep(0.05)
        times.append(time.monotonic())
        return SweepReport(tombstones=100 if len(times) < 4 else 0)

    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        service = memory._client.transport().service
        monkeypatch.setattr(service, "sweep", sweep)
        monkeypatch.setattr(service._sweeper, "_next", 0.0)
        memory.app_state.set("k", 1)
        service._sweeper.thread.join()
    _, ended, began, _ = times
    assert began - ended > 0.04


def test_processes_that_live_for_less_than_a_minute_sweep_too(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        leave_behind(tmp_path / "store.db", 10)
        memory.app_state.set("k", 1)
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        assert left(memory._client.transport().service) == 0


def test_who_only_reads_does_not_sweep(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        leave_behind(tmp_path / "store.db", 10)
        assert memory.app_state.get("k") is None
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        assert left(memory._client.transport().service) == 10


def test_closing_does_not_wait_until_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Event()

    def sweep(**_: object) -> SweepReport:
        swept.set()
        return SweepReport(tombstones=1_000_000)

    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        service = memory._client.transport().service
        monkeypatch.setattr(service, "sweep", sweep)
        monkeypatch.setattr(service._sweeper, "_next", 0.0)
        memory.app_state.set("k", 1)
        assert swept.wait(10)


def test_closing_does_not_wait_for_an_object_store(tmp_path: Path, bucket: StrictS3) -> None:
    with AgentMemory(tmp_path / "store.db", application="app", blobs="s3://bucket/prefix") as memory:
        leave_behind(tmp_path / "store.db", 10)
        memory.app_state.set("k", 1)
        bucket.seen.clear()
    assert bucket.seen == []


def test_a_store_whose_closing_is_interrupted_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> SweepReport:
        raise KeyboardInterrupt

    memory = AgentMemory(tmp_path / "store.db", application="app")
    memory.app_state.set("k", 1)
    monkeypatch.setattr(memory._client.transport().service, "sweep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        memory.close()
    assert not (tmp_path / "store.db-wal").exists()


def test_a_write_does_not_wait_for_the_sweep_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    go_on = threading.Event()

    def sweep(**_: object) -> SweepReport:
        ended.append(go_on.wait(10))
        return SweepReport()

    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        service = memory._client.transport().service
        monkeypatch.setattr(service, "sweep", sweep)
        monkeypatch.setattr(service._sweeper, "_next", 0.0)
        memory.app_state.set("k", 1)
        memory.app_state.set("k", 2)
        assert ended == []
        threading.Timer(0.1, go_on.set).start()
    assert ended == [True], "closing waits for a sweep that has begun"


def test_a_write_is_done_where_no_thread_is_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        monkeypatch.setattr(memory._client.transport().service._sweeper, "_next", 0.0)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert memory.app_state.set("k", 1).version == 1
        monkeypatch.undo()


def test_an_interrupt_while_a_sweep_is_begun_keeps_no_store_from_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> threading.Thread:
        raise KeyboardInterrupt

    memory = AgentMemory(tmp_path / "store.db", application="app")
    sweeper = memory._client.transport().service._sweeper
    leave_behind(tmp_path / "store.db", 10)
    monkeypatch.setattr(sweeper, "_next", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", interrupt)
        with pytest.raises(KeyboardInterrupt):
            memory.app_state.set("k", 1)
    closing = threading.Thread(target=memory.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        assert left(memory._client.transport().service) == 0


def test_a_sweep_that_fails_does_not_make_the_write_before_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "store.db", application="app", timeout=2) as memory:
        service = memory._client.transport().service

        def fail(**_: object) -> SweepReport:
            raise UnavailableError("the disk is full", code="disk_full")

        monkeypatch.setattr(service, "sweep", fail)
        monkeypatch.setattr(service._sweeper, "_next", 0.0)
        entry = memory.app_state.set("k", 1)
        assert entry.version == 1
        service._sweeper.thread.join()
        assert memory.app_state.get("k") == 1


def test_a_sweep_that_fails_keeps_no_store_from_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> SweepReport:
        raise UnavailableError("the disk is full", code="disk_full")

    memory = AgentMemory(tmp_path / "store.db", application="app")
    memory.app_state.set("k", 1)
    monkeypatch.setattr(memory._client.transport().service, "sweep", fail)
    memory.close()
    assert not (tmp_path / "store.db-wal").exists()


def test_a_chunk_s_place_does_not_leave_the_blob_folder(service: StateService) -> None:
    blob = service.prepare_write(PrepareWrite(SCOPE, "../../etc", LARGE))
    assert isinstance(blob.chunks[0], Chunk)
    blobs = service.blobs
    assert isinstance(blobs, FileBlobs)
    assert blobs.path(blob.id, 0).is_relative_to(blobs.folder)
