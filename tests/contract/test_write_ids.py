"""Write ids: a change that is sent twice happens once, and its first result is the answer to both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field

from agent_memory import ConflictError, InvalidRequestError, NotFoundError, SerializationError
from agent_memory.ids import uuid7
from agent_memory.messages import JSON, Batch, Blob, Chunk, CommitWrite, Delete, PrepareWrite, PutChunk, Scope
from agent_memory.vectors import pack_vector
from tests.contract.test_concurrency import at_once


@pytest.fixture
def scope(store: Any) -> Scope:
    return Scope("default", store.application)


def write(scope: Scope, data: bytes, **conditions: Any) -> CommitWrite:
    return CommitWrite(scope, "key", uuid7(), data, None, sha256=hashlib.sha256(data).hexdigest(), **conditions)


def upload(store: Any, memory: Any, scope: Scope, data: bytes) -> CommitWrite:
    """Upload a large value and return the commit that is still to be sent."""
    blob = store.send(memory, PrepareWrite(scope, "key", len(data)))
    etag = store.send(memory, PutChunk(blob.chunks[0], memoryview(data)))
    chunk = Chunk(blob.chunks[0].uri, len(data), etag)
    return CommitWrite(scope, "key", blob.id, None, Blob(blob.id, (chunk,)), sha256=hashlib.sha256(data).hexdigest())


def test_a_repeated_write_gives_the_first_result_and_makes_no_version(memory: Any, store: Any, scope: Scope) -> None:
    message = write(scope, b"value")
    first = store.send(memory, message)

    assert store.send(memory, message) == first
    assert memory.app_state.snapshot("key").entry == first


@pytest.mark.parametrize("size", [5, 200_000])
def test_a_write_that_is_repeated_after_another_one_leaves_the_other_standing(
    memory: Any, store: Any, scope: Scope, size: int
) -> None:
    first = write(scope, b"A" * size) if size < 65_536 else upload(store, memory, scope, b"A" * size)
    first_entry = store.send(memory, first)
    second_entry = memory.app_state.set("key", b"B" * size)

    assert store.send(memory, first) == first_entry
    assert memory.app_state.snapshot("key") == (b"B" * size, second_entry)


def test_a_write_that_is_repeated_after_many_others_gives_the_first_result(
    memory: Any, store: Any, scope: Scope
) -> None:
    messages = [write(scope, b"%d" % number) for number in range(20)]
    entries = [store.send(memory, message) for message in messages]

    assert [store.send(memory, message) for message in messages] == entries
    assert memory.app_state.snapshot("key") == (b"19", entries[-1])


def test_a_write_that_is_repeated_after_a_deletion_does_not_bring_the_value_back(
    memory: Any, store: Any, scope: Scope
) -> None:
    message = write(scope, b"A")
    first = store.send(memory, message)
    memory.app_state.delete("key")

    assert store.send(memory, message) == first
    assert memory.app_state.get("key") is None


def test_a_conditional_write_is_repeated_though_its_condition_holds_no_longer(
    memory: Any, store: Any, scope: Scope
) -> None:
    create = write(scope, b"A", if_none_match=True)
    created = store.send(memory, create)
    replace = write(scope, b"B", if_match=created.etag)
    replaced = store.send(memory, replace)

    assert store.send(memory, create) == created
    assert store.send(memory, replace) == replaced


def test_a_write_that_failed_its_condition_may_be_sent_again(memory: Any, store: Any, scope: Scope) -> None:
    memory.app_state.set("key", 1)
    message = write(scope, b"A", if_none_match=True)
    with pytest.raises(ConflictError):
        store.send(memory, message)
    memory.app_state.delete("key")

    assert store.send(memory, message).version == 3


@pytest.mark.parametrize("other", ["bytes", "condition", "key", "content_type", "delete"])
def test_a_write_id_is_not_used_for_another_intent(memory: Any, store: Any, scope: Scope, other: str) -> None:
    message = write(scope, b"value")
    first = store.send(memory, message)
    changed = {
        "bytes": write(scope, b"other")._replace(write_id=message.write_id),
        "condition": message._replace(if_match=first.etag),
        "key": message._replace(key="other"),
        "content_type": message._replace(content_type="application/json"),
        "delete": Delete(scope, "key", message.write_id),
    }[other]
    with pytest.raises(ConflictError) as caught:
        store.send(memory, changed)

    assert caught.value.code == "write_id_reused"
    assert memory.app_state.snapshot("key") == (b"value", first)
    assert memory.app_state.get("other") is None


def test_a_repeated_deletion_gives_the_first_result(memory: Any, store: Any, scope: Scope) -> None:
    memory.app_state.set("key", 1)
    message = Delete(scope, "key", uuid7())
    first = store.send(memory, message)

    assert store.send(memory, message) == first
    assert memory.app_state.set("key", 2).version == 3


def test_a_deletion_that_is_repeated_after_a_write_leaves_the_value_standing(
    memory: Any, store: Any, scope: Scope
) -> None:
    memory.app_state.set("key", 1)
    message = Delete(scope, "key", uuid7())
    first = store.send(memory, message)
    memory.app_state.set("key", 2)

    assert store.send(memory, message) == first
    assert memory.app_state.get("key") == 2


def test_a_deletion_of_nothing_is_repeated_as_one(memory: Any, store: Any, scope: Scope) -> None:
    message = Delete(scope, "key", uuid7())
    assert store.send(memory, message) is None
    memory.app_state.set("key", 1)

    assert store.send(memory, message) is None
    assert memory.app_state.get("key") == 1


def test_writes_without_a_write_id_are_made_each_time(memory: Any, store: Any, scope: Scope) -> None:
    unnamed = write(scope, b"A")._replace(write_id=None)
    assert [store.send(memory, unnamed).version for _ in range(2)] == [1, 2]
    assert store.send(memory, Delete(scope, "key", None)).version == 3
    assert store.send(memory, Delete(scope, "key", None)) is None
    entry, nothing = store.send(memory, Batch(scope, (unnamed, Delete(scope, "other", None))))
    assert (entry.version, nothing) == (4, None)


def test_a_repeated_batch_gives_the_first_results(memory: Any, store: Any, scope: Scope) -> None:
    memory.app_state.set("gone", 1)
    batch = Batch(scope, (write(scope, b"A"), Delete(scope, "gone", uuid7())))
    first = store.send(memory, batch)
    memory.app_state.set("key", 2)
    memory.app_state.set("gone", 3)

    assert store.send(memory, batch) == first
    assert memory.app_state.get_many(["key", "gone"]) == {"key": 2, "gone": 3}


def test_a_repeated_batch_gives_no_vectors_to_what_was_written_since(memory: Any, store: Any, scope: Scope) -> None:
    with_vector = write(scope, b"{}", content_type=JSON, vectors=(pack_vector([1.0, 0.0]),))
    batch = Batch(scope, (with_vector, write(scope, b"{}", content_type=JSON)._replace(key="other")))
    first = store.send(memory, batch)
    memory.app_state.set("key", {})

    assert store.send(memory, batch) == first
    assert [hit.score for hit in memory.app_state.search("key", vector=[1.0, 0.0])] == [None]


def test_some_writes_of_a_batch_may_have_been_sent_before(memory: Any, store: Any, scope: Scope) -> None:
    known = write(scope, b"A")
    first = store.send(memory, known)
    new = write(scope, b"B")._replace(key="other")
    replies = store.send(memory, Batch(scope, (new, known, Delete(scope, "nothing", uuid7()))))

    assert replies[1:] == [first, None]
    assert memory.app_state.get_many(["key", "other"]) == {"key": b"A", "other": b"B"}
    assert memory.app_state.snapshot("key").version == 1


def test_a_write_that_stands_twice_in_a_batch_happens_once(memory: Any, store: Any, scope: Scope) -> None:
    message = write(scope, b"A", if_none_match=True)
    first, second = store.send(memory, Batch(scope, (message, message)))

    assert first == second
    assert memory.app_state.snapshot("key") == (b"A", first)


@pytest.mark.parametrize("other", [{"key": "other"}, {"data": b"B", "sha256": hashlib.sha256(b"B").hexdigest()}])
def test_two_writes_of_a_batch_do_not_share_a_write_id(
    memory: Any, store: Any, scope: Scope, other: dict[str, Any]
) -> None:
    message = write(scope, b"A")
    with pytest.raises(ConflictError) as caught:
        store.send(memory, Batch(scope, (message, message._replace(**other))))

    assert caught.value.code == "write_id_reused"
    assert memory.app_state.get_many(["key", "other"]) == {}


def test_write_ids_of_two_requests_do_not_meet(memory: Any, store: Any, scope: Scope) -> None:
    message = write(scope, b"A")
    store.send(memory, message)
    inside = message._replace(scope=scope._replace(request_id="req-1"), data=b"B", sha256=None)

    assert store.send(memory, inside).version == 1


def test_a_prepared_write_is_committed_once(memory: Any, store: Any, scope: Scope) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    store.send(memory, message)
    with pytest.raises(ConflictError):
        store.send(memory, message._replace(write_id=uuid7()))

    assert memory.app_state.snapshot("key").version == 1


def test_a_prepared_write_is_committed_once_in_a_batch(memory: Any, store: Any, scope: Scope) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    with pytest.raises(ConflictError) as caught:
        store.send(memory, Batch(scope, (message, message._replace(write_id=uuid7()))))

    assert caught.value.code == "blob_gone"
    assert memory.app_state.get("key") is None


def test_a_prepared_write_is_not_committed_to_another_key(memory: Any, store: Any, scope: Scope) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    with pytest.raises(ConflictError):
        store.send(memory, message._replace(key="other"))

    assert memory.app_state.get("other") is None


def test_a_prepared_write_of_another_request_is_as_good_as_none(memory: Any, store: Any, scope: Scope) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    elsewhere = message._replace(scope=scope._replace(request_id="req-1"))
    other_sizes = elsewhere._replace(blob=Blob(message.write_id, (Chunk("x", 1),)))
    for foreign in (elsewhere, other_sizes):
        with pytest.raises(ConflictError) as caught:
            store.send(memory, foreign)
        assert caught.value.code == "blob_gone"


@pytest.mark.parametrize(
    "chunks",
    [
        lambda _: (),
        lambda chunk: (chunk, chunk),
        lambda chunk: (chunk._replace(size=chunk.size - 1),),
        lambda chunk: (chunk._replace(etag="other"),),
    ],
    ids=["none", "more", "smaller", "etag"],
)
def test_a_commit_of_other_chunks_than_were_prepared_is_refused(
    memory: Any, store: Any, scope: Scope, chunks: Callable[[Chunk], tuple[Chunk, ...]]
) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    assert message.blob is not None
    with pytest.raises(InvalidRequestError):
        store.send(memory, message._replace(blob=Blob(message.blob.id, chunks(message.blob.chunks[0]))))

    assert memory.app_state.get("key") is None


def test_a_small_value_with_another_hash_is_refused(memory: Any, store: Any, scope: Scope) -> None:
    with pytest.raises(InvalidRequestError):
        store.send(memory, write(scope, b"A")._replace(sha256="0" * 64))

    assert memory.app_state.get("key") is None


def test_only_the_same_prepared_write_is_given_fresh_places(memory: Any, store: Any, scope: Scope) -> None:
    message = upload(store, memory, scope, b"A" * 100_000)
    again = PrepareWrite(scope, "key", 100_000, write_id=message.write_id)
    assert store.send(memory, again).id == message.write_id
    others = [
        again._replace(key="other"),
        again._replace(size=100_001),
        again._replace(chunk_size=65_536),
        again._replace(scope=scope._replace(request_id="req-1")),
        again._replace(write_id=uuid7()),
    ]
    for request in others:
        with pytest.raises(ConflictError) as caught:
            store.send(memory, request)
        assert caught.value.code == "blob_gone"

    store.send(memory, message)
    with pytest.raises(ConflictError) as caught:
        store.send(memory, again)
    assert caught.value.code == "blob_gone"


# -- updates that are named ------------------------------------------------------------------------------------------


def test_an_update_that_is_named_counts_once_whatever_was_written_since(memory: Any) -> None:
    count, name = memory.app_state.key("count", int), uuid7()
    count.set(0)
    first = count.update(lambda value: value + 1, write_id=name)
    assert count.update(lambda value: value + 1, write_id=name) == first
    count.update(lambda value: value + 10)
    again = count.update(lambda value: value + 1, write_id=name)
    assert (again.value, again.version) == (11, 3)
    assert count.update(lambda value: value + 1, write_id=uuid7()).value == 12


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "order/7 paid\n", "é" * 128])
def test_any_text_may_name_an_update(memory: Any, name: str) -> None:
    count = memory.app_state.key("count", int)
    assert [count.update(lambda value: value + 1, default=0, write_id=name).value for _ in range(2)] == [1, 1]


def test_one_name_may_stand_for_the_updates_of_several_keys(memory: Any) -> None:
    counts, name = [memory.app_state.key(key, int) for key in ("runs", "swims", "r")], uuid7()
    for count in [*counts, *counts]:
        count.update(lambda value: value + 1, default=0, write_id=name)
    assert [count.get() for count in counts] == [1, 1, 1]


def test_an_update_of_a_large_value_that_is_named_counts_once(memory: Any) -> None:
    text, name = memory.app_state.key("text", str), uuid7()
    text.set("x" * 200_000)
    for _ in range(2):
        assert len(text.update(lambda value: value + "y", write_id=name).value) == 200_001


def test_updates_that_are_named_and_meet_count_once_each(memory: Any) -> None:
    count, names = memory.app_state.key("count", int), [uuid7() for _ in range(6)]
    count.set(0)
    at_once(12, lambda number: count.update(lambda value: value + 1, write_id=names[number % 6]))
    assert count.get() == 6


def test_an_update_that_was_made_before_says_that_its_value_was_deleted(memory: Any) -> None:
    count, name = memory.app_state.key("count", int), uuid7()
    count.update(lambda value: value + 1, default=0, write_id=name)
    count.delete()
    with pytest.raises(NotFoundError, match="'count': this update was made before"):
        count.update(lambda value: value + 1, default=0, write_id=name)
    assert count.get() is None


def test_an_update_that_was_made_before_is_no_error_where_it_could_not_be_made_again(memory: Any) -> None:
    places, name = memory.app_state.key("places", Annotated[int, Field(ge=0)]), uuid7()
    places.set(2)
    places.update(lambda value: value - 2, write_id=name)
    assert places.update(lambda value: value - 2, write_id=name).value == 0
    assert places.update(lambda value: 6 // value, write_id=name).version == 2
    with pytest.raises(ZeroDivisionError):
        places.update(lambda value: 6 // value, write_id=uuid7())
    with pytest.raises(SerializationError):
        places.update(lambda value: value - 2, write_id=uuid7())


@pytest.mark.parametrize("name", ["", "x" * 129, 7])
def test_a_name_that_no_write_can_have_is_refused(memory: Any, name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a write id"):
        memory.app_state.key("count", int).update(lambda value: value + 1, default=0, write_id=name)
    assert memory.app_state.get("count") is None
