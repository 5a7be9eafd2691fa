"""Values: every size and kind comes back as it was, and what cannot is refused or an error."""

from __future__ import annotations

import datetime
import hashlib
import math
import struct
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr, computed_field

from agent_memory import DeserializationError, IntegrityError, InvalidRequestError, SchemaError, SerializationError
from agent_memory.ids import uuid7
from agent_memory.messages import INLINE_LIMIT, JSON, CommitWrite, Scope
from tests.support.models import Aliased, Point, Profile

CHUNK = 128 * 1024

SIZES = [
    0, 1, 2, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1,
    CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK + 17,
]  # fmt: skip


def pattern(size: int, salt: int = 0) -> bytes:
    """Return bytes in which no two blocks are alike, so that a mix-up shows."""
    blocks = (hashlib.sha256(f"{salt}:{n}".encode()).digest() for n in range(size // 32 + 1))
    return b"".join(blocks)[:size]


@pytest.fixture
def chunked(store: Any) -> Any:
    """A client that cuts large values into small chunks."""
    return store.open(chunk_size=CHUNK)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_any_size_come_back(chunked: Any, size: int) -> None:
    entry = chunked.app_state.set("key", pattern(size))

    assert chunked.app_state.get("key") == pattern(size)
    assert (entry.size, entry.sha256) == (size, hashlib.sha256(pattern(size)).hexdigest())


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, CHUNK, 3 * CHUNK + 5])
def test_a_smaller_value_over_a_larger_one_leaves_no_tail(chunked: Any, size: int) -> None:
    chunked.app_state.set("key", pattern(4 * CHUNK + 9, salt=1))
    chunked.app_state.set("key", pattern(size, salt=2))

    assert chunked.app_state.get("key") == pattern(size, salt=2)


@pytest.mark.parametrize("size", [INLINE_LIMIT + 1, CHUNK + 1, 5 * CHUNK])
def test_a_value_is_read_by_a_client_that_cuts_differently(store: Any, chunked: Any, size: int) -> None:
    chunked.app_state.set("key", pattern(size))

    assert store.open(chunk_size=64 * 1024, parallelism=1).app_state.get("key") == pattern(size)
    assert store.open().app_state.get("key") == pattern(size)


def test_the_empty_value_is_not_absent(memory: Any) -> None:
    memory.app_state.set("bytes", b"")
    memory.app_state.set("text", "")

    assert memory.app_state.get("bytes", default="absent") == b""
    assert memory.app_state.get("text", default="absent") == ""


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**53 + 1, 10**100, 0.0, -0.0, 1e-300, "", "\u00e9", "e\u0301", "\U0001f600",
        "a\nb\r\n\t", "\x7f\u2028", [], {}, [[], {}], {"": {"": [None]}}, {"b": 1, "a": 2},
    ],
)  # fmt: skip
def test_plain_data_comes_back_exactly(memory: Any, value: Any) -> None:
    entry = memory.app_state.set("key", value)
    found = memory.app_state.get("key")

    assert entry.content_type == "application/json"
    assert (found, type(found), repr(found)) == (value, type(value), repr(value))


@pytest.mark.parametrize(
    "value",
    [
        (1, 2), {1, 2}, frozenset("ab"), {1: "int key"}, [(1,)], {"a": {1}}, datetime.datetime(2026, 1, 2, 3, 4),
        datetime.timedelta(days=1), bytearray(b"x"), Point(1, 2), float("inf"), "\ud800", range(3), complex(1, 2),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_objects_come_back_as_they_were_from_signed_pickles(memory: Any, value: Any) -> None:
    entry = memory.app_state.set("key", value)
    found = memory.app_state.get("key")

    assert entry.signature.startswith("v1:")
    assert (found, type(found)) == (value, type(value))


def test_a_pickle_of_an_older_key_is_still_read(store: Any) -> None:
    old = store.open(signing_keys=["an older signing key of the tests"])
    old.app_state.set("key", (1, 2))

    assert store.open().app_state.get("key") == (1, 2)


def test_a_pickle_signed_with_an_unknown_key_is_not_loaded(store: Any) -> None:
    store.open(signing_keys=["a key that nobody else has"]).app_state.set("key", (1, 2))

    with pytest.raises(IntegrityError):
        store.open().app_state.get("key", default="fallback")


def test_bytes_that_are_no_json_are_a_deserialization_error(memory: Any) -> None:
    memory.app_state.set("key", b"not JSON")

    with pytest.raises(DeserializationError) as caught:
        memory.app_state.get("key", as_type=Profile, default=Profile())
    assert not isinstance(caught.value, SchemaError)


def test_json_that_is_not_the_model_is_a_schema_error(memory: Any) -> None:
    memory.app_state.set("key", {"name": 7})

    with pytest.raises(SchemaError) as caught:
        memory.app_state.get("key", as_type=Profile, default=Profile())
    assert caught.value.problems == (("name", "string_type"),)


def test_untyped_data_is_read_as_any_type_that_fits_it(memory: Any) -> None:
    memory.app_state.set("key", {"name": "Ada"})

    assert memory.app_state.get("key", as_type=Profile) == Profile(name="Ada")


def test_aliases_come_back(memory: Any) -> None:
    memory.app_state.set("key", Aliased(heart_rate=60))

    assert memory.app_state.get("key") == {"heartRate": 60}
    assert memory.app_state.get("key", as_type=Aliased) == Aliased(heart_rate=60)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_cannot_hold_is_refused_in_a_model(memory: Any, number: float) -> None:
    class Optional(BaseModel):
        value: float | None = None

    document = memory.entity("user", "1").document(Optional)
    with pytest.raises(SerializationError):
        document.set(Optional(value=number))
    assert document.get() is None


def test_a_computed_field_does_not_stand_in_the_way_of_reading(memory: Any) -> None:
    class Strict(BaseModel):
        model_config = {"extra": "forbid"}

        km: float

        @computed_field
        @property
        def miles(self) -> float:
            return self.km / 1.609

    document = memory.entity("user", "1").document(Strict)
    document.set(Strict(km=10))

    assert document.get() == Strict(km=10)
    assert memory.app_state.get(document.key) == {"km": 10.0}


def test_a_model_with_a_secret_is_refused_when_the_document_is_made(memory: Any) -> None:
    class Login(BaseModel):
        passwords: dict[str, list[SecretStr]]

    with pytest.raises(SerializationError, match=r"Login\.passwords"):
        memory.entity("user", "1").document(Login)
    with pytest.raises(SerializationError):
        memory.app_state.set("key", Login(passwords={}))


def test_a_model_with_an_excluded_field_is_refused_when_the_document_is_made(memory: Any) -> None:
    class Partial(BaseModel):
        kept: int = 0
        lost: int = Field(default=0, exclude=True)

    with pytest.raises(SerializationError, match=r"Partial\.lost"):
        memory.entity("user", "1").collection(Partial)


def test_a_model_that_would_not_be_read_back_is_not_written(memory: Any) -> None:
    broken = Profile.model_construct(name=None)

    with pytest.raises(SerializationError):
        memory.app_state.set("key", broken)
    assert memory.app_state.get("key") is None


def test_large_models_come_back(chunked: Any) -> None:
    value = Profile(name="\U0001f600" * 1_000, goals=[f"goal {n}" for n in range(50_000)])
    chunked.app_state.set("key", value)

    assert chunked.app_state.get("key", as_type=Profile) == value


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_type": "text\0plain"},
        {"schema_name": "\0"},
        {"signature": "v1:\0"},
        {"write_id": "the\0first"},
        {"vectors": (struct.pack("<2f", math.nan, 1),)},
        {"vectors": (struct.pack("<3f", math.inf, -math.inf, 1),)},
        {"schema_name": "\ud800"},
        {"provenance": {"reason": "\ud800"}},
        {"ttl_seconds": 0.0},
    ],
    ids=[
        "content type",
        "schema name",
        "signature",
        "write id",
        "not a number",
        "infinite",
        "no text",
        "no reason",
        "no time",
    ],
)
def test_what_one_catalog_could_not_hold_is_refused_by_all(store: Any, memory: Any, wrong: dict[str, Any]) -> None:
    write = CommitWrite(Scope("default", store.application), "key", uuid7(), b"{}", None, JSON)
    with pytest.raises(InvalidRequestError):
        store.send(memory, write._replace(**wrong))

    assert store.send(memory, write).version == 1
