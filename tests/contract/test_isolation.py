"""G11 for keys of one name: whatever happens to one, under another application, namespace or request nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent_memory import ConflictError
from agent_memory.messages import CommitWrite, PrepareWrite, PutChunk, Scope
from agent_memory.operations import Delete, Get, Parents, Search, Set
from agent_memory.storage.catalog import Times
from tests.support.stores import TimedStore

KEY = "user/ada/note"
DAYS = 86_400
LARGE = b"x" * 200_000
PLACES = {
    "application": Scope("default", "contract"),
    "another application": Scope("default", "theirs"),
    "another namespace": Scope("other", "contract"),
    "request": Scope("default", "contract", "r-1"),
}


@pytest.fixture
def states(timed: TimedStore) -> Iterator[dict[str, Any]]:
    """The same key with a value, a vector and a time to live in all places."""
    ours = timed.open()
    with ours.request("r-1") as context:
        theirs, others = timed.open(application="theirs"), timed.open(namespace="other")
        states = dict(zip(PLACES, (ours.app_state, theirs.app_state, others.app_state, context.state), strict=True))
        for number, state in enumerate(states.values()):
            state.batch([Set(KEY, {"n": number}, ttl=10 * DAYS, vectors=[[1.0, float(number)]])])
        timed.clock.advance(seconds=1)
        yield states


def seen(state: Any) -> Any:
    """Return all that can be seen of a place."""
    some = {"n": {"$gte": 0}}
    searches = Search("", vector=[1.0, 0.0]), Search("", some), Search("", some, vector=[1.0, 0.0])
    results = state.batch([Get(KEY), *searches, Parents()])
    return [*results, list(state.keys()), [hit.entry.expires_at for hit in results[1]]]


ACTIONS = ["read", "search", "set", "update", "delete", "batch", "set the times", "expire", "forget"]


def act(action: str, timed: TimedStore, state: Any, scope: Scope) -> None:
    """Do something with the key of one place."""
    match action:
        case "read":
            state.batch([Get(KEY, refresh_ttl=True)])
        case "search":
            state.batch([Search("", refresh_ttl=True)])
        case "set":
            state.set(KEY, {"n": 9})
        case "update":
            state.batch([Set(KEY, {"n": 9}, expected=state.snapshot(KEY))])
        case "delete":
            state.delete(KEY)
            assert seen(state) == [None, [], [], [], [], [], []]
        case "batch":
            state.batch([Delete(KEY), Set(KEY, {"n": 9}, vectors=[[0.0, 1.0]])])
        case "set the times":
            timed.service.catalog.set_times(scope, [Times(KEY, 1, 2)])
        case "expire":
            state.batch([Set(KEY, {"n": 9}, ttl=1, vectors=[[1.0, 0.0]])])
            timed.clock.advance(seconds=2)
            assert timed.sweep().expired == 1
        case _:
            state.delete(KEY)
            timed.clock.advance(days=2)
            assert timed.sweep().tombstones == 1


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("place", ["application", "request"])
def test_what_happens_to_a_key_happens_to_no_namesake(
    timed: TimedStore, states: dict[str, Any], place: str, action: str
) -> None:
    mine, others = states[place], [state for name, state in states.items() if name != place]
    before, theirs = seen(mine), [seen(state) for state in others]
    act(action, timed, mine, PLACES[place])

    assert seen(mine) != before
    assert [seen(state) for state in others] == theirs


def test_the_etag_of_a_namesake_matches_nothing(states: dict[str, Any]) -> None:
    before = {name: seen(state) for name, state in states.items()}
    mine, *others = states.values()
    for state in others:
        theirs = state.snapshot(KEY)
        for operation in (Set(KEY, {"n": 9}, expected=theirs), Delete(KEY, expected=theirs)):
            for operations in ([operation], [operation, Set("another", 1)]):
                with pytest.raises(ConflictError):
                    mine.batch(operations)

    assert {name: seen(state) for name, state in states.items()} == before


def test_a_request_that_is_swept_takes_no_namesake_of_its_keys_along(timed: TimedStore, states: dict[str, Any]) -> None:
    request = states.pop("request")
    theirs = [seen(state) for state in states.values()]
    timed.clock.advance(days=8)
    timed.sweep()

    assert list(request.keys()) == []
    assert [seen(state) for state in states.values()] == theirs


@pytest.mark.parametrize("place", list(PLACES)[1:])
def test_an_upload_is_committed_under_no_other_name(timed: TimedStore, states: dict[str, Any], place: str) -> None:
    before = seen(states["application"])
    blob = timed.service.handle(PrepareWrite(PLACES[place], KEY, len(LARGE)))
    timed.service.handle(PutChunk(blob.chunks[0], memoryview(LARGE)))
    with pytest.raises(ConflictError) as refused:
        timed.service.handle(CommitWrite(PLACES["application"], KEY, blob.id, None, blob))

    assert refused.value.code == "blob_gone"
    with pytest.raises(ConflictError):
        timed.service.handle(PrepareWrite(PLACES["application"], KEY, len(LARGE), None, blob.id))
    assert seen(states["application"]) == before
