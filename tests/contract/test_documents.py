"""Documents: one typed value of an entity."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, RootModel

from agent_memory import ConflictError, InvalidRequestError, NotFoundError, SchemaError, SerializationError
from agent_memory.messages import INLINE_LIMIT
from agent_memory.operations import Delete
from tests.support.models import Between, Camel, Counter, Measured, Profile, Upgraded, UserProfile, Workout


@pytest.fixture
def profile(memory: Any) -> Any:
    return memory.entity("user", "123").document(Profile)


def test_a_document_lies_under_its_entity_with_the_models_name(profile: Any) -> None:
    assert profile.key == "user/123/profile"


def test_a_name_overrides_the_models_name(memory: Any) -> None:
    assert memory.entity("user", "1").document(Profile, name="old/one").key == "user/1/old%2Fone"


def test_a_pinned_name_keeps_the_data_of_a_renamed_class(memory: Any, profile: Any) -> None:
    profile.set(Profile(name="Ada", goals=["5k"]))

    renamed = memory.entity("user", "123").document(UserProfile)
    assert renamed.get() == UserProfile(name="Ada", goals=["5k"], units="metric")


def test_an_absent_document_is_none_or_the_default(profile: Any) -> None:
    assert profile.get() is None
    assert profile.snapshot() is None
    assert profile.raw() is None
    assert profile.get(default=Profile(name="nobody")) == Profile(name="nobody")


def test_what_was_set_is_read_back(profile: Any) -> None:
    profile.set(Profile(name="Ada", weight_kg=61.5, goals=["5k"]))

    assert profile.get() == Profile(name="Ada", weight_kg=61.5, goals=["5k"])


def test_a_snapshot_has_the_value_and_its_entry(profile: Any) -> None:
    entry = profile.set(Profile(name="Ada"))
    snapshot = profile.snapshot()

    assert snapshot.value == Profile(name="Ada")
    assert (snapshot.entry, snapshot.version, snapshot.etag) == (entry, entry.version, entry.etag)


def test_create_writes_what_is_absent(profile: Any) -> None:
    assert profile.create(Profile(name="Ada")).version == 1


def test_create_spares_what_is_there(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(ConflictError, match="there is a value already"):
        profile.create(Profile(name="Bob"))

    assert profile.get() == Profile(name="Ada")


def test_a_conflict_carries_what_stands_there(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(ConflictError) as caught:
        profile.create(Profile(name="Bob"))

    assert caught.value.current == profile.snapshot()


@pytest.mark.parametrize("size", [0, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1, 200_000])
def test_a_conflict_carries_a_value_of_any_size(memory: Any, size: int) -> None:
    document = memory.app_state.key("key", bytes)
    document.set(b"x" * size)
    with pytest.raises(ConflictError) as caught:
        document.create(b"other")

    assert caught.value.current.value == b"x" * size


def test_a_conflict_with_a_deleted_value_carries_none(profile: Any) -> None:
    old = profile.set(Profile(name="Ada"))
    profile.delete()
    with pytest.raises(ConflictError) as caught:
        profile.replace(Profile(), expected=old)

    assert caught.value.current is None


def test_a_conflict_with_another_type_says_so_only_when_it_is_asked(memory: Any, profile: Any) -> None:
    memory.app_state.set(profile.key, ["not", "a", "profile"])
    with pytest.raises(ConflictError) as caught:
        profile.create(Profile())

    with pytest.raises(SchemaError):
        _ = caught.value.current


@pytest.mark.parametrize("what", ["snapshot", "entry", "etag"])
def test_replace_writes_if_nothing_changed(profile: Any, what: str) -> None:
    profile.set(Profile(name="Ada"))
    snapshot = profile.snapshot()
    expected = {"snapshot": snapshot, "entry": snapshot.entry, "etag": snapshot.etag}[what]

    assert profile.replace(Profile(name="Bob"), expected=expected).version == 2


def test_replace_spares_a_value_that_changed(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    old = profile.snapshot()
    profile.set(Profile(name="Bob"))
    with pytest.raises(ConflictError):
        profile.replace(Profile(name="Cyd"), expected=old)

    assert profile.get() == Profile(name="Bob")


def test_replace_of_nothing_is_create(profile: Any) -> None:
    profile.replace(Profile(name="Ada"), expected=None)
    with pytest.raises(ConflictError):
        profile.replace(Profile(name="Bob"), expected=None)


def test_replace_does_not_recreate_what_was_deleted(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    old = profile.snapshot()
    profile.delete()

    with pytest.raises(ConflictError):
        profile.replace(Profile(name="Bob"), expected=old)


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_etag_is_an_error_and_not_no_condition(profile: Any, blank: str) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(InvalidRequestError):
        profile.replace(Profile(name="Bob"), expected=blank)
    with pytest.raises(InvalidRequestError):
        profile.delete(expected=blank)

    assert profile.get() == Profile(name="Ada")


def test_update_returns_what_stands_there_then(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    snapshot = profile.update(lambda value: Profile(name=value.name + "!"))

    assert snapshot == profile.snapshot()
    assert (snapshot.value, snapshot.version) == (Profile(name="Ada!"), 2)


def test_update_may_change_its_copy_and_return_nothing(profile: Any) -> None:
    profile.set(Profile(name="Ada"))

    def change(value: Profile) -> None:
        value.goals.append("5k")

    assert profile.update(change).value == Profile(name="Ada", goals=["5k"])


def test_update_sets_fields(profile: Any) -> None:
    profile.set(Profile(name="Ada", goals=["5k"]))

    assert profile.update(weight_kg=61).value == Profile(name="Ada", weight_kg=61.0, goals=["5k"])


def test_update_sets_the_root_of_a_root_model(memory: Any) -> None:
    class Settings(RootModel[dict[str, Any]]):
        pass

    settings = memory.entity("user", "1").document(Settings)
    settings.set(Settings({"a": 1}))

    assert settings.update(root={"b": 2}).value == Settings({"b": 2})


def test_update_refuses_a_field_that_the_model_has_not(profile: Any) -> None:
    with pytest.raises(InvalidRequestError):
        profile.update(wieght_kg=61)


def test_update_refuses_a_field_that_is_not_valid(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(SerializationError):
        profile.update(weight_kg="heavy")

    assert profile.snapshot().version == 1


def test_update_takes_a_function_or_fields_and_not_both_or_neither(profile: Any) -> None:
    with pytest.raises(InvalidRequestError):
        profile.update()
    with pytest.raises(InvalidRequestError):
        profile.update(lambda value: value, weight_kg=61)


def test_update_validates_what_the_function_made(profile: Any) -> None:
    profile.set(Profile(name="Ada"))

    def spoil(value: Profile) -> None:
        value.weight_kg = "heavy"  # type: ignore[assignment]

    with pytest.raises(SerializationError):
        profile.update(spoil)
    assert profile.get() == Profile(name="Ada")


def test_update_of_equal_bytes_makes_no_version(profile: Any) -> None:
    entry = profile.set(Profile(name="Ada"))

    assert profile.update(lambda value: value).entry == entry
    assert profile.snapshot().entry == entry


def unchanged(_: Profile) -> None:
    """Leave the private copy as it is."""


def test_update_of_equal_bytes_that_mean_something_else_is_a_version(memory: Any) -> None:
    memory.app_state.set("key", "abc")
    key = memory.app_state.key("key", bytes)
    assert key.get() == b"abc"

    assert key.update(lambda _: b'"abc"').version == 2
    assert key.get() == b'"abc"'


def test_update_of_an_absent_value_starts_from_the_default(profile: Any) -> None:
    assert profile.update(unchanged, default=Profile(name="new")).value == Profile(name="new")


def test_update_of_an_absent_value_starts_from_what_a_factory_makes(profile: Any) -> None:
    assert profile.update(unchanged, default=lambda: Profile(name="made")).value == Profile(name="made")


def test_update_does_not_change_the_callers_default(profile: Any) -> None:
    default = Profile(name="new")
    profile.update(lambda value: value.goals.append("5k"), default=default)

    assert default == Profile(name="new")


def test_update_of_an_absent_value_starts_from_the_models_defaults(profile: Any) -> None:
    assert profile.update(lambda value: value.goals.append("5k")).value == Profile(goals=["5k"])


def test_update_of_an_absent_value_without_defaults_is_an_error(memory: Any) -> None:
    workout = memory.entity("user", "1").document(Workout)

    with pytest.raises(NotFoundError):
        workout.update(minutes=10)


def test_a_default_does_not_replace_a_value_that_is_not_readable(memory: Any, profile: Any) -> None:
    memory.app_state.set(profile.key, {"name": ["not a name"]})
    with pytest.raises(SchemaError):
        profile.get(default=Profile())
    with pytest.raises(SchemaError):
        profile.update(lambda value: value, default=Profile())


def test_what_the_function_raises_reaches_the_caller_and_nothing_is_written(profile: Any) -> None:
    entry = profile.set(Profile(name="Ada"))

    def fail(value: Profile) -> Profile:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        profile.update(fail)
    assert profile.snapshot().entry == entry


def test_an_edit_is_written_at_the_end_of_its_block(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with profile.edit() as draft:
        draft.goals.append("5k")
        assert profile.get() == Profile(name="Ada")

    assert profile.get() == Profile(name="Ada", goals=["5k"])


def test_an_edit_whose_block_fails_is_not_written(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(ZeroDivisionError), profile.edit() as draft:
        draft.name = str(1 // 0)

    assert profile.get() == Profile(name="Ada")


def test_an_edit_that_changes_nothing_makes_no_version(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with profile.edit():
        pass

    assert profile.snapshot().version == 1


def test_an_edit_of_a_value_that_somebody_changed_is_a_conflict(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    with pytest.raises(ConflictError) as caught, profile.edit() as draft:
        draft.name = profile.set(Profile(name="Cyd")).etag

    assert caught.value.current.value == Profile(name="Cyd")
    assert profile.get() == Profile(name="Cyd")


def test_an_edit_of_an_absent_value_that_somebody_made_is_a_conflict(profile: Any) -> None:
    with pytest.raises(ConflictError), profile.edit() as draft:
        draft.name = profile.set(Profile(name="Cyd")).etag
    assert profile.get() == Profile(name="Cyd")


def test_raw_gives_the_bytes_whatever_they_hold(memory: Any, profile: Any) -> None:
    memory.app_state.set(profile.key, b"\x00\xff not JSON")

    raw = profile.raw()
    assert raw.value == b"\x00\xff not JSON"
    assert raw.entry.content_type == "application/octet-stream"


def test_deleting_returns_the_version_of_the_deletion(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    entry = profile.delete()

    assert (entry.version, entry.deleted, entry.size) == (2, True, 0)
    assert profile.get() is None


def test_deleting_what_changed_is_a_conflict(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    old = profile.snapshot()
    profile.set(Profile(name="Bob"))

    with pytest.raises(ConflictError):
        profile.delete(expected=old)


def test_a_snapshot_of_nothing_does_not_let_a_deletion_take_what_came_meanwhile(memory: Any, profile: Any) -> None:
    nothing = profile.snapshot()
    profile.set(Profile(name="Ada"))
    with pytest.raises(InvalidRequestError):
        profile.delete(expected=nothing)
    with pytest.raises(InvalidRequestError):
        memory.app_state.batch([Delete(profile.key, expected=nothing)])

    assert profile.get() == Profile(name="Ada")


def test_a_reason_is_kept_with_every_kind_of_write(profile: Any) -> None:
    def reason() -> str:
        return profile.snapshot().entry.provenance["reason"]

    profile.create(Profile(name="a"), reason="created")
    assert reason() == "created"
    profile.set(Profile(name="b"), reason="set")
    assert reason() == "set"
    profile.replace(Profile(name="c"), expected=profile.snapshot(), reason="replaced")
    assert reason() == "replaced"
    profile.update(name="d", reason="updated")
    assert reason() == "updated"
    with profile.edit(reason="edited") as draft:
        draft.name = "e"
    assert reason() == "edited"
    assert profile.delete(reason="deleted").provenance["reason"] == "deleted"


def test_a_subclass_of_the_model_is_not_cut_down_in_silence(profile: Any) -> None:
    class Detailed(Profile):
        secret_plan: str = "more"

    with pytest.raises(SerializationError):
        profile.set(Detailed())


def test_a_generic_model_is_a_document(memory: Any) -> None:
    numbers = memory.entity("user", "1").document(list[int], name="numbers")
    numbers.set([3, 1, 2])

    assert numbers.update(sorted).value == [1, 2, 3]


def test_a_type_without_a_name_needs_one(memory: Any) -> None:
    with pytest.raises(ValueError, match="name="):
        memory.entity("user", "1").document(list[int] | None)


def test_the_private_copy_is_private(profile: Any) -> None:
    profile.set(Profile(name="Ada"))
    kept: list[Profile] = []

    def change(value: Profile) -> Profile:
        kept.append(value)
        return Profile(name="Bob")

    snapshot = profile.update(change)
    kept[0].name = "Mallory"
    snapshot.value.name = "Mallory"
    assert profile.get() == Profile(name="Bob")


def test_an_async_function_updates_in_async_code_alone(memory: Any, store: Any) -> None:
    counter = memory.app_state.key("counter", Counter)

    async def increment(value: Counter) -> Counter:
        return Counter(count=value.count + 1)

    if store.face == "async":
        assert counter.update(increment).value == Counter(count=1)
    else:
        with pytest.raises(InvalidRequestError):
            counter.update(increment)


def test_a_model_with_a_renamed_field_reads_old_values_through_its_own_validators(memory: Any) -> None:
    class New(BaseModel):
        full_name: str

    memory.app_state.set("user/1/profile", {"name": "Ada"})
    with pytest.raises(SchemaError) as caught:
        memory.entity("user", "1").document(New, name="profile").get()

    assert caught.value.problems == (("full_name", "missing"),)


def test_fields_that_an_update_does_not_name_stay_whatever_they_are_called_in_json(memory: Any) -> None:
    document = memory.entity("user", "1").document(Measured)
    document.set(Measured(weightKg=70))

    assert document.update(note="after lunch").value == Measured(weightKg=70, note="after lunch")
    assert document.update(weight="71").value == Measured(weightKg=71, note="after lunch")


def rename(value: Between) -> None:
    value.full_name = "Ada L."


@pytest.mark.parametrize("change", [rename, Between(full_name="Ada L.")])
def test_a_field_that_is_stored_under_two_keys_can_be_written(memory: Any, change: Any) -> None:
    memory.app_state.set("user/1/between", {"name": "old", "full_name": "Ada"})  # by releases before and after
    document = memory.entity("user", "1").document(Between)

    assert document.get() == Between(full_name="Ada")
    assert document.update(change if callable(change) else lambda _: change).value == Between(full_name="Ada L.")
    assert document.raw().value == b'{"name":"Ada L.","goals":[]}'


def test_updating_by_field_writes_one_that_is_stored_under_two_keys(memory: Any) -> None:
    memory.app_state.set("user/1/between", {"name": "old", "full_name": "Ada"})
    document = memory.entity("user", "1").document(Between)

    assert document.update(full_name="Ada L.").value == Between(full_name="Ada L.")


def test_updating_by_field_spares_an_unknown_field_with_the_name_of_a_known_one(memory: Any) -> None:
    memory.app_state.set("user/1/camel", {"fullName": "Ada", "full_name": "other"})

    memory.entity("user", "1").document(Camel).update(goals=["5k"])
    stored = {"fullName": "Ada", "goals": ["5k"], "full_name": "other"}
    assert memory.app_state.get("user/1/camel") == stored


def test_a_value_on_which_a_validator_fails_is_a_schema_error(memory: Any) -> None:
    user = memory.entity("user", "1")
    memory.app_state.set("user/1/upgraded", {"other": "secret"})
    memory.app_state.set("user/1/upgraded/1", {"other": "secret"})

    for read in (user.document(Upgraded).get, lambda: user.document(Upgraded).update(note="a")):
        with pytest.raises(SchemaError, match=r"^'user/1/upgraded': .* Upgraded: \(the value\): KeyError$") as caught:
            read()
        assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(SchemaError, match="'user/1/upgraded/1'"):
        user.collection(Upgraded).list()
