"""Batches: several operations in one transaction, all or none."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import pytest

from agent_memory import (
    ConflictError,
    InvalidKeyError,
    InvalidRequestError,
    LimitExceededError,
    SerializationError,
    messages,
)
from agent_memory.ids import uuid7
from agent_memory.messages import Batch, CommitWrite, PrepareRead, Scope
from agent_memory.operations import Delete, Get, Parents, Pattern, Search, Set
from tests.support.blocking import unwrap
from tests.support.models import Profile

LARGE = b"x" * 200_000


def test_operations_are_carried_out_in_order(memory: Any) -> None:
    before, first, between, gone, after = memory.app_state.batch(
        [Get("key"), Set("key", 1), Get("key"), Delete("key"), Get("key")]
    )

    assert before is None
    assert between == (1, first)
    assert (gone.version, gone.deleted) == (2, True)
    assert after is None


def test_what_a_batch_sets_has_one_time(memory: Any) -> None:
    entries = memory.app_state.batch([Set(f"item/{name}", {"n": 1}) for name in "cab"])

    assert len({entry.updated_at for entry in entries}) == 1
    assert [hit.entry.key[-1] for hit in memory.app_state.batch([Search("item/")])[0]] == ["a", "b", "c"]


def test_large_and_small_values_go_in_one_batch(memory: Any) -> None:
    memory.app_state.batch([Set("large", LARGE), Set("small", 1), Set("model", Profile(name="Ada"))])
    large, small, model = memory.app_state.batch([Get("large"), Get("small"), Get("model", as_type=Profile)])

    assert (large.value, small.value, model.value) == (LARGE, 1, Profile(name="Ada"))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_failed_condition_undoes_them_all(memory: Any, position: int) -> None:
    memory.app_state.set("there", "old")
    memory.app_state.set("gone", "old")
    operations: list[Any] = [Set("new", 1), Delete("gone")]
    operations.insert(position, Set("there", "new", expected=None))
    with pytest.raises(ConflictError) as caught:
        memory.app_state.batch(operations)

    assert caught.value.current.value == "old"
    assert memory.app_state.get_many(["there", "gone", "new"]) == {"there": "old", "gone": "old"}
    assert memory.app_state.set("new", 1).version == 1


@pytest.mark.parametrize(
    "failing", [Set("gone", 1, expected="1-aa"), Delete("gone", expected="1-aa"), Set("there", 1, expected=None)]
)
def test_a_failed_condition_tells_its_key(memory: Any, failing: Any) -> None:
    memory.app_state.set("there", "old")
    with pytest.raises(ConflictError) as caught:
        memory.app_state.batch([Set("new", 1, expected=None), failing])

    assert caught.value.key == failing.key
    assert str(caught.value).startswith(f"{failing.key!r}: ")


def test_conditions_see_what_came_before_in_the_batch(memory: Any) -> None:
    old = memory.app_state.set("key", "old")
    memory.app_state.batch([Set("key", "new", expected=old)])
    with pytest.raises(ConflictError):
        memory.app_state.batch([Delete("other"), Set("key", "newer", expected=old)])
    with pytest.raises(ConflictError):
        memory.app_state.batch([Set("fresh", 1), Set("fresh", 2, expected=None)])


def test_a_batch_that_holds_what_cannot_be_stored_does_nothing(memory: Any) -> None:
    with pytest.raises(SerializationError):
        memory.app_state.batch([Set("a", 1), Set("b", Profile.model_construct(name=1))])
    with pytest.raises(InvalidKeyError):
        memory.app_state.batch([Set("a", 1), Set("", 1)])

    assert memory.app_state.get("a") is None


def test_a_key_may_be_written_several_times_in_a_batch(memory: Any) -> None:
    memory.app_state.set("key", "old", ttl=3_600)
    state = memory.app_state
    first, gone, created, last = state.batch(
        [Set("key", LARGE), Delete("key"), Set("key", LARGE + b"y"), Set("key", 2)]
    )

    assert [entry.version for entry in (first, gone, created, last)] == [2, 3, 4, 5]
    assert (last.created_us, last.expires_us) == (created.created_us, None)
    assert state.snapshot("key") == (2, last)


def test_a_key_may_be_made_and_deleted_in_a_batch(memory: Any) -> None:
    memory.app_state.batch([Set("key", 1), Delete("key"), Delete("nothing")])

    assert memory.app_state.get("key") is None
    assert list(memory.app_state.keys()) == []
    assert memory.app_state.set("key", 2).version == 3


def test_vectors_go_with_the_value_that_a_batch_leaves(memory: Any) -> None:
    value = {"a": 1}
    memory.app_state.batch([Set("x/1", value, vectors=[[1.0, 0.0]]), Set("x/2", value, vectors=[[1.0, 0.0]])])
    memory.app_state.batch([Set("x/1", value), Set("x/2", value), Set("x/2", value, vectors=[[0.0, 1.0]]), Set("y", 1)])
    scores = {hit.entry.key: hit.score for hit in memory.app_state.search("x/", vector=[0.0, 1.0])}

    assert scores == {"x/1": None, "x/2": pytest.approx(1.0)}


def test_parents_are_chosen_by_patterns_depth_and_place(memory: Any) -> None:
    keys = ["a/b/1", "a/b/2", "a/b/c/1", "a/d/b/1", "a%2Fx/b/1", "ab/1", "b/1", "top"]
    memory.app_state.batch([*(Set(key, {"n": 1}) for key in keys), Set("t/text", "no object"), Set("gone/1", {})])

    def listed(*args: Any, **options: Any) -> list[str]:
        deleted, found = memory.app_state.batch([Delete("gone/1"), Parents(*args, **options)])
        assert deleted is None or deleted.deleted
        return found

    assert listed() == ["a%2Fx/b/", "a/b/", "a/b/c/", "a/d/b/", "ab/", "b/"]
    assert listed("a/") == ["a/b/", "a/b/c/", "a/d/b/"]
    assert listed(patterns=[Pattern(("a",))]) == ["a/b/", "a/b/c/", "a/d/b/"]
    assert listed(patterns=[Pattern((None, "b"))]) == ["a%2Fx/b/", "a/b/", "a/b/c/"]
    assert listed(patterns=[Pattern(("b",), at_end=True)]) == ["a%2Fx/b/", "a/b/", "a/d/b/", "b/"]
    assert listed(patterns=[Pattern(("b", None), at_end=True), Pattern(("a",))]) == ["a/b/c/"]
    assert listed(patterns=[Pattern((None,) * 4)]) == []
    assert listed(depth=1) == ["a%2Fx/", "a/", "ab/", "b/"]
    assert listed(depth=2, patterns=[Pattern(("a",))]) == ["a/b/", "a/d/"]
    assert listed(depth=1, limit=2, offset=1) == ["a/", "ab/"]
    assert listed(after="a/", depth=1, limit=1) == ["ab/"]
    assert listed(after="a/b/", limit=2, offset=1) == ["a/d/b/", "ab/"]


def test_a_key_that_ends_in_a_slash_has_itself_as_its_parent(memory: Any) -> None:
    memory.app_state.batch([Set(key, {"n": 1}) for key in ("b/", "//", "a/x", "c//d")])

    assert memory.app_state.batch([Parents()]) == [["//", "a/", "b/", "c//"]]


def test_parents_are_the_same_however_they_are_looked_for(memory: Any) -> None:
    names = ["", "-", "0", "a", "a-", "a.", "aa", "%2F", "\ud7ff", "\U0010ffff"]
    chance = random.Random(7)
    keys = {"/".join(chance.choices(names, k=chance.randint(2, 5))) for _ in range(80)}
    memory.app_state.batch([Set(key, {"n": 1}) for key in sorted(keys)])
    parents = sorted({key[: key.rindex("/") + 1] for key in keys}, key=str.encode)

    def cut(parent: str, depth: int | None) -> str:
        return "".join(f"{segment}/" for segment in parent.split("/")[:-1][:depth])

    asked: list[Parents] = []
    expected: list[list[str]] = []
    for after, depth, prefix in itertools.product(
        ["", *parents[::4], "a", "0/a"], [None, 1, 2], ["", "a", "a/a", "0/"]
    ):
        asked.append(Parents(prefix, after=after or None, depth=depth))
        under = {key[: key.rindex("/") + 1] for key in keys if key.startswith(prefix)}
        shown = {cut(parent, depth) for parent in under}
        expected.append(sorted((one for one in shown if one > after), key=str.encode))

    assert memory.app_state.batch(asked) == expected


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"after": "\ud800"}, ValueError),
        ({"after": "a\0"}, ValueError),
        ({"offset": 2**53 + 1}, InvalidRequestError),
        ({"limit": 5.5}, InvalidRequestError),
        ({"patterns": [("a",)]}, InvalidRequestError),
        ({"depth": 0}, InvalidRequestError),
        ({"depth": 2**53 + 1}, InvalidRequestError),
        ({"depth": 1.5}, InvalidRequestError),
        ({"depth": "1"}, InvalidRequestError),
        ({"depth": True}, InvalidRequestError),
        ({"offset": -1}, InvalidRequestError),
        ({"limit": 0}, InvalidRequestError),
        ({"patterns": [Pattern(("a",))] * 101}, LimitExceededError),
    ],
    ids=[
        "surrogate", "nul", "far", "part", "no pattern", "depth", "deep", "half", "text", "truth", "offset", "limit",
        "patterns",
    ],
)  # fmt: skip
def test_a_listing_of_parents_that_makes_no_sense_is_refused(memory: Any, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        memory.app_state.batch([Set("key", 1), Parents(**wrong)])

    assert memory.app_state.get("key") is None


def test_a_search_may_leave_out_keys_of_one_segment(memory: Any) -> None:
    memory.app_state.batch([Set(key, {"n": 1}, vectors=[[1.0, 0.0]]) for key in ("top", "a/1", "b/c/1", "z")])
    everything: list[Any] = [Search(""), Search("", {"n": 1}), Search("", vector=[1.0, 0.0])]
    all_hits = memory.app_state.batch(everything)
    nested = memory.app_state.batch([search._replace(nested=True) for search in everything])
    second = memory.app_state.batch([search._replace(nested=True, offset=1) for search in everything])

    assert [sorted(hit.entry.key for hit in hits) for hits in all_hits] == [["a/1", "b/c/1", "top", "z"]] * 3
    assert [sorted(hit.entry.key for hit in hits) for hits in nested] == [["a/1", "b/c/1"]] * 3
    assert second == [hits[1:] for hits in nested]


@pytest.mark.parametrize("wrong", [{"offset": 2**70}, {"offset": -1}, {"offset": 1.5}, {"limit": 2.5}], ids=str)
def test_a_search_at_no_place_is_refused(memory: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError):
        memory.app_state.search("", **wrong)


def test_numbers_that_a_double_rounds_are_found(memory: Any) -> None:
    memory.app_state.set("large", {"n": 2**70 + 1})
    memory.app_state.set("huge", {"n": 10**30})

    # Just below the number and just above it, as doubles.
    assert [hit.entry.key for hit in memory.app_state.search("", filter={"n": {"$gt": 2.0**70, "$lt": 1e25}})] == [
        "large"
    ]
    assert [hit.entry.key for hit in memory.app_state.search("", filter={"n": {"$lt": 1e30, "$gt": 1e25}})] == ["huge"]


def test_a_filter_of_empty_parts_is_too_long_as_well(memory: Any) -> None:
    memory.app_state.set("key", {"n": 1})
    condition: Any = {"n": 1}
    for _ in range(10):
        condition = {"$and": [condition] + [{}] * 20}
    with pytest.raises(InvalidRequestError):
        memory.app_state.search("", filter=condition)


@pytest.mark.parametrize("data", [b' {"n": 1}', b""], ids=["blank", "empty"])
def test_json_that_does_not_begin_as_an_object_is_found_by_no_search(memory: Any, data: bytes) -> None:
    opened = unwrap(memory)
    memory.app_state.set("plain", {"n": 1})
    write = CommitWrite(Scope(opened.namespace, opened.application), "other", uuid7(), data, None, "application/json")
    opened._client.transport().send(write, time.monotonic() + 10)

    assert memory.app_state.search("", offset=1) == []
    assert [hit.entry.key for hit in memory.app_state.search("")] == ["plain"]
    assert [hit.entry.key for hit in memory.app_state.search("", filter={"n": 1})] == ["plain"]


def test_json_with_nan_is_found_whatever_stands_beside_it(memory: Any, store: Any) -> None:
    scope = Scope("default", store.application)
    for key, data in (("nan", b'{"n": 1, "x": NaN}'), ("broken", b'{"n": 1')):
        store.send(memory, CommitWrite(scope, key, uuid7(), data, None, "application/json"))

        assert [hit.found.entry.key for hit in store.send(memory, messages.Search(scope, "", {"n": 1}))] == ["nan"]


def test_a_read_of_a_version_does_not_go_with_a_write(memory: Any) -> None:
    opened = unwrap(memory)
    scope = Scope(opened.namespace, opened.application)
    write = CommitWrite(scope, "key", uuid7(), b"1", None, "application/json")
    transport = opened._client.transport()
    with pytest.raises(InvalidRequestError):
        transport.send(Batch(scope, (write, PrepareRead(scope, "other", version=99))), time.monotonic() + 10)

    assert memory.app_state.get("key") is None


def test_a_batch_does_not_give_another_version_than_the_one_asked_for(memory: Any, store: Any) -> None:
    memory.app_state.set("key", 1)
    scope = Scope("default", store.application)
    reads = (PrepareRead(scope, "key", version=1, max_inline_size=10), PrepareRead(scope, "other"))
    assert store.send(memory, Batch(scope, reads))[0].data == b"1"
    memory.app_state.set("key", 2)
    with pytest.raises(ConflictError) as caught:
        store.send(memory, Batch(scope, reads))

    assert caught.value.code == "version_gone"


def test_a_conflict_in_a_batch_tells_what_stands_there_after_it(memory: Any) -> None:
    before = memory.app_state.set("key", 0)
    with pytest.raises(ConflictError) as caught:
        memory.app_state.batch([Set("key", 1), Set("key", 2, expected="stale")])

    assert caught.value.current == (0, before)
    assert str(caught.value).startswith("'key': ")


@pytest.mark.parametrize("others", [0, 1])
def test_a_deletion_in_a_batch_spares_a_value_that_changed(memory: Any, others: int) -> None:
    old = memory.app_state.set("key", "old")
    new = memory.app_state.set("key", "new")
    with pytest.raises(ConflictError):
        memory.app_state.batch([Delete("key", expected=old), *[Set("other", 1)] * others])
    assert memory.app_state.get_many(["key", "other"]) == {"key": "new"}

    memory.app_state.batch([Delete("key", expected=new), *[Set("other", 1)] * others])
    assert memory.app_state.get("key") is None


@pytest.mark.parametrize("others", [0, 1])
def test_a_conflict_in_a_batch_carries_a_value_of_any_size(memory: Any, others: int) -> None:
    memory.app_state.set("key", LARGE)
    with pytest.raises(ConflictError) as caught:
        memory.app_state.batch([Set("key", 1, expected=None), *[Get("other")] * others])

    assert caught.value.current.value == LARGE


@pytest.mark.parametrize("wrong", ["key", None, ("key", 1)])
def test_what_is_no_operation_is_refused(memory: Any, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="operation"):
        memory.app_state.batch([Set("key", 1), wrong])

    assert memory.app_state.get("key") is None


def test_an_empty_batch_does_nothing(memory: Any) -> None:
    assert memory.app_state.batch([]) == []


def test_a_thousand_operations_go_in_a_batch_and_no_more(memory: Any) -> None:
    memory.app_state.batch([Set(f"k{n}", n) for n in range(1_000)])
    with pytest.raises(LimitExceededError):
        memory.app_state.batch([Set(f"j{n}", n) for n in range(1_001)])

    assert len(list(memory.app_state.keys())) == 1_000


def test_more_bytes_than_a_message_carries_go_in_a_batch(memory: Any) -> None:
    values = {f"k{n:03}": bytes([n]) * 60_000 for n in range(200)}
    memory.app_state.batch([Set(key, value) for key, value in values.items()])

    assert memory.app_state.get_many(list(values)) == values


def test_writes_of_a_batch_carry_provenance(memory: Any) -> None:
    with memory.request("req-1"):
        (entry,) = memory.app_state.batch([Set("key", 1, reason="because")])
        entries = memory.app_state.batch([Set("other", 1, reason="because"), Delete("key", reason="because")])

    for one in (entry, *entries):
        assert one.provenance == {"request_id": "req-1", "reason": "because"}
