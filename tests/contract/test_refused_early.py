"""Large values whose condition does not hold are refused before they travel, with what a commit would say."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory import ConflictError, InvalidRequestError
from agent_memory.ids import uuid7
from agent_memory.messages import CommitWrite, Delete, PrepareWrite, PutChunk, Scope
from agent_memory.operations import Delete as DeleteOf
from agent_memory.operations import Set
from tests.support.faults import Between, Meddling, put_between

LARGE = b"x" * 200_000


@pytest.fixture
def scope(store: Any) -> Scope:
    return Scope("default", store.application)


def puts(transport: Between) -> int:
    return sum(isinstance(message, PutChunk) for message in transport.sent)


@pytest.mark.parametrize("theirs", [b"small", b"y" * 100_000])
def test_64_mib_that_are_there_already_are_not_uploaded(memory: Any, theirs: bytes) -> None:
    document = memory.app_state.key("key", bytes)
    entry = document.set(theirs)
    transport = put_between(memory, Between)

    with pytest.raises(ConflictError, match="'key': there is a value already") as caught:
        document.create(bytes(64 * 1024 * 1024))

    assert puts(transport) == 0
    assert caught.value.code == "condition_failed"
    assert caught.value.current == (theirs, entry)
    assert document.snapshot() == (theirs, entry)


@pytest.mark.parametrize("deleted", [False, True])
def test_what_replaces_another_version_is_not_uploaded(memory: Any, deleted: bool) -> None:
    document = memory.app_state.key("key", bytes)
    document.set(b"first")
    snapshot = document.snapshot()
    document.set(b"second")
    if deleted:
        document.delete()
    transport = put_between(memory, Between)

    with pytest.raises(ConflictError, match="'key': the key is not at the version that was expected") as caught:
        document.replace(LARGE, expected=snapshot)

    assert puts(transport) == 0
    assert (caught.value.current and caught.value.current.value) == (None if deleted else b"second")


def test_a_condition_that_holds_is_no_obstacle(memory: Any) -> None:
    document = memory.app_state.key("key", bytes)
    entry = document.create(LARGE)
    document.replace(LARGE + b"2", expected=entry)
    document.delete()
    document.create(LARGE + b"3")

    assert document.get() == LARGE + b"3"


def test_the_commit_has_the_last_word(memory: Any, store: Any) -> None:
    other = store.open_sync().app_state
    document = memory.app_state.key("key", bytes)

    def act(message: Any) -> None:
        if isinstance(message, PutChunk):
            other.set("key", b"theirs")

    put_between(memory, lambda inner: Meddling(inner, act=act))

    with pytest.raises(ConflictError) as caught:
        document.create(LARGE)
    assert caught.value.current.value == b"theirs"


def test_a_condition_that_its_own_batch_fulfils_is_not_refused(memory: Any) -> None:
    memory.app_state.set("key", b"old")
    memory.app_state.batch([DeleteOf("key"), Set("key", LARGE, expected=None)])

    assert memory.app_state.get("key") == LARGE


def test_an_update_that_is_named_is_known_from_its_first_time_whatever_came_between(memory: Any, store: Any) -> None:
    other, name = store.open_sync().app_state, uuid7()
    document = memory.app_state.key("key", bytes)
    document.set(LARGE)
    document.update(lambda value: value + b"1", write_id=name)

    def act(message: Any) -> None:
        if isinstance(message, PrepareWrite):
            other.set("key", b"theirs")

    changes: list[bytes] = []

    def change(value: bytes) -> bytes:
        changes.append(value)
        return value + b"1"

    put_between(memory, lambda inner: Meddling(inner, act=act))

    assert document.update(change, write_id=name).value == b"theirs"
    assert changes == [LARGE + b"1"], "its first commit told"


def test_what_is_committed_is_not_prepared_again_for_its_own_condition(memory: Any, store: Any, scope: Scope) -> None:
    place = PrepareWrite(scope, "key", len(LARGE), if_none_match=True)
    blob = store.send(memory, place)
    again = place._replace(write_id=blob.id)
    assert store.send(memory, again).id == blob.id
    store.send(memory, PutChunk(blob.chunks[0], memoryview(LARGE)))
    store.send(memory, CommitWrite(scope, "key", blob.id, None, blob, if_none_match=True))

    with pytest.raises(ConflictError) as caught:
        store.send(memory, again)
    assert caught.value.code == "blob_gone"


def test_an_upload_that_goes_on_is_refused_when_it_is_renewed(memory: Any, store: Any, scope: Scope) -> None:
    place = PrepareWrite(scope, "key", len(LARGE), if_match=memory.app_state.set("key", b"1").etag)
    blob = store.send(memory, place)
    store.send(memory, Delete(scope, "key", uuid7()))

    with pytest.raises(ConflictError) as caught:
        store.send(memory, place._replace(write_id=blob.id))
    assert (caught.value.code, caught.value.found) == ("condition_failed", None)


@pytest.mark.parametrize("conditions", [{"if_match": " "}, {"if_match": "1-a", "if_none_match": True}])
def test_conditions_that_make_no_sense_are_refused(memory: Any, store: Any, scope: Scope, conditions: Any) -> None:
    with pytest.raises(InvalidRequestError):
        store.send(memory, PrepareWrite(scope, "key", len(LARGE), **conditions))
