"""Entities: whose memory is whose."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from agent_memory import InvalidKeyError
from agent_memory.operations import Set
from tests.support.models import Profile, Workout

ODD_IDS = [
    "123",
    "12",
    "1234",
    "a/b",
    "a%2Fb",
    "a%252Fb",
    "a",
    "%",
    "%2F",
    "..",
    "\u00e9",
    "e\u0301",
    "A",
    "profile",
    " ",
    "😀",
]


def test_no_two_entities_meet(memory: Any) -> None:
    owners = list(product(["user", "user/a", "User"], ODD_IDS))
    for kind, id in owners:
        memory.entity(kind, id).document(Profile).set(Profile(name=f"{kind}|{id}"))

    for kind, id in owners:
        assert memory.entity(kind, id).document(Profile).get() == Profile(name=f"{kind}|{id}")


def test_the_ids_of_a_kind_are_listed_as_they_were_given(memory: Any) -> None:
    for id in ODD_IDS:
        memory.entity("user", id).document(Profile).set(Profile())
    memory.entity("users", "other").document(Profile).set(Profile())

    assert sorted(memory.entities("user")) == sorted(ODD_IDS)


def test_an_entity_with_many_values_is_listed_once(memory: Any) -> None:
    user = memory.entity("user", "1")
    user.document(Profile).set(Profile())
    user.collection(Workout).add_many([Workout(kind="run")] * 20)
    memory.entity("user", "2").document(Profile).set(Profile())

    assert list(memory.entities("user")) == ["1", "2"]


def test_an_entity_that_remembers_nothing_any_more_is_not_listed(memory: Any) -> None:
    document = memory.entity("user", "1").document(Profile)
    document.set(Profile())
    document.delete()

    assert list(memory.entities("user")) == []


def test_a_raw_key_that_only_looks_like_an_entitys_is_none(memory: Any) -> None:
    memory.app_state.set("user/no%zz/profile", 1)
    memory.app_state.set("user/alone", 1)

    assert list(memory.entities("user")) == []


def test_the_entities_of_a_kind_are_paged_without_loss(memory: Any) -> None:
    ids = [f"{n:05}" for n in range(1_234)]
    for start in range(0, len(ids), 617):
        memory.app_state.batch([Set(f"device/{id}/counter", 1) for id in ids[start : start + 617]])

    assert list(memory.entities("device")) == ids


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "x" * 2_049, 7])
def test_a_kind_or_id_that_is_not_allowed_is_refused(memory: Any, name: Any) -> None:
    with pytest.raises(InvalidKeyError):
        memory.entity(name, "1")
    with pytest.raises(InvalidKeyError):
        memory.entity("user", name)


def test_two_applications_share_nothing(store: Any) -> None:
    ours = store.open()
    theirs = store.open(application=f"{store.application}-other")
    ours.app_state.set("key", "ours")
    ours.entity("user", "1").document(Profile).set(Profile(name="ours"))

    assert theirs.app_state.get("key") is None
    assert list(theirs.app_state.keys()) == []
    assert list(theirs.entities("user")) == []


def test_two_namespaces_share_nothing(store: Any) -> None:
    ours, theirs = store.open(namespace="ours"), store.open(namespace="theirs")
    ours.app_state.set("key", "ours")
    theirs.app_state.set("key", "theirs")

    assert ours.app_state.get("key") == "ours"


def test_a_scope_is_no_prefix_of_another(store: Any) -> None:
    short, long = store.open(namespace="a.b"), store.open(namespace="a.b.c")
    long.app_state.set("key", 1)

    assert list(short.app_state.keys()) == []


def test_deleting_one_entitys_value_leaves_the_others(memory: Any) -> None:
    for id in ("1", "10"):
        memory.entity("user", id).document(Profile).set(Profile(name=id))
    memory.entity("user", "1").document(Profile).delete()

    assert memory.entity("user", "10").document(Profile).get() == Profile(name="10")
