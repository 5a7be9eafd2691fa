"""Whatever JSON would change is refused; what a model's own validators make of a value is not."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import functools
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    PrivateAttr,
    field_serializer,
    field_validator,
)
from pydantic_core import core_schema

from agent_memory.codec import typed_codec
from agent_memory.errors import SerializationError

NOON = datetime.datetime(2026, 1, 2, 12)
ID = uuid.UUID(int=7)


class Anything(BaseModel):
    value: Any


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Animal(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str = "Rex"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Animal) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Dog(Animal):
    barks: bool = True


@dataclasses.dataclass
class Owner:
    pet: Animal


@dataclasses.dataclass
class Place:
    city: str = "Bern"


@dataclasses.dataclass
class Address(Place):
    street: str = "Aare"


@dataclasses.dataclass
class Counter:
    hits: int = dataclasses.field(default=0, init=False)


class Base64(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64")
    data: bytes


class Seconds(BaseModel):
    model_config = ConfigDict(ser_json_temporal="seconds")
    at: datetime.datetime


class FloatDelta(BaseModel):
    model_config = ConfigDict(ser_json_timedelta="float")
    took: datetime.timedelta


class Prefixed(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def _prefix(cls, name: str) -> str:
        return f"Dr. {name}"


def counted() -> Counter:
    counter = Counter()
    counter.hits = 3
    return counter


Case: TypeAlias = tuple[Any, Any]

LOST: list[Case] = [
    (Anything, Anything(value=NOON)),
    (Anything, Anything(value={1, 2})),
    (Anything, Anything(value={"id": [ID]})),
    (Anything, Anything(value={1: "a"})),
    (Anything, Anything(value=Place())),
    (Open, Open(at=NOON)),  # type: ignore[call-arg]
    (dict[str, Any], {"on": NOON.date()}),
    (dict[int | str, str], {1: "a", "1": "b"}),
    (str | datetime.datetime, NOON),
    (str | uuid.UUID, str(ID)),
    (decimal.Decimal | str, "1.50"),
    (list[int] | set[int], {1}),
    (re.Pattern, re.compile("a", re.IGNORECASE)),
    (Base64, Base64(data=b"abcd")),
    (Seconds, Seconds(at=NOON)),
    (FloatDelta, FloatDelta(took=datetime.timedelta(days=10**6, microseconds=1))),
    (datetime.datetime, NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=3_601)))),
    (Prefixed, Prefixed(name="Ann")),
    (Place, Address()),
    (Owner, Owner(Dog())),
    (list[Animal], [Dog()]),
    (set[Animal], {Dog()}),
    (Counter, counted()),
]


@pytest.mark.parametrize(("value_type", "value"), LOST)
def test_what_would_be_read_back_otherwise_is_refused(value_type: Any, value: Any) -> None:
    with pytest.raises(SerializationError, match=r"would (not )?be read back"):
        typed_codec(value_type).encode(value)


def test_the_error_names_the_place_and_no_value() -> None:
    with pytest.raises(SerializationError) as caught:
        typed_codec(Anything).encode(Anything(value={"a key": [NOON]}))

    assert str(caught.value) == "Anything.value[…][…] is a datetime, which would be read back as a str"


# -- what is no loss -------------------------------------------------------------------------------------------------


class Tidy(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    zone: Annotated[str, BeforeValidator(str.lower)] = "UTC"
    tags: list[str] = []

    @field_validator("tags")
    @classmethod
    def _each_once(cls, tags: list[str]) -> list[str]:
        return sorted(set(tags))


class Rounded(BaseModel):
    price: float

    @field_serializer("price")
    def _cents(self, price: float) -> float:
        return round(price, 2)


class Cached(BaseModel):
    animals: list[Animal] = []

    @functools.cached_property
    def first(self) -> Animal:
        return self.animals[0]


class Hidden(BaseModel):
    _seen: int = PrivateAttr(default=0)


class Numbered(BaseModel):
    model_config = ConfigDict(frozen=True)
    name: str = "Rex"
    _seen: int = PrivateAttr(default=0)


class Single(BaseModel):
    """Is equal to nothing but itself."""

    number: int

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Vector:
    """Has no equality of its own, or one that answers element by element."""

    def __init__(self, parts: list[float]) -> None:
        self.parts = parts

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda given: given if isinstance(given, cls) else cls(given),
            core_schema.any_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda one: one.parts),
        )


class Elementwise(Vector):
    def __eq__(self, other: object) -> Any:
        raise ValueError("the truth of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def seen() -> Hidden:
    hidden = Hidden()
    hidden._seen = 3
    return hidden


def numbered() -> set[Numbered]:
    one = Numbered()
    one._seen = 3
    return {one}


def cached() -> Cached:
    value = Cached(animals=[Animal()])
    assert value.first
    return value


def untidy() -> Tidy:
    tidy = Tidy()
    tidy.tags = [" b ", "a", "a"]
    return tidy


KEPT: list[tuple[Any, Callable[[], Any]]] = [
    (Tidy, untidy),
    (Rounded, lambda: Rounded(price=1.234)),
    (Cached, cached),
    (Hidden, seen),
    (Vector, lambda: Vector([1.0])),
    (Elementwise, lambda: Elementwise([1.0])),
    (Sequence[int], lambda: (1, 2)),
    (collections.deque[int], lambda: collections.deque([1])),
    (set[Animal], lambda: {Animal()}),
    (set[Numbered], numbered),
    (set[datetime.datetime], lambda: {datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))}),
    # An hour that Berlin has twice: Python takes no two zones' times for equal there.
    (datetime.datetime, lambda: datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))),
]


@pytest.mark.parametrize(("value_type", "make"), KEPT)
def test_what_the_types_own_rules_make_of_a_value_is_written(value_type: Any, make: Callable[[], Any]) -> None:
    codec = typed_codec(value_type)
    read = codec.encode(make())[1]

    assert codec.encode(read)[0].data == codec.encode(codec.encode(read)[1])[0].data


def test_a_set_of_what_is_equal_to_nothing_else_is_compared_in_its_order() -> None:
    value = {Single(number=number) for number in range(5_000)}
    began = time.monotonic()
    read = typed_codec(set[Single]).encode(value)[1]
    assert {one.number for one in read} == set(range(5_000))
    assert time.monotonic() - began < 10, "comparing each with each took 45 s"


def test_what_anything_holds_that_cannot_be_written_is_an_error_of_ours() -> None:
    with pytest.raises(SerializationError):
        typed_codec(Any).encode(object())
