"""Collections: many typed values of an entity."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from agent_memory import ConflictError, InvalidKeyError, InvalidRequestError, SchemaError, SerializationError
from agent_memory.messages import BATCH_OPERATIONS
from tests.support.models import Profile, Workout


@pytest.fixture
def workouts(memory: Any) -> Any:
    return memory.entity("user", "123").collection(Workout)


def test_an_added_item_is_found_by_its_id(workouts: Any) -> None:
    item_id = workouts.add(Workout(kind="run"))

    assert workouts.get(item_id) == Workout(kind="run")


def test_an_absent_item_is_none(workouts: Any) -> None:
    assert workouts.get("nothing") is None


def test_items_are_listed_in_the_order_of_their_adding(workouts: Any) -> None:
    ids = [workouts.add(Workout(kind="run", minutes=n)) for n in range(5)]

    assert [snapshot.id for snapshot in workouts.list()] == ids
    assert [snapshot.value.minutes for snapshot in workouts.list()] == [0, 1, 2, 3, 4]


def test_items_are_listed_newest_first_and_limited(workouts: Any) -> None:
    for n in range(5):
        workouts.add(Workout(kind="run", minutes=n))

    assert [snapshot.value.minutes for snapshot in workouts.list(limit=2, reverse=True)] == [4, 3]


@pytest.mark.parametrize("reverse", [False, True])
def test_items_are_listed_page_by_page_with_after(workouts: Any, reverse: bool) -> None:
    workouts.add_many([Workout(kind="run", minutes=n) for n in range(7)])
    found: list[int] = []
    after = None
    while page := workouts.list(limit=3, reverse=reverse, after=after):
        found += [snapshot.value.minutes for snapshot in page]
        after = page[-1].id

    assert found == sorted(range(7), reverse=reverse)


def test_an_id_with_a_slash_is_listed_behind(workouts: Any) -> None:
    workouts.add_many({name: Workout(kind="run") for name in ("a/a", "a/b", "b")})

    assert [found.id for found in workouts.list(after="a/a")] == ["a/b", "b"]


def test_a_negative_limit_is_refused(workouts: Any) -> None:
    with pytest.raises(InvalidRequestError):
        workouts.list(limit=-1)


def test_additions_carry_their_reason(workouts: Any) -> None:
    workouts.add(Workout(kind="run"), reason="because")
    workouts.add_many([Workout(kind="swim")], reason="because")

    assert [found.entry.provenance for found in workouts.list()] == [{"reason": "because"}] * 2


def test_more_items_than_a_batch_takes_are_added(workouts: Any) -> None:
    added = workouts.add_many([Workout(kind="run")] * (BATCH_OPERATIONS + 1))

    assert len(workouts.raw()) == len(set(added)) == BATCH_OPERATIONS + 1


def test_more_items_than_a_page_are_listed_whole(workouts: Any) -> None:
    ids = workouts.add_many([Workout(kind="run", minutes=n) for n in range(1_203)])

    assert [snapshot.id for snapshot in workouts.list()] == ids


def test_large_and_small_items_are_listed_together(memory: Any) -> None:
    notes = memory.entity("user", "1").collection(Profile)
    values = {f"n{n:02}": Profile(name=str(n), goals=["x" * (150_000 if n % 3 == 0 else 60_000)]) for n in range(12)}
    notes.add_many(values)

    assert {snapshot.id: snapshot.value for snapshot in notes.list()} == values


def test_more_bytes_than_a_page_carries_are_listed_whole(memory: Any) -> None:
    notes = memory.entity("user", "1").collection(Profile)
    values = {f"n{n:03}": Profile(goals=["x" * 60_000]) for n in range(150)}
    notes.add_many(values)

    assert {snapshot.id: snapshot.value for snapshot in notes.list()} == values


def test_adding_the_same_value_under_the_same_id_again_changes_nothing(workouts: Any) -> None:
    workouts.add(Workout(kind="run"), id="strava-991")
    before = workouts.item("strava-991").snapshot()

    assert workouts.add(Workout(kind="run"), id="strava-991") == "strava-991"
    assert workouts.item("strava-991").snapshot() == before


def test_adding_another_value_under_the_same_id_is_a_conflict(workouts: Any) -> None:
    workouts.add(Workout(kind="run"), id="strava-991")
    with pytest.raises(ConflictError) as caught:
        workouts.add(Workout(kind="swim"), id="strava-991")

    assert caught.value.current.value == Workout(kind="run")


def test_adding_a_large_value_again_changes_nothing(memory: Any) -> None:
    notes = memory.entity("user", "1").collection(Profile)
    notes.add(Profile(goals=["x" * 200_000]), id="n")
    notes.add(Profile(goals=["x" * 200_000]), id="n")

    assert notes.item("n").snapshot().version == 1


class OlderLog(BaseModel):
    """A release ago: without a note, with an author."""

    km: float
    author: str = ""


class Log(BaseModel):
    km: float
    note: str = ""
    tags: set[str] = set()
    laps: list[int] = []


def test_a_value_that_an_older_model_wrote_is_the_same(memory: Any) -> None:
    user = memory.entity("user", "1")
    user.collection(OlderLog, name="log").add_many({"a": OlderLog(km=5), "b": OlderLog(km=5, author="Kim")})
    logs = user.collection(Log)

    assert logs.add(Log(km=5), id="a") == "a"
    assert logs.add_many({"a": Log(km=5), "b": Log(km=5), "c": Log(km=5)}) == ["c"]
    assert [one.version for one in logs.list()] == [1, 1, 1]


def test_a_set_whose_elements_were_written_in_another_order_is_the_same(memory: Any) -> None:
    logs = memory.entity("user", "1").collection(Log)
    for item_id, tags in ("a", ["hill", "rain"]), ("b", ["rain", "hill"]):
        memory.app_state.set(logs.prefix + item_id, {"km": 5.0, "note": "", "tags": tags, "laps": []})
        logs.add(Log(km=5, tags={"hill", "rain"}), id=item_id)

    assert logs.add_many(dict.fromkeys("ab", Log(km=5, tags={"hill", "rain"}))) == []


@pytest.mark.parametrize("other", [Log(km=5, laps=[2, 1]), Log(km=5, note="x", laps=[1, 2]), Log(km=5, laps=[1])])
def test_a_list_in_another_order_or_with_other_elements_is_another_value(memory: Any, other: Log) -> None:
    logs = memory.entity("user", "1").collection(Log)
    logs.add(Log(km=5, laps=[1, 2]), id="a")
    for call in (lambda: logs.add(other, id="a"), lambda: logs.add_many({"a": other})):
        with pytest.raises(ConflictError) as caught:
            call()
        assert caught.value.key == "user/1/log/a"


class Answer(BaseModel):
    first: bool | int | datetime
    second: bool | int | datetime


@pytest.mark.parametrize(
    "one",
    [
        Answer(first=True, second=1),
        Answer(
            first=datetime.fromisoformat("2026-01-01T10:00:00+01:00"),
            second=datetime.fromisoformat("2026-01-01T11:00:00+02:00"),
        ),
    ],
)
def test_values_that_python_takes_for_equal_are_not_the_same(memory: Any, one: Answer) -> None:
    answers = memory.entity("user", "1").collection(Answer)
    answers.add(one, id="a")
    with pytest.raises(ConflictError):
        answers.add(Answer(first=one.second, second=one.first), id="a")


def test_a_stored_value_that_the_model_does_not_read_is_another_value(memory: Any) -> None:
    logs = memory.entity("user", "1").collection(Log)
    memory.app_state.set(logs.prefix + "a", {"km": "far"})
    with pytest.raises(ConflictError):
        logs.add(Log(km=5), id="a")
    with pytest.raises(ConflictError):
        logs.add_many({"a": Log(km=5)})


def test_an_import_that_is_repeated_adds_what_is_missing(workouts: Any) -> None:
    workouts.add(Workout(kind="run"), id="b")
    items = {name: Workout(kind="run") for name in "abc"}
    workouts.add_many(items)
    workouts.add_many(items)

    assert [(found.id, found.version) for found in workouts.list()] == [("a", 1), ("b", 1), ("c", 1)]


def test_an_import_with_another_value_under_an_id_adds_nothing(workouts: Any) -> None:
    workouts.add(Workout(kind="swim"), id="b")
    with pytest.raises(ConflictError) as caught:
        workouts.add_many({name: Workout(kind="run") for name in "abc"})

    assert caught.value.current.value == Workout(kind="swim")
    assert [found.id for found in workouts.list()] == ["b"]


def test_an_import_with_a_value_that_cannot_be_stored_adds_nothing(workouts: Any) -> None:
    bad = Workout.model_construct(kind=object())
    with pytest.raises(SerializationError):
        workouts.add_many([Workout(kind="run"), bad])

    assert workouts.list() == []


def test_adding_nothing_adds_nothing(workouts: Any) -> None:
    assert workouts.add_many([]) == []


def test_a_deleted_item_is_absent(workouts: Any) -> None:
    item_id = workouts.add(Workout(kind="run"))

    assert workouts.delete(item_id).deleted
    assert workouts.get(item_id) is None
    assert workouts.delete(item_id) is None


def test_an_item_is_a_document(workouts: Any) -> None:
    item = workouts.item(workouts.add(Workout(kind="run")))
    item.update(minutes=45)

    assert item.get() == Workout(kind="run", minutes=45)


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "%", "../..", ".", "\u00e9", "e\u0301", "a b", "😀", "'; --"])
def test_any_id_is_given_back_as_it_was(workouts: Any, name: str) -> None:
    workouts.add(Workout(kind=name), id=name)

    assert [(found.id, found.value.kind) for found in workouts.list()] == [(name, name)]


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_an_id_that_is_not_allowed_is_refused(workouts: Any, name: str) -> None:
    with pytest.raises(InvalidKeyError):
        workouts.add(Workout(kind="run"), id=name)


def test_an_item_that_is_not_readable_is_an_error_and_not_left_out(memory: Any, workouts: Any) -> None:
    workouts.add(Workout(kind="run"), id="a")
    memory.app_state.set(workouts.prefix + "b", "no workout")

    with pytest.raises(SchemaError):
        workouts.list()


def test_a_document_does_not_show_in_a_collection_of_its_name(memory: Any) -> None:
    user = memory.entity("user", "1")
    user.document(Workout).set(Workout(kind="document"))
    user.collection(Workout).add(Workout(kind="item"), id="i")

    assert [found.value.kind for found in user.collection(Workout).list()] == ["item"]
    assert user.document(Workout).get() == Workout(kind="document")


def test_raw_items_are_read_whatever_they_hold(memory: Any, workouts: Any) -> None:
    first = workouts.add(Workout(kind="run"))
    memory.app_state.set(f"{workouts.prefix}zzz", b"\xff")

    found = workouts.raw(reverse=True)

    assert [one.id for one in found] == ["zzz", first]
    assert found[0].value == b"\xff"
    assert Workout.model_validate_json(found[1].value) == Workout(kind="run")
    assert [one.id for one in workouts.raw(limit=1, after=first)] == ["zzz"]
