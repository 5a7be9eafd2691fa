"""A memory as LangGraph's store: what its interface promises, on every backend and with each face."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.base.batch import AsyncBatchedBaseStore
from pydantic import BaseModel, Field, RootModel, field_validator, model_validator

from agent_memory import (
    AgentMemory,
    InvalidKeyError,
    InvalidRequestError,
    LimitExceededError,
    SerializationError,
    UnavailableError,
)
from agent_memory.messages import Batch, CommitWrite
from agent_memory.operations import Parents
from agent_memory_langchain import AgentMemoryStore
from tests.support.blocking import unwrap
from tests.support.faults import Between, Meddling, put_between
from tests.support.langgraph import Faced
from tests.support.models import Profile, Upgraded
from tests.support.stores import Store, TimedStore

USER = ("user", "123")


@pytest.fixture
def faced(memory: Any, store: Store) -> Faced:
    return Faced(memory, store)


@pytest.fixture
def open_store(memory: Any, store: Store) -> Callable[..., Faced]:
    return lambda **options: Faced(memory, store, **options)


def keys(items: list[Any]) -> list[str]:
    return [item.key for item in items]


# -- the class -------------------------------------------------------------------------------------------------------


def test_it_is_a_store_that_is_never_false_and_never_coalesces() -> None:
    with AgentMemory("memory://", application="test") as memory:
        store = AgentMemoryStore(memory)
        assert isinstance(store, BaseStore)
        assert not isinstance(store, AsyncBatchedBaseStore)
        assert not hasattr(store, "__len__")
        assert bool(store)


def test_it_takes_either_face_of_a_memory() -> None:
    with AgentMemory("memory://", application="test") as memory:
        AgentMemoryStore(memory.aio).put(USER, "k", {"a": 1})
        item = AgentMemoryStore(memory).get(USER, "k")
        assert item is not None
        assert item.value == {"a": 1}


# -- items and documents ---------------------------------------------------------------------------------------------


def test_an_item_is_the_document_of_the_entity(faced: Faced) -> None:
    faced.put(USER, "profile", {"name": "Ada", "weight_kg": 61.5, "goals": ["5k"]})
    profile = faced.memory.entity("user", "123").document(Profile)

    assert profile.get() == Profile(name="Ada", weight_kg=61.5, goals=["5k"])

    profile.set(Profile(name="Grace"))
    assert faced.get(USER, "profile").value == {"name": "Grace", "weight_kg": 0.0, "goals": []}


@pytest.mark.parametrize(
    ("namespace", "key"),
    [
        (("user", "a/b"), "c/d"),
        (("user", "100%"), "50%2F"),
        (("user", "%2F"), "%25"),
        (("user", "ünï © 漢字 🏃"), "ключ"),
        (("user", "x" * 500), "y" * 500),
        (("user", "*"), "?[a-z]"),
        (("user", " "), "a.b@example.com"),
        (("user", "'; DROP TABLE entry; --"), '"'),
        (("a",), "only one label"),
    ],
)
def test_any_label_and_key_is_kept_apart_from_any_other(faced: Faced, namespace: tuple[str, ...], key: str) -> None:
    faced.put(namespace, key, {"mine": True})

    assert faced.get(namespace, key).value == {"mine": True}
    [found] = faced.search(namespace)
    assert (found.namespace, found.key) == (namespace, key)
    assert faced.list_namespaces() == [namespace]
    assert faced.list_namespaces(prefix=namespace) == faced.list_namespaces(suffix=namespace) == [namespace]
    if len(namespace) == 2:
        prefix = unwrap(faced.memory).entity(*namespace).prefix
        assert next(iter(faced.memory.app_state.keys(prefix))).startswith(prefix)

    faced.delete(namespace, key)
    assert faced.get(namespace, key) is None
    assert faced.search(()) == []


def test_an_id_with_a_dot_is_found_but_not_addressed(faced: Faced) -> None:
    faced.memory.entity("user", "ada@example.com").document(Profile).set(Profile(name="Ada"))

    [found] = faced.search(("user",))
    assert (found.namespace, found.key) == (("user", "ada@example.com"), "profile")
    assert faced.list_namespaces(prefix=("user",)) == [("user", "ada@example.com")]
    with pytest.raises(InvalidNamespaceError):
        faced.get(("user", "ada@example.com"), "profile")


def test_no_key_of_the_application_passes_for_an_item_of_another_name(faced: Faced) -> None:
    faced.put(("a/b%",), "k", {"n": 1})
    faced.memory.app_state.set("a%2Fb%/k", {"n": 2})

    assert {item.namespace: item.value["n"] for item in faced.search(())} == {("a/b%",): 1, ("a%2Fb%",): 2}


def test_only_json_objects_with_a_namespace_are_items(faced: Faced) -> None:
    state = faced.memory.app_state
    state.set("user/123/bytes", b"{}")
    state.set("user/123/list", [1])
    state.set("user/123/pickle", {"a": (1,)})
    state.set("user/123/large", [0] * 100_000)
    state.set("top", {"a": 1})
    state.set("user/123/item", {"a": 1})
    state.set("other/list", [1])

    assert keys(faced.search(())) == ["item"]
    assert keys(faced.search((), limit=1)) == ["item"]
    assert faced.list_namespaces() == [USER]
    assert [faced.get(USER, key) for key in ("bytes", "list", "pickle", "large")] == [None] * 4
    assert faced.batch([GetOp((), "top"), PutOp((), "top", None)]) == [None, None]
    assert state.get("top") == {"a": 1}


def test_a_search_of_everything_pages_past_what_is_no_item(faced: Faced) -> None:
    for number in range(12):
        faced.memory.app_state.set(f"top-{number}", {"a": 1})
        faced.put(USER, f"{number:02}", {"a": number})

    expected = [f"{number:02}" for number in reversed(range(12))]
    assert keys(faced.search((), limit=100)) == expected
    assert [key for offset in range(0, 12, 5) for key in keys(faced.search((), limit=5, offset=offset))] == expected


def test_what_is_no_json_is_put_as_json_or_refused(faced: Faced) -> None:
    faced.put(USER, "k", {"when": datetime(2026, 1, 2, tzinfo=UTC), "pair": (1, 2)})
    assert faced.get(USER, "k").value == {"when": "2026-01-02T00:00:00Z", "pair": [1, 2]}

    for value in ({"a": object()}, {"a": float("nan")}, {"a": "\ud800"}):
        with pytest.raises(SerializationError):
            faced.put(USER, "k", value)
    for value in ([1], "text", 7):
        with pytest.raises(InvalidRequestError):
            faced.put(USER, "k", value)


def test_a_large_item_is_found_whole(faced: Faced) -> None:
    large = {"text": "x" * 300_000, "sport": "run"}
    faced.put(USER, "large", large)

    assert faced.get(USER, "large").value == large
    assert faced.search(USER, filter={"sport": "run"})[0].value == large


def test_creation_time_survives_updates_and_times_are_in_utc(faced: Faced) -> None:
    faced.put(USER, "k", {"n": 1})
    first = faced.get(USER, "k")
    faced.put(USER, "k", {"n": 2})
    second = faced.get(USER, "k")

    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at
    assert second.created_at.tzinfo is UTC
    [found] = faced.search(USER)
    assert (found.created_at, found.updated_at) == (second.created_at, second.updated_at)
    faced.delete(USER, "k")
    faced.put(USER, "k", {"n": 3})
    assert faced.get(USER, "k").created_at > second.updated_at


def test_keys_that_cannot_be_are_refused(faced: Faced) -> None:
    for key in ("", "x" * 2_048, "nul\0"):
        with pytest.raises(InvalidKeyError):
            faced.put(USER, key, {"a": 1})
    for namespace in ("user", (), ("a", ""), ("a.b",), ("a", 1), ("nul\0",), ("langgraph", "x")):
        with pytest.raises(InvalidNamespaceError):
            faced.put(namespace, "k", {"a": 1})


NO_LABELS = ["user", ("a", ""), ("a.b",), ("a", 1)]


@pytest.mark.parametrize(
    "operation",
    [
        *(GetOp(labels, "k") for labels in NO_LABELS),  # type: ignore[arg-type]
        *(SearchOp(labels) for labels in NO_LABELS),  # type: ignore[arg-type]
        *(ListNamespacesOp((MatchCondition("prefix", labels),)) for labels in NO_LABELS[1:]),  # type: ignore[arg-type]
        *(PutOp(labels, "k", {"a": 1}) for labels in [(), *NO_LABELS]),  # type: ignore[arg-type]
    ],
)
def test_labels_that_cannot_be_are_refused_in_operations_too(faced: Faced, operation: Any) -> None:
    with pytest.raises(InvalidNamespaceError):
        faced.batch([operation])


def test_namespaces_may_be_lists(faced: Faced) -> None:
    faced.put(["user", "123"], "k", {"a": 1})
    assert faced.get(["user", "123"], "k").namespace == USER
    assert keys(faced.search(["user"])) == ["k"]


# -- batches ---------------------------------------------------------------------------------------------------------


def test_reads_of_a_batch_see_what_was_before_it(faced: Faced) -> None:
    faced.put(USER, "old", {"n": 0})
    results = faced.batch(
        [
            PutOp(USER, "new", {"n": 1}),
            GetOp(USER, "new"),
            PutOp(USER, "old", None),
            GetOp(USER, "old"),
            SearchOp(USER),
            ListNamespacesOp(),
            PutOp(("other",), "k", {"n": 1}),
        ]
    )
    assert results[0] is results[1] is results[2] is results[6] is None
    assert results[3].value == {"n": 0}
    assert keys(results[4]) == ["old"]
    assert results[5] == [USER]
    assert keys(faced.search(())) == ["k", "new"]


def test_of_several_puts_the_last_applies(faced: Faced) -> None:
    faced.batch([PutOp(USER, "a", {"n": 1}), PutOp(USER, "a", {"n": 2}), PutOp(USER, "b", {"n": 1}),
                 PutOp(USER, "b", None), PutOp(USER, "c", None), PutOp(USER, "c", {"n": 3})])  # fmt: skip
    assert {item.key: item.value["n"] for item in faced.search(USER)} == {"a": 2, "c": 3}

    faced.batch([PutOp(USER, "a", {"n": 4}), PutOp(USER, "c", {"n": 5}), PutOp(USER, "a", {"n": 6})])
    assert keys(faced.search(USER)) == ["a", "c"]


@pytest.mark.parametrize(
    "bad",
    [
        GetOp(("a.b",), "k"),
        SearchOp(USER, filter={"a": {"$regex": "x"}}),
        SearchOp(USER, limit=-1),
        SearchOp(USER, offset=-1),
        ListNamespacesOp(match_conditions=(MatchCondition("infix", ("a",)),)),  # type: ignore[arg-type]
        ListNamespacesOp(limit=-1),
        ListNamespacesOp(offset=-1),
        ListNamespacesOp(max_depth=0),
        PutOp(USER, "k", {"a": object()}),
        PutOp(USER, "", {"a": 1}),
        PutOp(USER, "k", {"a": 1}, ttl=0),
        "no operation",
    ],
    ids=["label", "operator", "limit", "offset", "match", "names", "start", "depth", "value", "key", "ttl", "type"],
)
def test_a_batch_with_something_wrong_changes_nothing(faced: Faced, bad: Any) -> None:
    with pytest.raises((ValueError, SerializationError)):
        faced.batch([PutOp(USER, "good", {"n": 1}), bad, PutOp(USER, "better", {"n": 1})])

    assert faced.search(()) == []


def test_a_batch_is_one_message(memory: Any, faced: Faced) -> None:
    faced.put(USER, "old", {"n": 0})
    transport = put_between(memory, Between)
    faced.batch([GetOp(USER, "old"), SearchOp(("user",)), *(PutOp(USER, f"{n}", {"n": n}) for n in range(100))])

    assert len(transport.sent) == 1
    faced.get(USER, "old")
    faced.search(USER, filter={"n": 7})
    faced.list_namespaces()
    assert len(transport.sent) == 4


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (ListNamespacesOp(), [USER]),
        (ListNamespacesOp(match_conditions=(MatchCondition("prefix", ("user",)),), limit=1_000), [USER]),
        (ListNamespacesOp(match_conditions=(MatchCondition("prefix", USER), MatchCondition("prefix", ("*",)))), [USER]),
        (ListNamespacesOp(limit=3, offset=1), []),
        (ListNamespacesOp(match_conditions=(MatchCondition("suffix", ("*", USER[-1])),)), [USER]),
        (ListNamespacesOp(match_conditions=(MatchCondition("prefix", ("*", USER[-1])),)), [USER]),
        (ListNamespacesOp(max_depth=1), [USER[:1]]),
    ],
    ids=["all", "prefix", "two conditions", "offset", "suffix", "any label", "depth"],
)
def test_a_batch_of_puts_and_a_listing_is_one_message_too(
    memory: Any, faced: Faced, listing: ListNamespacesOp, expected: list[Any]
) -> None:
    faced.put(USER, "old", {"n": 0})
    transport = put_between(memory, Between)
    results = faced.batch([PutOp((*USER, "new"), "k", {"n": 1}), PutOp(USER, "old", None), listing])

    assert results == [None, None, expected]
    assert len(transport.sent) == 1
    assert faced.list_namespaces() == [(*USER, "new")]


def test_a_batch_of_puts_and_a_search_of_the_whole_store_is_one_message_too(memory: Any, faced: Faced) -> None:
    faced.put(USER, "old", {"n": 0})
    faced.put(USER, "older", {"n": 0})
    faced.memory.app_state.set("top", {"n": 0})
    transport = put_between(memory, Between)
    *_, found = faced.batch([PutOp(USER, "new", {"n": 0}), SearchOp((), filter={"n": 0}, offset=1)])

    assert keys(found) == ["old"]
    assert len(transport.sent) == 1


@pytest.mark.parametrize("listing", [ListNamespacesOp(max_depth=1, limit=2_000), ListNamespacesOp(limit=1_002)])
def test_no_page_of_a_listing_sees_a_put_of_its_batch(faced: Faced, listing: ListNamespacesOp) -> None:
    names = [f"{n:04}" for n in range(1_001)]
    faced.batch([PutOp((name,), "k", {"n": 1}) for name in names])
    *_, listed = faced.batch([PutOp(("x",), "k", {"n": 1}), PutOp(("1000",), "k", None), listing])

    assert listed == [(name,) for name in names]


def test_an_empty_batch_sends_nothing(memory: Any, faced: Faced) -> None:
    transport = put_between(memory, Between)
    assert faced.batch([]) == []
    assert faced.search(USER, limit=0) == []
    assert transport.sent == []


def test_a_time_to_live_that_cannot_be_is_found_before_a_transaction_is_sent(faced: Faced) -> None:
    with pytest.raises(InvalidRequestError):
        faced.batch([*(PutOp(USER, f"{n}", {"n": n}) for n in range(1_000)), PutOp(USER, "k", {"n": 1}, ttl=0)])

    assert faced.search(USER) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl": {"defaultttl": 5}},
        {"ttl": {"default_ttl": "5"}},
        {"ttl": {"default_ttl": 0}},
        {"ttl": 5},
        {"schemas": [Profile]},
        {"schemas": {"user": {"profile": Profile}}},
        {"schemas": {("user", "*"): {"profile": dict}}},
        {"schemas": {("user", "*"): Profile}},
        {"schemas": {("user", 5): {"profile": Profile}}},
        {"schemas": {(): {"profile": Profile}}},
    ],
)
def test_a_configuration_that_would_do_nothing_is_refused(wrong: Any) -> None:
    with AgentMemory("memory://", application="fitness") as memory, pytest.raises(InvalidRequestError):
        AgentMemoryStore(memory, **wrong)


def test_a_time_to_live_that_is_no_number_is_refused(faced: Faced) -> None:
    with pytest.raises(InvalidRequestError):
        faced.batch([PutOp(USER, "k", {"n": 1}, ttl="5")])  # type: ignore[arg-type]


def test_batches_and_pages_may_be_longer_than_a_transaction(faced: Faced) -> None:
    faced.batch([PutOp(("n", f"{n:04}"), "k", {"n": n}) for n in range(1_203)])

    assert len(faced.search(("n",), limit=5_000)) == 1_203
    assert len(faced.search((), limit=1_100, offset=150)) == 1_053
    assert faced.list_namespaces(limit=2_000, offset=1_100) == [("n", f"{n:04}") for n in range(1_100, 1_203)]
    assert faced.list_namespaces(limit=2_000, offset=2) == [("n", f"{n:04}") for n in range(2, 1_203)]
    found = faced.batch([GetOp(("n", f"{n:04}"), "k") for n in range(1_203)])
    assert [item.value["n"] for item in found] == list(range(1_203))


def test_a_batch_of_many_large_values_gives_what_single_reads_give(faced: Faced) -> None:
    names = [f"{n:02}" for n in range(20)]
    faced.batch([PutOp(USER, name, {"text": name * 150_000}) for name in names])

    found = faced.batch([GetOp(USER, name) for name in names * 10])

    assert found == [faced.get(USER, name) for name in names] * 10


def test_reads_that_find_more_than_a_transaction_may_take_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AgentMemory(tmp_path / "store.db", application="test") as memory:
        store = AgentMemoryStore(memory)
        store.batch([PutOp(USER, f"{n}", {"n": n, "text": "x" * 10_000}) for n in range(10)])
        searches = [SearchOp(USER, filter={"n": {"$gte": n}}) for n in range(10)]
        expected = [store.search(USER, filter={"n": {"$gte": n}}) for n in range(10)]
        monkeypatch.setattr("agent_memory.storage.finding.READ_LIMIT", 150_000)

        assert asyncio.run(store.abatch(searches)) == expected
        assert store.batch([PutOp(USER, "10", {"n": 10}), *searches]) == [None, *expected]
        assert store.get(USER, "10") is not None


def test_a_batch_whose_puts_are_too_much_writes_nothing(faced: Faced, memory: Any) -> None:
    def refuse(message: Any) -> None:
        if isinstance(message, Batch) and any(isinstance(one, CommitWrite) for one in message.operations):
            raise LimitExceededError("too much")

    transport = put_between(memory, partial(Meddling, act=refuse))

    with pytest.raises(LimitExceededError):
        faced.batch([PutOp(USER, "a", {"n": 1}), PutOp(USER, "b", {"n": 2}), GetOp(USER, "c"), GetOp(USER, "d")])

    reads, writes = 2, 2
    assert [len(message.operations) for message in transport.sent] == [reads + writes, reads, writes]
    assert faced.search(USER) == []


# -- search ----------------------------------------------------------------------------------------------------------


def test_a_prefix_matches_whole_labels(faced: Faced) -> None:
    for namespace in (("a",), ("a", "b"), ("ab",), ("a b",), ("A",), ("a%",), ("a", "bc")):
        faced.put(namespace, "k", {"in": "/".join(namespace)})

    assert {item.value["in"] for item in faced.search(("a",))} == {"a", "a/b", "a/bc"}
    assert {item.value["in"] for item in faced.search(("a", "b"))} == {"a/b"}
    assert {item.value["in"] for item in faced.search(("a%",))} == {"a%"}
    assert len(faced.search(())) == 7


def test_the_newest_change_comes_first_and_pages_fit_together(faced: Faced) -> None:
    for number in range(25):
        faced.put(USER, f"{number:02}", {"n": number})
    faced.put(USER, "07", {"n": 7})

    expected = ["07", *(f"{n:02}" for n in reversed(range(25)) if n != 7)]
    assert [key for offset in range(0, 25, 4) for key in keys(faced.search(USER, limit=4, offset=offset))] == expected


def test_pages_of_a_large_namespace_are_its_newest_items_in_order(faced: Faced) -> None:
    names = [f"{number * 7_919 % 1_200:04}" for number in range(1_200)]
    for start in range(0, 1_200, 300):
        faced.batch([PutOp(USER, name, {"a": 1}) for name in names[start : start + 300]])
    faced.batch([PutOp(USER, name, None) for name in names[5:1_200:100]])
    faced.batch([PutOp(USER, name, {"a": 2}) for name in names[8:400:40]])

    items = [item for item in faced.batch([GetOp(USER, name) for name in names[:1_000]]) if item is not None]
    items += [item for item in faced.batch([GetOp(USER, name) for name in names[1_000:]]) if item is not None]
    expected = keys(sorted(items, key=lambda item: (-item.updated_at.timestamp(), item.key)))
    assert len(expected) == 1_188
    for offset, limit in ((0, 10), (7, 10), (190, 10), (195, 30), (900, 400)):
        assert keys(faced.search(USER, limit=limit, offset=offset)) == expected[offset : offset + limit]


def test_items_from_before_1970_are_found_in_a_large_namespace(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "old.db", application="old") as memory:
        store = AgentMemoryStore(memory)
        for start in range(0, 1_200, 600):
            store.batch([PutOp(USER, f"{number:04}", {"n": number}) for number in range(start, start + 600)])
        state_keys = [f"user/123/{number:04}" for number in range(1_200)]
        long_ago = datetime(1960, 1, 1, tzinfo=UTC)
        memory.set_times(dict.fromkeys(state_keys, (long_ago, long_ago)))

        assert len(store.search(USER, limit=300)) == 300
        assert len(store.search(USER, limit=300, offset=1_000)) == 200


def test_pages_skip_what_is_no_item_wherever_it_stands(faced: Faced) -> None:
    for number in range(12):
        faced.put(USER, f"{number:02}", {"n": number})
        faced.memory.app_state.set(f"user/123/other {number}", [b"{}", [1], {"a": (1,)}][number % 3])

    expected = [f"{number:02}" for number in reversed(range(12))]
    assert [key for offset in range(0, 12, 5) for key in keys(faced.search(USER, limit=5, offset=offset))] == expected


def test_pages_skip_what_is_no_item_before_them(faced: Faced) -> None:
    for number in range(6):
        faced.put(USER, str(number), {"n": number})
    faced.memory.app_state.set("user/123/other", [0] * 100_000)
    assert keys(faced.search(USER, limit=2, offset=2)) == ["3", "2"]


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"n": 1}, "a"),
        ({"n": 1.0}, "a"),
        ({"n": {"$gt": 9}}, "bd"),
        ({"n": {"$gte": 10, "$lt": 100}}, "b"),
        ({"n": {"$ne": 1}}, "bcd"),
        ({"n": {"$in": [1, 10]}}, "ab"),
        ({"flag": True}, "a"),
        ({"flag": 1}, ""),
        ({"nested": {"deep": {"x": 1}}}, "b"),
        ({"nested.deep.x": 1}, "b"),
        ({"nested.deep.x": {"$gt": 0}}, "b"),
        ({"nested": {"$eq": {"deep": {"x": {"$gt": 0}}}}}, ""),
        ({"nested": {"deep": {"x": {"$gt": 0}}}}, None),
        ({"tags": [{"$gt": "a"}]}, None),
        ({"dotted.key": "literal"}, "c"),
        ({"tags": ["x", "y"]}, "a"),
        ({"none": None}, "c"),
        ({"missing": None}, ""),
        ({"missing": {"$ne": 1}}, ""),
        ({"$or": [{"n": 1}, {"n": 10}]}, "ab"),
        ({"$and": [{"n": {"$gt": 1}}, {"n": {"$lt": 50}}]}, "b"),
        ({"text": 'it\'s "quoted" \\ 漢字'}, "d"),
        ({'"; DROP TABLE entry; --': 1}, ""),
        ({"x' OR '1'='1": "x' OR '1'='1"}, ""),
        ({"n') = 1 OR ('1": 1}, ""),
        ({"$.n": 1}, None),
        ({"n": {"$where": "1"}}, None),
        ({"n": {"$gt": 1, "x": 2}}, None),
        ({"$nor": []}, None),
        ({"nested": {"deep": [{1, 2}]}}, None),
        ({"nested": ENDLESS}, None),
        ({"when": datetime(2026, 1, 2, tzinfo=UTC)}, None),
        ({"nested": {1: 2}}, None),
    ],
    ids=str,
)
def test_filters(faced: Faced, filter: dict[str, Any], expected: str | None) -> None:
    faced.put(USER, "a", {"n": 1, "flag": True, "tags": ["x", "y"]})
    faced.put(USER, "b", {"n": 10, "nested": {"deep": {"x": 1, "y": 2}}})
    faced.put(USER, "c", {"n": "1", "dotted.key": "literal", "none": None})
    faced.put(USER, "d", {"n": 100, "text": 'it\'s "quoted" \\ 漢字'})

    if expected is None:
        with pytest.raises(ValueError, match=r"."):
            faced.search(USER, filter=filter)
    else:
        assert sorted(keys(faced.search(USER, filter=filter))) == list(expected)


def test_values_that_look_like_binary_json_are_filtered_too(faced: Faced) -> None:
    # The first byte of an object, {, would be a header of SQLite's binary JSON for exactly eight bytes.
    faced.put(USER, "k", {"a": 12})
    assert keys(faced.search(USER, filter={"a": 12})) == ["k"]


def test_a_row_that_is_no_json_fails_no_search(faced: Faced, store: Store) -> None:
    from agent_memory.ids import uuid7
    from agent_memory.messages import JSON, CommitWrite, Scope

    scope = Scope(faced.memory.namespace, faced.memory.application)
    for number, data in enumerate([b'{"n": ', b'{"n": NaN}', b"{]"]):
        store.send(faced.memory, CommitWrite(scope, f"user/123/bad-{number}", uuid7(), data, None, JSON))
    faced.put(USER, "good", {"n": 1})

    assert keys(faced.search(USER)) == ["good"]
    assert keys(faced.search(USER, filter={"n": 1})) == ["good"]


@pytest.mark.parametrize(
    "text", ["run", "a/b", "*?[x]", "50% [*", 'say "hi"', "back\\slash", "tab\there", "漢字 😀", "x" * 2_000]
)
def test_a_text_is_found_however_its_json_is_written(faced: Faced, store: Store, text: str) -> None:
    from agent_memory.ids import uuid7
    from agent_memory.messages import JSON, CommitWrite, Scope

    scope = Scope(faced.memory.namespace, faced.memory.application)
    units = text.encode("utf-16-be")
    escaped = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    spellings = [
        json.dumps(text),
        json.dumps(text, ensure_ascii=False),
        f'"{escaped}"',
        json.dumps(text).replace("/", "\\/"),
    ]
    for number, spelling in enumerate(spellings):
        data = f'{{"n": 1, "text": {spelling}}}'.encode()
        store.send(faced.memory, CommitWrite(scope, f"user/123/{number}", uuid7(), data, None, JSON))
    faced.put(USER, "other", {"n": 1, "text": "other", "beside": text[:-1]})

    wanted = [str(number) for number in range(len(spellings))]
    for filter in ({"text": text}, {"n": 1, "text": {"$in": ["nothing", text]}}, {"$or": [{"text": text}, {"n": "x"}]}):
        assert sorted(keys(faced.search(USER, filter=filter))) == wanted


# -- namespaces ------------------------------------------------------------------------------------------------------


def test_namespaces_are_listed_by_prefix_suffix_and_depth(faced: Faced) -> None:
    spaces = [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "bc"), ("users", "1"), ("x", "b")]
    for namespace in spaces:
        faced.put(namespace, "k", {"a": 1})

    assert faced.list_namespaces() == spaces
    assert faced.list_namespaces(prefix=("a", "b")) == spaces[:3]
    assert faced.list_namespaces(prefix=("a", "*", "d")) == spaces[1:3]
    assert faced.list_namespaces(suffix=("b",)) == [("x", "b")]
    assert faced.list_namespaces(suffix=("d", "*")) == spaces[1:3]
    assert faced.list_namespaces(prefix=("a",), suffix=("i",)) == [("a", "b", "d", "i")]
    assert faced.list_namespaces(max_depth=2) == [("a", "b"), ("a", "bc"), ("users", "1"), ("x", "b")]
    assert faced.list_namespaces(suffix=("i",), max_depth=2) == [("a", "b")]
    assert faced.list_namespaces(prefix=("a", "b"), max_depth=3, limit=1, offset=1) == [("a", "b", "d")]
    assert faced.list_namespaces(limit=2, offset=4) == spaces[4:]
    assert faced.list_namespaces(limit=0) == []


def test_a_namespace_within_another_one_is_listed_too(faced: Faced) -> None:
    spaces = [("a",), ("a", "b"), ("a", "b", "c")]
    for namespace in spaces:
        faced.put(namespace, "a", {"a": 1})
    assert faced.list_namespaces() == spaces
    assert faced.list_namespaces(max_depth=2) == spaces[:2]
    assert faced.memory.app_state.batch([Parents("a/b")]) == [["a/b/", "a/b/c/"]], "a/a is not below that prefix"


def test_a_namespace_without_items_is_gone(faced: Faced) -> None:
    faced.put(("a", "b"), "k", {"a": 1})
    faced.put(("a", "b", "c"), "k", {"a": 1})
    faced.delete(("a", "b"), "k")
    assert faced.list_namespaces() == [("a", "b", "c")]


# -- time to live ----------------------------------------------------------------------------------------------------


def test_time_to_live_is_in_minutes_and_reads_restart_it(timed: TimedStore) -> None:
    faced = Faced(timed.open(), timed, ttl={"default_ttl": 10})
    faced.put(USER, "short", {"n": 1}, ttl=0.4)
    faced.put(USER, "default", {"n": 1})
    faced.put(USER, "never", {"n": 1}, ttl=None)
    faced.put(("brief",), "k", {"n": 1}, ttl=0.4)

    timed.clock.advance(seconds=23)
    assert faced.get(USER, "short") is not None
    timed.clock.advance(seconds=23)
    assert keys(faced.search(USER, filter={"n": 1})) == ["default", "never", "short"]
    assert faced.list_namespaces() == [USER]
    timed.clock.advance(seconds=23)
    assert faced.get(USER, "short", refresh_ttl=False) is not None
    timed.clock.advance(seconds=2)
    assert faced.get(USER, "short") is None
    timed.clock.advance(seconds=600)
    assert keys(faced.search(USER)) == ["never"]


def test_reads_restart_nothing_if_the_configuration_says_so(timed: TimedStore) -> None:
    faced = Faced(timed.open(), timed, ttl={"default_ttl": 1, "refresh_on_read": False})
    faced.put(USER, "k", {"n": 1})
    timed.clock.advance(seconds=40)
    assert faced.get(USER, "k") is not None
    assert faced.search(USER)
    timed.clock.advance(seconds=40)
    assert faced.get(USER, "k") is None


# A server refuses integers of more than 64 bits.
@pytest.mark.parametrize("store", ["embedded-sync", "postgres_files-sync"], indirect=True)
@pytest.mark.parametrize("number", [2**53 + 1, 2**63, -(2**70), 10**400, 1e300])
def test_numbers_of_any_size_are_compared(faced: Faced, number: float) -> None:
    faced.put(USER, "k", {"n": number})
    faced.put(USER, "other", {"n": number / 2 if isinstance(number, float) else number - 1})

    assert keys(faced.search(USER, filter={"n": number})) == ["k"]
    assert keys(faced.search(USER, filter={"n": {"$gte": number}, "$or": [{"n": number}, {"n": "text"}]})) == ["k"]


def test_a_filter_may_only_be_so_large(faced: Faced) -> None:
    deep: dict[str, Any] = {"n": 1}
    for _ in range(17):
        deep = {"$and": [deep]}
    for filter in (deep, {f"n{n}": 1 for n in range(101)}, {"$or": [{"n": 1}] * 51}, {"n" * 1_025: 1}):
        with pytest.raises(InvalidRequestError):
            faced.search((), filter=filter)


def test_what_was_put_at_the_same_time_stands_in_the_order_of_its_keys_on_every_page(timed: TimedStore) -> None:
    faced = Faced(timed.open(), timed)
    names = [f"{n:02}" for n in range(40)]
    for name in [*names[1::2], *names[-2::-2]]:
        faced.put(("a", name), "k", {"n": 1})

    for filter in (None, {"n": 1}):
        pages = [faced.search(("a",), filter=filter, limit=7, offset=start) for start in range(0, 40, 7)]
        assert [item.namespace[1] for page in pages for item in page] == names


def test_a_put_without_time_to_live_takes_it_away(timed: TimedStore) -> None:
    faced = Faced(timed.open(), timed)
    faced.put(USER, "k", {"n": 1}, ttl=1)
    faced.put(USER, "k", {"n": 2})
    timed.clock.advance(seconds=100)
    assert faced.get(USER, "k").value == {"n": 2}


def test_behind_a_server_there_is_nothing_to_sweep(server: Any) -> None:
    with AgentMemory(server.url, application="sweeping") as memory:
        assert AgentMemoryStore(memory, ttl={"default_ttl": 1}).sweep_ttl() == 0


def test_a_sweeper_without_a_pause_is_refused() -> None:
    with AgentMemory("memory://", application="test") as memory:
        store = AgentMemoryStore(memory, ttl={"sweep_interval_minutes": -1})
        with pytest.raises(InvalidRequestError, match="sweep_interval_minutes is a number of minutes above 0"):
            store.start_ttl_sweeper()
        assert store.stop_ttl_sweeper()


def test_a_sweeper_that_is_slow_to_stop_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AgentMemoryStore(AgentMemory("memory://", application="test"), ttl={"default_ttl": 1})
    begun, go_on, swept = threading.Event(), threading.Event(), threading.Event()

    def sweep() -> int:
        begun.set()
        go_on.wait(10)
        if threading.current_thread() is not slow:
            swept.set()
        return 0

    monkeypatch.setattr(store, "sweep_ttl", sweep)
    store.start_ttl_sweeper(0.0001)
    slow = store._sweeper
    assert begun.wait(10)
    assert not store.stop_ttl_sweeper(0.01)
    store.start_ttl_sweeper(0.0001)
    go_on.set()
    assert swept.wait(10)
    assert store.stop_ttl_sweeper(10)


def test_the_sweeper_sweeps_until_it_is_stopped(tmp_path: Any) -> None:
    with AgentMemory(tmp_path / "memory.db", application="test") as memory:
        store = AgentMemoryStore(memory, ttl={"sweep_interval_minutes": 1})
        assert AgentMemoryStore(memory).start_ttl_sweeper().done()
        store.put(USER, "k", {"n": 1}, ttl=0.0001)
        future = store.start_ttl_sweeper(sweep_interval_minutes=0.0001)
        assert store.stop_ttl_sweeper(5)
        assert future.done()
        assert store.stop_ttl_sweeper()
        assert store.start_ttl_sweeper().cancel()
        assert store.stop_ttl_sweeper(5)
        assert store.sweep_ttl() in (0, 1)


def test_a_sweeper_goes_on_after_a_failure_until_its_future_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    store = AgentMemoryStore(AgentMemory("memory://", application="test"), ttl={"sweep_interval_minutes": 0.005})
    failed, swept = threading.Event(), threading.Event()

    def sweep() -> int:
        if failed.is_set():
            swept.set()
            return 0
        failed.set()
        raise UnavailableError("for now")

    monkeypatch.setattr(store, "sweep_ttl", sweep)
    begun = time.monotonic()
    future = store.start_ttl_sweeper()
    assert swept.wait(10)
    assert time.monotonic() - begun >= 2 * 0.3
    assert future.cancel()
    assert store._sweeper is not None
    store._sweeper.join(10)
    assert not store._sweeper.is_alive()


# -- schemas ---------------------------------------------------------------------------------------------------------


class Settings(BaseModel):
    units: str = "metric"
    heart_rate: int = Field(alias="heartRate")


SCHEMAS = {("user", "*"): {"profile": Profile}, ("user", "*", "settings"): {"*": Settings}}


def test_a_put_that_is_not_its_model_is_refused_without_naming_values(open_store: Callable[..., Faced]) -> None:
    faced = open_store(schemas=SCHEMAS)
    with pytest.raises(SerializationError) as caught:
        faced.put(USER, "profile", {"name": ["secret"], "weight_kg": "heavy secret"})

    assert "name: string_type" in str(caught.value)
    assert "weight_kg: float_parsing" in str(caught.value)
    assert "secret" not in repr(caught.value)
    assert caught.value.__context__ is caught.value.__cause__ is None
    for problem in ({}, {"heartRate": object()}, {"heartRate": "\ud800"}):
        with pytest.raises(SerializationError):
            faced.put(("user", "1", "settings"), "any", problem)
    for misspelt in ({"heartRate": 60, "unit": "metric"}, {"heartRate": 60, "heart_rate": 61}):
        with pytest.raises(SerializationError, match=r"Settings has no field (unit|heart_rate)$"):
            faced.put(("user", "1", "settings"), "any", misspelt)
    assert faced.search(()) == []
    faced.put(("user", "1", "other"), "profile", {"name": 1})
    faced.put(("users", "1"), "profile", {"name": 1})


class Places(BaseModel):
    counts: dict[str, int] = {}
    homes: dict[str, Profile] = {}


def test_places_in_errors_and_the_log_name_fields_and_no_keys_of_mappings(
    open_store: Callable[..., Faced], caplog: pytest.LogCaptureFixture
) -> None:
    faced = open_store(schemas={("user", "*"): {"places": Places}})
    wrong = {"counts": {"the secret": "c"}, "homes": {"the secret": {"name": 1}}}
    places = "not a Places: counts.…: int_parsing, homes.….name: string_type"
    with pytest.raises(SerializationError, match=places):
        faced.put(USER, "places", wrong)
    faced.memory.app_state.set("user/123/places", wrong)

    assert faced.get(USER, "places") is not None
    assert [record.getMessage().endswith(places) for record in caplog.records] == [True]


def test_what_an_item_holds_puts_no_line_of_its_own_into_an_error(open_store: Callable[..., Faced]) -> None:
    faced = open_store(schemas={("user", "*"): {"places": Places}})
    with pytest.raises(SerializationError, match=r"a\\n\\x1b\[31mb") as caught:
        faced.put(USER, "places", {"a\n\x1b[31mb": 1})
    assert str(caught.value).isprintable()


def test_a_put_with_a_schema_stores_what_the_typed_document_would(open_store: Callable[..., Faced]) -> None:
    faced = open_store(schemas=SCHEMAS)
    profile = faced.memory.entity("user", "123").document(Profile)
    profile.set(Profile(name="Ada", weight_kg=61))
    typed = profile.raw()
    faced.put(USER, "profile", {"weight_kg": 61, "name": "Ada"})
    stored = profile.raw()

    assert stored.value == typed.value
    assert stored.entry.schema_name == typed.entry.schema_name == "profile"
    faced.put(("user", "1", "settings"), "watch", {"heartRate": 60})
    assert faced.get(("user", "1", "settings"), "watch").value == {"units": "metric", "heartRate": 60}


class Renamed(BaseModel):
    kilograms: float

    @model_validator(mode="before")
    @classmethod
    def _take_the_old_name(cls, data: Any) -> Any:
        return {"kilograms": data["weight"]} if "weight" in data else data


class Part(BaseModel):
    part: str = ""
    free: dict[str, Any] = {}


class Whole(BaseModel):
    one: Part = Part()
    many: list[Part] = []
    named: dict[str, Part] = {}

    @field_validator("one", mode="before")
    @classmethod
    def _take_the_old_name(cls, data: Any) -> Any:
        return {"part": data["old"]} if "old" in data else data


class Wholes(RootModel[dict[str, Whole]]):
    pass


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"one": {"part": "a", "side": "left"}}, "one.side"),
        ({"many": [{"part": "a"}, {"side": "left"}]}, "many.1.side"),
        ({"named": {"knee": {"side": "left"}}}, "named.….side"),
        ({5: 6}, "5"),
    ],
)
def test_a_put_loses_nothing_in_silence_that_stands_deeper_in_it(
    open_store: Callable[..., Faced], value: Any, place: str
) -> None:
    faced = open_store(schemas={("user", "*"): {"whole": Whole, "wholes": Wholes}})
    with pytest.raises(SerializationError, match=rf"Whole has no field {place}$"):
        faced.put(USER, "whole", value)
    with pytest.raises(SerializationError, match=rf"Wholes has no field …\.{place}$"):
        faced.put(USER, "wholes", {"any": value})
    assert faced.search(USER) == []
    faced.put(USER, "wholes", {"any": {"one": {"old": "a"}, "many": [{"free": {"side": {"left": 1}}}]}})
    assert faced.get(USER, "wholes").value["any"]["one"] == {"part": "a", "free": {}}


def test_the_model_of_a_key_goes_before_that_of_all_keys(open_store: Callable[..., Faced]) -> None:
    faced = open_store(schemas={("user", "*"): {"*": Settings, "weight": Renamed}})
    faced.put(USER, "weight", {"kilograms": 61})

    assert faced.get(USER, "weight").value == {"kilograms": 61}
    with pytest.raises(SerializationError):
        faced.put(USER, "other", {"kilograms": 61})


def test_a_model_may_take_fields_under_names_that_only_its_validators_know(open_store: Callable[..., Faced]) -> None:
    faced = open_store(schemas={("user", "*"): {"weight": Renamed}})
    faced.put(USER, "weight", {"weight": 61})

    assert faced.get(USER, "weight").value == {"kilograms": 61}


def test_an_item_on_which_a_validator_fails_is_returned_and_reported(
    open_store: Callable[..., Faced], caplog: pytest.LogCaptureFixture
) -> None:
    open_store().put(USER, "upgraded", {"other": "secret"})
    faced = open_store(schemas={("user", "*"): {"upgraded": Upgraded}})

    with caplog.at_level(logging.WARNING, "agent_memory_langchain"):
        assert [item.value for item in faced.search(USER)] == [{"other": "secret"}]
    assert [record.getMessage() for record in caplog.records] == [
        "item 'upgraded' of ('user', '123') is not a Upgraded: (the value): KeyError"
    ]
    with pytest.raises(SerializationError, match=r"was not put: it is not a Upgraded: \(the value\): KeyError$"):
        faced.put(USER, "upgraded", {"other": "secret"})


def test_an_old_item_that_is_no_longer_its_model_is_returned_and_reported(
    open_store: Callable[..., Faced], caplog: pytest.LogCaptureFixture
) -> None:
    open_store().put(USER, "profile", {"weight_kg": "secret"})
    open_store().put(USER, "fine", {"a": 1})
    faced = open_store(schemas=SCHEMAS)

    with caplog.at_level(logging.WARNING, "agent_memory_langchain"):
        assert {item.key: item.value for item in faced.search(USER)} == {
            "profile": {"weight_kg": "secret"},
            "fine": {"a": 1},
        }
        assert faced.get(USER, "profile").value == {"weight_kg": "secret"}
    assert [record.getMessage() for record in caplog.records] == [
        "item 'profile' of ('user', '123') is not a Profile: weight_kg: float_parsing"
    ] * 2
