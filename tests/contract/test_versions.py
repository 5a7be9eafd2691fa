"""Versions, etags, expiry and sweeping, under a clock that the test turns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent_memory import ConflictError
from agent_memory.messages import PrepareWrite, PutChunk, Scope
from agent_memory.operations import Get, Search, Set
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from agent_memory.transports.local import LocalTransport
from tests.support.blocking import unwrap
from tests.support.models import Counter

LARGE = b"x" * 200_000

# What the design promises, not what the code says: twice the life of a URL and five minutes; an hour.
GRACE_SECONDS = 2 * 300 + 300
RECEIPT_SECONDS = 3_600


@pytest.fixture
def memory(timed: Any) -> Any:
    return timed.open()


def test_every_committed_change_raises_the_version_by_one(memory: Any) -> None:
    versions = [
        memory.app_state.set("key", 1).version,
        memory.app_state.set("key", 1).version,
        memory.app_state.delete("key").version,
        memory.app_state.set("key", LARGE).version,
        memory.app_state.delete("key").version,
    ]

    assert versions == [1, 2, 3, 4, 5]


def test_versions_are_counted_per_key(memory: Any) -> None:
    memory.app_state.set("a", 1)
    memory.app_state.set("a", 1)

    assert memory.app_state.set("b", 1).version == 1


def test_a_failed_condition_makes_no_version(memory: Any) -> None:
    document = memory.app_state.key("key", Counter)
    document.set(Counter())
    with pytest.raises(ConflictError):
        document.create(Counter())

    assert document.set(Counter()).version == 2


def test_no_two_versions_share_an_etag(memory: Any) -> None:
    etags = {memory.app_state.set(f"key{n % 2}", 1).etag for n in range(20)}

    assert len(etags) == 20


def test_a_recreated_key_never_matches_an_old_etag(memory: Any) -> None:
    document = memory.app_state.key("key", Counter)
    old = document.set(Counter(count=1))
    document.delete()
    document.set(Counter(count=1))

    with pytest.raises(ConflictError):
        document.replace(Counter(count=2), expected=old)


def test_a_version_is_not_used_again_after_its_tombstone_was_swept(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", 1)
    deleted = memory.app_state.delete("key")
    timed.clock.advance(days=2)

    assert timed.sweep().tombstones == 1
    assert memory.app_state.set("key", 1).version > deleted.version


def test_no_etag_matches_after_its_tombstone_was_swept(timed: Any, memory: Any) -> None:
    document = memory.app_state.key("key", Counter)
    old = document.set(Counter())
    document.delete()
    timed.clock.advance(days=2)
    timed.sweep()
    with pytest.raises(ConflictError):
        document.replace(Counter(), expected=old)

    document.set(Counter())
    with pytest.raises(ConflictError):
        document.replace(Counter(), expected=old)


def test_a_young_tombstone_is_kept(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", 1)
    memory.app_state.delete("key")
    timed.clock.advance(hours=23)

    assert timed.sweep().tombstones == 0


def test_sweeping_leaves_live_values_alone(timed: Any, memory: Any) -> None:
    memory.app_state.set("small", 1)
    memory.app_state.set("large", LARGE)
    for _ in range(3):
        timed.clock.advance(days=3)
        timed.sweep()

    assert memory.app_state.get_many(["small", "large"]) == {"small": 1, "large": LARGE}


def test_times_are_the_catalogs(timed: Any, memory: Any) -> None:
    entry = memory.app_state.set("key", 1)

    assert (
        entry.created_at
        == entry.updated_at
        == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=timed.clock.us)
    )


def test_a_change_keeps_the_time_of_creation_and_a_recreation_resets_it(timed: Any, memory: Any) -> None:
    first = memory.app_state.set("key", 1)
    timed.clock.advance(seconds=5)
    second = memory.app_state.set("key", 2)
    memory.app_state.delete("key")
    timed.clock.advance(seconds=5)
    third = memory.app_state.set("key", 3)

    assert second.created_at == first.created_at
    assert third.created_at == third.updated_at


def test_order_comes_from_versions_when_the_clock_goes_back(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", "earlier")
    timed.clock.advance(days=-30)
    entry = memory.app_state.set("key", "later")

    assert (entry.version, memory.app_state.get("key")) == (2, "later")


@pytest.mark.parametrize("value", [1, LARGE], ids=["small", "large"])
def test_a_value_is_absent_once_its_time_is_over(timed: Any, memory: Any, value: Any) -> None:
    memory.app_state.set("key", value, ttl=60)
    timed.clock.advance(seconds=59)
    assert memory.app_state.get("key") == value

    timed.clock.advance(seconds=1)
    assert memory.app_state.get("key", default="gone") == "gone"
    assert memory.app_state.get_many(["key"]) == {}
    assert list(memory.app_state.keys()) == []


def test_a_value_of_a_batch_is_absent_once_its_time_is_over(timed: Any, memory: Any) -> None:
    memory.app_state.batch([Set("key", 1, ttl=60), Set("other", 2)])
    timed.clock.advance(seconds=60)

    assert memory.app_state.get_many(["key", "other"]) == {"other": 2}


def test_an_entry_says_when_its_value_expires(memory: Any) -> None:
    entry = memory.app_state.set("key", 1, ttl=60)

    assert entry.expires_at == entry.updated_at + timedelta(seconds=60)
    assert memory.app_state.set("key", 1).expires_at is None


def test_an_expired_value_can_be_created_again_and_does_not_match(timed: Any, memory: Any) -> None:
    document = memory.app_state.key("key", Counter)
    old = document.set(Counter(), ttl=60)
    timed.clock.advance(seconds=61)
    with pytest.raises(ConflictError):
        document.replace(Counter(), expected=old)

    assert document.create(Counter()).version > old.version


@pytest.mark.parametrize("value", [1, LARGE], ids=["small", "large"])
def test_an_expired_value_is_swept_and_its_version_not_used_again(timed: Any, memory: Any, value: Any) -> None:
    old = memory.app_state.set("key", value, ttl=60)
    timed.clock.advance(seconds=61)
    assert timed.sweep().expired == 1
    timed.clock.advance(days=2)
    assert timed.sweep().tombstones == 1

    assert memory.app_state.set("key", value).version > old.version
    assert timed.files() == [] or value is LARGE


@pytest.mark.parametrize("value", [(1, 2), LARGE], ids=["small", "large"])
def test_an_expired_value_that_was_swept_leaves_only_its_version(timed: Any, memory: Any, value: Any) -> None:
    entry = memory.app_state.set("key", value, ttl=60, reason="said so")
    timed.clock.advance(seconds=61)
    timed.sweep()
    [left] = timed.service.catalog.stored(after=("", ""), limit=10)
    tombstone = left.row.entry
    assert (tombstone.deleted, tombstone.version, tombstone.etag) == (True, entry.version, entry.etag)
    assert tombstone.updated_us == timed.clock()
    assert (tombstone.size, tombstone.signature, tombstone.provenance, tombstone.expires_us) == (0, None, None, None)
    assert (left.ttl_us, left.row.data, left.row.blob_id) == (None, None, None)

    timed.clock.advance(seconds=GRACE_SECONDS + 1)
    timed.sweep()
    assert timed.files() == []


def test_an_expired_value_leaves_no_more_of_itself_than_a_deleted_one(timed: Any, memory: Any) -> None:
    memory.app_state.set("deleted", Counter())
    memory.app_state.delete("deleted")
    # The hash of a short value, such as a code of six digits, tells what it was.
    memory.app_state.set("expired", Counter(), ttl=60)
    timed.clock.advance(seconds=61)
    timed.sweep()

    deleted, expired = (one.row.entry for one in timed.service.catalog.stored(after=("", ""), limit=10))
    for field in ("size", "sha256", "content_type", "signature", "schema_name", "schema_version"):
        assert getattr(expired, field) == getattr(deleted, field), field


def test_a_bounded_sweep_takes_so_many_of_each_kind_and_the_next_ones_the_rest(timed: Any, memory: Any) -> None:
    with memory.request("req-1") as one, memory.request("req-2") as another:
        for number in range(3):
            memory.app_state.set(f"key{number}", 1, ttl=60)
            one.state.set(f"key{number}", 1)
            another.state.set(f"key{number}", 1)
    timed.clock.advance(days=8)
    first = [timed.service.sweep(limit=2) for _ in range(5)]
    timed.clock.advance(days=2)
    second = [timed.service.sweep(limit=2) for _ in range(3)]

    assert [report.expired for report in first] == [2, 1, 0, 0, 0]
    # A request counts beside its keys, each time that some of these are taken.
    assert sorted(report.request_keys for report in first) == [0, 2, 2, 3, 3]
    assert [report.tombstones for report in second] == [2, 1, 0]
    assert timed.service.catalog.stored(after=("", ""), limit=10) == []


def test_a_tombstone_of_a_request_is_kept_for_a_day_and_its_version_for_ever(timed: Any, memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.set("key", 1)
        old = context.state.delete("key")
        timed.clock.advance(days=1)
        assert timed.sweep().tombstones == 0
        timed.clock.advance(days=1)
        assert timed.sweep().tombstones == 1
        timed.clock.advance(days=8)
        assert timed.sweep().request_keys == 1

        assert context.state.set("key", 2).version > old.version


def test_an_update_keeps_the_time_to_live(timed: Any, memory: Any) -> None:
    document = memory.app_state.key("key", Counter)
    entry = document.set(Counter(), ttl=60)
    timed.clock.advance(seconds=30)

    assert document.update(count=1).entry.expires_at == entry.expires_at


@pytest.mark.parametrize(
    "operations",
    [
        [Get("note/1", refresh_ttl=True)],
        [Get("note/1", refresh_ttl=True), Get("note/2")],
        [Search("note/1", refresh_ttl=True)],
        [Set("other", 1), Get("note/1", refresh_ttl=True)],
    ],
    ids=["alone", "batch", "search", "with a write"],
)
def test_a_read_may_restart_the_time_to_live_of_what_it_reads(timed: Any, memory: Any, operations: list[Any]) -> None:
    elsewhere = timed.open(application="elsewhere")
    for state in (memory.app_state, elsewhere.app_state):
        state.set("note/1", {"n": 1}, ttl=60)
        state.set("note/2", {"n": 2}, ttl=60)
    timed.clock.advance(seconds=59)
    memory.app_state.batch(operations)
    timed.clock.advance(seconds=59)

    assert list(memory.app_state.keys("note/")) == ["note/1"]
    assert list(elsewhere.app_state.keys()) == []


def test_a_time_to_live_that_is_over_is_not_restarted(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", 1, ttl=60)
    timed.clock.advance(seconds=60)
    # Who read it just before comes as late as that.
    timed.service.catalog.touch(Scope("default", timed.application), ["key"])

    assert memory.app_state.get("key") is None


def test_a_plain_write_ends_the_time_to_live(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", 1, ttl=60)
    memory.app_state.set("key", 2)
    timed.clock.advance(days=1)

    assert memory.app_state.get("key") == 2


def test_an_item_expires(timed: Any, memory: Any) -> None:
    items = memory.entity("user", "1").collection(Counter)
    items.add(Counter(), id="a", ttl=60)
    items.add(Counter(), id="b")
    timed.clock.advance(seconds=61)

    assert [found.id for found in items.list()] == ["b"]


def test_an_entity_whose_values_expired_is_not_listed(timed: Any, memory: Any) -> None:
    memory.app_state.set("user/1/profile", 1, ttl=60)
    memory.app_state.set("user/2/profile", 1)
    timed.clock.advance(seconds=61)

    assert list(memory.entities("user")) == ["2"]


def test_an_upload_that_is_never_committed_is_invisible_and_leaves_nothing(timed: Any, memory: Any) -> None:
    scope = Scope("default", timed.application)
    blob = timed.send(memory, PrepareWrite(scope, "key", len(LARGE)))
    timed.send(memory, PutChunk(blob.chunks[0], memoryview(LARGE)))
    assert memory.app_state.get("key") is None
    assert list(memory.app_state.keys()) == []
    assert len(timed.files()) == 1

    timed.clock.advance(seconds=GRACE_SECONDS + 1)
    assert timed.sweep().blobs == 1
    assert timed.files() == []


def test_an_upload_that_was_swept_or_committed_is_not_prepared_again(timed: Any, memory: Any) -> None:
    scope = Scope("default", timed.application)
    swept = timed.service.handle(PrepareWrite(scope, "swept", len(LARGE)))
    timed.clock.advance(seconds=GRACE_SECONDS + 1)
    timed.sweep()
    memory.app_state.set("committed", LARGE)
    [committed] = [blob.id for blob in timed.service.catalog.blobs() if blob.key == "committed"]

    for key, write_id in (("swept", swept.id), ("committed", committed)):
        with pytest.raises(ConflictError):
            timed.send(memory, PrepareWrite(scope, key, len(LARGE), None, write_id))


def test_an_upload_that_may_still_be_committed_is_not_swept(timed: Any, memory: Any) -> None:
    blob = timed.send(memory, PrepareWrite(Scope("default", timed.application), "key", len(LARGE)))
    timed.send(memory, PutChunk(blob.chunks[0], memoryview(LARGE)))
    timed.clock.advance(seconds=GRACE_SECONDS - 1)

    assert timed.sweep().blobs == 0
    assert len(timed.files()) == 1


@pytest.mark.parametrize("end", ["overwritten", "deleted"])
def test_the_bytes_of_a_value_that_is_gone_go_after_the_grace(timed: Any, memory: Any, end: str) -> None:
    memory.app_state.set("key", LARGE)
    if end == "deleted":
        memory.app_state.delete("key")
    else:
        memory.app_state.set("key", 1)
    timed.clock.advance(seconds=GRACE_SECONDS - 1)
    timed.sweep()
    assert len(timed.files()) == 1

    timed.clock.advance(seconds=2)
    timed.sweep()
    assert timed.files() == []


def test_a_swept_blob_is_forgotten_in_the_end(timed: Any, memory: Any) -> None:
    for number in range(3):
        memory.app_state.set(f"key{number}", LARGE)
        memory.app_state.delete(f"key{number}")
    timed.clock.advance(days=1)
    timed.sweep()
    timed.clock.advance(days=2)
    timed.sweep()

    assert list(timed.service.catalog.blobs()) == []


def test_a_blob_that_is_not_dead_is_not_forgotten(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", LARGE)
    before = list(timed.service.catalog.blobs())
    # A check may have mended it since a sweep found it dead.
    timed.service.catalog.forget_blobs([blob.id for blob in before])

    assert list(timed.service.catalog.blobs()) == before


def test_receipts_are_kept_for_an_hour_and_swept_after_two(timed: Any, memory: Any) -> None:
    count = memory.app_state.key("key", int)
    count.update(lambda value: value + 1, default=0, write_id="a change with a name")
    timed.clock.advance(seconds=RECEIPT_SECONDS - 1)
    assert timed.sweep().receipts == 0

    timed.clock.advance(seconds=RECEIPT_SECONDS + 1)
    another = timed.open(application="another").app_state.key("key", int)
    another.update(lambda value: value + 1, default=0, write_id="a change with a name")
    assert timed.sweep().receipts == 1


def test_every_write_leaves_a_receipt_but_those_to_a_file_that_have_no_name(timed: Any, memory: Any) -> None:
    memory.app_state.set("key", 1)
    memory.app_state.key("key", int).update(lambda value: value + 1)
    memory.app_state.batch([Set("key", LARGE), Set("other", 1)])
    memory.app_state.delete("key")
    with memory.request("req-1") as request:
        request.state.set("key", 1)
        request.state.clear()

    timed.clock.advance(seconds=2 * RECEIPT_SECONDS)
    transport = unwrap(memory)._client.transport()
    to_a_file = isinstance(transport, LocalTransport) and isinstance(timed.service.catalog, SqliteCatalog)
    assert timed.sweep().receipts == (0 if to_a_file else 7)
    assert transport.loses_replies is not to_a_file


def test_request_state_is_swept_a_week_after_the_last_write(timed: Any, memory: Any) -> None:
    with memory.request("old") as old, memory.request("used") as used:
        for context in (old, used):
            context.state.set("key", 1)
            context.state.set("large", LARGE)
        timed.clock.advance(days=6)
        used.state.set("other", 1)
        timed.clock.advance(days=2)
        timed.sweep()

        assert list(old.state.keys()) == []
        assert list(used.state.keys()) == ["key", "large", "other"]
    timed.clock.advance(seconds=GRACE_SECONDS + 1)
    timed.sweep()
    assert len(timed.files()) == 1


def test_no_etag_matches_in_a_request_that_was_swept(timed: Any, memory: Any) -> None:
    with memory.request("req-1") as context:
        old = context.state.set("key", 1)
        timed.clock.advance(days=8)
        timed.sweep()
        context.state.set("key", 2)
        with pytest.raises(ConflictError):
            context.state.delete("key", expected=old)


def test_no_version_is_used_again_in_a_request_that_was_swept(timed: Any, memory: Any) -> None:
    with memory.request("req-1") as context:
        context.state.set("key", 1)
        old = context.state.set("key", 2)
        timed.clock.advance(days=8)
        timed.sweep()

        assert context.state.set("key", 3).version > old.version


def test_application_state_is_never_swept(timed: Any, memory: Any) -> None:
    with memory.request("req-1") as context:
        context.app_state.set("key", 1)
    timed.clock.advance(days=4_000)
    timed.sweep()

    assert memory.app_state.get("key") == 1
