"""Keys: any legal string is a key of its own; any other is refused before anything is sent or made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import AgentMemory, InvalidKeyError, InvalidRequestError, UnavailableError
from tests.support.faults import Between, put_between
from tests.support.models import Profile

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("/%. \n'\"\\"),
    min_size=1,
    max_size=30,
)

ILLEGAL = {
    "empty": "",
    "NUL": "a\0b",
    "lone surrogate": "a\ud800",
    "too long": "x" * 2_049,
    "too long in UTF-8": "\u00e9" * 1_025,
    "not text": b"bytes",
    "nothing": None,
}


@settings(max_examples=30)
@given(keys=st.lists(TEXT, min_size=1, max_size=5, unique=True))
def test_any_legal_key_round_trips(memory: Any, keys: list[str]) -> None:
    with memory.request("\n".join(keys)) as context:
        for key in keys:
            context.state.set(key, key)

        assert {key: context.state.get(key) for key in keys} == {key: key for key in keys}
        assert list(context.state.keys()) == sorted(keys, key=str.encode)


@settings(max_examples=30)
@given(owners=st.lists(st.tuples(TEXT, TEXT), min_size=2, max_size=4, unique=True), name=TEXT)
def test_any_legal_kind_id_and_name_round_trip(memory: Any, owners: list[tuple[str, str]], name: str) -> None:
    for owner in owners:
        memory.entity(*owner).document(Profile, name=name).set(Profile(name="|".join(owner)))

    for kind, id in owners:
        assert memory.entity(kind, id).document(Profile, name=name).get() == Profile(name=f"{kind}|{id}")
        assert id in set(memory.entities(kind))


@pytest.mark.parametrize(
    "keys",
    [
        ["\u00e9", "e\u0301"],
        ["a/b", "a%2Fb", "a%2fb", "a%252Fb", "a//b", "a/b/", "/a/b", "a/./b", "a/../b"],
        ["a", "A", "\u0430", "a ", " a", "a\n", "a\t", "\ufeffa", "\uff41"],
        ["\u212a", "K", "k", "\u0131", "i", "I", "\u0130"],
        ["\ufb00", "ff", "\u00df", "ss"],
    ],
)
def test_keys_that_look_alike_are_apart(memory: Any, keys: list[str]) -> None:
    for key in keys:
        memory.app_state.set(key, key)

    assert memory.app_state.get_many(keys) == {key: key for key in keys}
    assert len(list(memory.app_state.keys())) == len(keys)


@pytest.mark.parametrize("key", ["x" * 2_048, "\u00e9" * 1_024, "\U0001f600" * 512])
def test_the_longest_key_is_a_key(memory: Any, key: str) -> None:
    memory.app_state.set(key, 1)

    assert memory.app_state.get(key) == 1
    assert list(memory.app_state.keys(prefix=key)) == [key]


def test_an_id_of_a_thousand_characters_is_an_id(memory: Any) -> None:
    user = memory.entity("user", "x" * 1_000)
    user.collection(Profile).add(Profile(name="Ada"), id="y" * 1_000)

    assert [found.id for found in user.collection(Profile).list()] == ["y" * 1_000]
    assert list(memory.entities("user")) == ["x" * 1_000]


def calls(memory: Any, key: Any) -> dict[str, Any]:
    state = memory.app_state
    return {
        "get": lambda: state.get(key),
        "set": lambda: state.set(key, 1),
        "delete": lambda: state.delete(key),
        "snapshot": lambda: state.snapshot(key),
        "get_many": lambda: state.get_many(["fine", key]),
        "typed key": lambda: state.key(key, Profile),
        "entity": lambda: memory.entity("user", key),
        "document": lambda: memory.entity("user", "1").document(Profile, name="x" if key is None else key),
        "item": lambda: memory.entity("user", "1").collection(Profile).get(key),
    }


@pytest.mark.parametrize("what", ILLEGAL)
def test_an_illegal_key_is_refused_before_anything_is_sent(memory: Any, what: str) -> None:
    transport = put_between(memory, Between)
    for name, call in calls(memory, ILLEGAL[what]).items():
        if (name, what) != ("document", "nothing"):
            with pytest.raises(InvalidKeyError):
                call()

    assert transport.sent == []


def test_a_segment_that_makes_its_key_too_long_is_refused(memory: Any) -> None:
    with pytest.raises(InvalidKeyError):
        memory.entity("user", "/" * 1_000).document(Profile)


@pytest.mark.parametrize("name", ["", "a/b", "-a", ".a", "x" * 64, "\u00e9", "a b", "a\n", None])
def test_an_application_or_namespace_that_is_not_allowed_makes_no_file(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidKeyError):
        AgentMemory(tmp_path / "memory.db", application=name)
    with pytest.raises(InvalidKeyError):
        AgentMemory(tmp_path / "memory.db", application="app", namespace=name)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "redis://host",
        "memory://name",
        "",
        "sqlite:///x.db",
        "file:///x.db",
        ":memory:",
        "127.0.0.1:8420",
        "localhost:8420/",
        "[::1]:8420",
        "http:/127.0.0.1:8420",
        "HTTPS:host",
        "memory:",
        "postgresql:/host/db",
        "a\0b.db",
        "\udcff.db",
        "http://127.0.0.1:8420/\udcff",
    ],
)
def test_an_address_that_nothing_can_open_is_a_value_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError):
        AgentMemory(url, application="app")


def test_a_folder_is_no_database_and_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="it is a folder"):
        AgentMemory(tmp_path, application="app")
