"""Application state: values by key."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import pytest
from pydantic import Field

from agent_memory import ConflictError, DeserializationError, InvalidRequestError, LimitExceededError, SchemaError
from tests.support.models import Counter, Profile


def test_a_value_that_was_set_is_read_back(memory: Any) -> None:
    memory.app_state.set("preferences", {"units": "metric", "goals": ["5k", None, 1.5, True]})

    assert memory.app_state.get("preferences") == {"units": "metric", "goals": ["5k", None, 1.5, True]}


def test_an_absent_key_gives_none(memory: Any) -> None:
    assert memory.app_state.get("nothing") is None


def test_an_absent_key_gives_the_default(memory: Any) -> None:
    assert memory.app_state.get("nothing", default="fallback") == "fallback"


def test_a_stored_none_is_not_replaced_by_the_default(memory: Any) -> None:
    memory.app_state.set("nothing", None)

    assert memory.app_state.get("nothing", default="fallback") is None


def test_a_stored_none_is_told_from_an_absent_key_by_its_snapshot(memory: Any) -> None:
    memory.app_state.set("nothing", None)

    assert memory.app_state.snapshot("nothing").value is None
    assert memory.app_state.snapshot("absent") is None


def test_a_value_that_is_not_readable_is_read_raw_as_its_error_says(memory: Any) -> None:
    entry = memory.app_state.set("key", b"\xff")
    with pytest.raises(DeserializationError, match=r"raw\(\) reads it"):
        memory.app_state.get("key", as_type=int)

    assert memory.app_state.raw("key") == (b"\xff", entry)
    assert memory.app_state.raw("absent") is None


def test_set_returns_the_entry_that_a_snapshot_has(memory: Any) -> None:
    entry = memory.app_state.set("key", [1, 2, 3])

    assert memory.app_state.snapshot("key").entry == entry


def test_an_entry_describes_the_bytes(memory: Any) -> None:
    entry = memory.app_state.set("key", [1, 2, 3])

    assert (entry.key, entry.size, entry.content_type) == ("key", len(b"[1,2,3]"), "application/json")
    assert entry.sha256 == "a615eeaee21de5179de080de8c3052c8da901138406ba71c38c032845f7d54f4"


def test_the_last_committed_writer_wins(store: Any) -> None:
    first, second = store.open(), store.open()
    first.app_state.set("key", "first")
    second.app_state.set("key", "second")

    assert first.app_state.get("key") == "second"


def test_a_deleted_key_is_absent(memory: Any) -> None:
    memory.app_state.set("key", 1)
    memory.app_state.delete("key")

    assert memory.app_state.snapshot("key") is None
    assert list(memory.app_state.keys()) == []


def test_deleting_an_absent_key_is_no_error_and_makes_no_version(memory: Any) -> None:
    assert memory.app_state.delete("key") is None
    assert memory.app_state.set("key", 1).version == 1


def test_a_delete_with_an_expectation_spares_a_value_that_changed(memory: Any) -> None:
    old = memory.app_state.set("key", 1)
    memory.app_state.set("key", 2)
    with pytest.raises(ConflictError):
        memory.app_state.delete("key", expected=old)

    assert memory.app_state.get("key") == 2


def test_a_delete_with_an_expectation_deletes_a_value_that_did_not_change(memory: Any) -> None:
    entry = memory.app_state.set("key", 1)

    assert memory.app_state.delete("key", expected=entry).deleted


def test_a_model_is_plain_data_without_its_type(memory: Any) -> None:
    memory.app_state.set("key", Profile(name="Ada"))

    assert memory.app_state.get("key") == {"name": "Ada", "weight_kg": 0.0, "goals": []}


def test_a_model_is_a_model_with_its_type(memory: Any) -> None:
    memory.app_state.set("key", Profile(name="Ada"))

    assert memory.app_state.get("key", as_type=Profile) == Profile(name="Ada")


def test_the_entry_names_the_schema_of_a_model(memory: Any) -> None:
    assert memory.app_state.set("key", Profile()).schema_name == "profile"


def test_a_value_is_written_as_the_type_that_is_given(memory: Any) -> None:
    with_limit = Annotated[list[int], Field(max_length=2)]
    memory.app_state.set("key", [1, 2], as_type=with_limit)

    assert memory.app_state.get("key", as_type=tuple[int, int]) == (1, 2)


def test_keys_are_listed_in_byte_order(memory: Any) -> None:
    names = ["b", "a", "é", "Z", "a/b", "a b", "😀", "\uffff"]
    for name in names:
        memory.app_state.set(name, 1)

    assert list(memory.app_state.keys()) == sorted(names, key=str.encode)


def test_keys_with_a_prefix_are_exactly_those(memory: Any) -> None:
    for name in ("user_1", "user_2", "user", "users", "vser_1", "User_1", "user_\U0010ffff", "user`"):
        memory.app_state.set(name, 1)

    assert list(memory.app_state.keys(prefix="user_")) == ["user_1", "user_2", "user_\U0010ffff"]


@pytest.mark.parametrize("mark", ["%", "_", "*", "?", "[a-z]", "\\", "'"])
def test_a_prefix_is_no_pattern(memory: Any, mark: str) -> None:
    memory.app_state.set(f"{mark}x", 1)
    memory.app_state.set("ax", 1)

    assert list(memory.app_state.keys(prefix=mark)) == [f"{mark}x"]


def test_keys_are_paged_without_loss_or_repetition(memory: Any) -> None:
    names = [f"k{n:05}" for n in range(2_345)]
    memory.entity("bulk", "1").collection(Counter).add_many({name: Counter() for name in names})
    prefix = "bulk/1/counter/"

    assert [key.removeprefix(prefix) for key in memory.app_state.keys(prefix=prefix)] == names


def test_a_listing_need_not_be_finished(memory: Any) -> None:
    for number in range(5):
        memory.app_state.set(f"k{number}", number)

    assert list(islice(memory.app_state.keys(), 2)) == ["k0", "k1"]


def test_several_keys_are_read_at_once(memory: Any) -> None:
    memory.app_state.set("a", 1)
    memory.app_state.set("b", b"x" * 200_000)

    assert memory.app_state.get_many(["a", "absent", "b"]) == {"a": 1, "b": b"x" * 200_000}


def test_no_keys_are_read_as_nothing(memory: Any) -> None:
    assert memory.app_state.get_many([]) == {}


def test_several_keys_are_read_as_a_type(memory: Any) -> None:
    memory.app_state.set("a", Counter(count=1))

    assert memory.app_state.get_many(["a"], as_type=Counter) == {"a": Counter(count=1)}


def test_an_unreadable_value_among_several_is_an_error(memory: Any) -> None:
    memory.app_state.set("a", Counter(count=1))
    memory.app_state.set("b", "no counter")

    with pytest.raises(SchemaError):
        memory.app_state.get_many(["a", "b"], as_type=Counter)


def test_more_keys_than_a_batch_takes_are_refused(memory: Any) -> None:
    with pytest.raises(LimitExceededError):
        memory.app_state.get_many([f"k{n}" for n in range(1_001)])


def test_a_typed_key_is_the_raw_key_with_a_type(memory: Any) -> None:
    counter = memory.app_state.key("visits", Counter)
    counter.set(Counter(count=3))

    assert counter.key == "visits"
    assert counter.get() == Counter(count=3)
    assert memory.app_state.get("visits") == {"count": 3}


def test_a_typed_key_has_the_methods_of_a_document(memory: Any) -> None:
    counter = memory.app_state.key("visits", Counter)
    counter.create(Counter(count=1))
    counter.update(lambda value: Counter(count=value.count + 1))
    counter.replace(Counter(count=10), expected=counter.snapshot())

    assert counter.get() == Counter(count=10)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_time_to_live_that_makes_no_sense_is_refused(memory: Any, ttl: float) -> None:
    with pytest.raises(InvalidRequestError, match="time to live"):
        memory.app_state.set("key", 1, ttl=ttl)


def test_the_raw_key_of_a_document_is_that_document(memory: Any) -> None:
    memory.entity("user", "a/b").document(Profile).set(Profile(name="Ada"))

    assert memory.app_state.get("user/a%2Fb/profile", as_type=Profile) == Profile(name="Ada")


def test_two_faces_share_one_store(memory: Any, store: Any) -> None:
    other = memory.aio if store.face == "sync" else memory.sync
    memory.app_state.set("key", 1)
    if store.face == "sync":

        async def read() -> Any:
            return await other.app_state.get("key")

        assert store.portal.call(read) == 1
    else:
        assert other.app_state.get("key") == 1
