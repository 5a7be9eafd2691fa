"""Values to bytes and back: which encoding a value gets, and what is refused."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import re
from collections import OrderedDict, deque
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NewType, NotRequired

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasGenerator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict, TypeVar

from agent_memory.codec import schema_name, snake_case, typed_codec
from agent_memory.errors import DeserializationError, SchemaError, SerializationError, UnavailableError
from agent_memory.messages import BYTES, JSON, PICKLE
from agent_memory.untyped import decode_untyped, encode_untyped
from tests.support.models import Aliased, Between, Profile, UserProfile


def no_pickle() -> Any:
    raise AssertionError("nothing here is a pickle")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Profile", "profile"),
        ("UserProfile", "user_profile"),
        ("HTTPLog", "http_log"),
        ("UserHTTPLog2", "user_http_log2"),
        ("A", "a"),
        ("already_snake", "already_snake"),
        ("Box[int]", "box_int"),
        ("_Private", "private"),
        ("V2Profile", "v2_profile"),
    ],
)
def test_a_class_name_becomes_snake_case(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_a_pinned_name_goes_before_the_class_name() -> None:
    assert schema_name(UserProfile) == "profile"


def test_an_annotation_has_no_name() -> None:
    assert schema_name(list[int] | None) is None


def test_a_field_called_memory_name_pins_nothing() -> None:
    class Odd(BaseModel):
        memory_name: str = "not pinned"

    assert schema_name(Odd) == "odd"


def test_a_pinned_name_is_inherited() -> None:
    class Child(UserProfile):
        memory_name: ClassVar[str] = "child"

    class Grandchild(Child):
        pass

    assert (schema_name(Child), schema_name(Grandchild)) == ("child", "child")


# -- untyped ---------------------------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_exact_json_types_are_json_and_come_back_exactly(value: Any) -> None:
    encoded = encode_untyped(value)

    assert encoded.content_type == JSON
    assert repr(decode_untyped(encoded.data, JSON, no_pickle)) == repr(value)


@given(st.binary())
def test_bytes_are_kept_as_they_are(value: bytes) -> None:
    assert encode_untyped(value) == (value, BYTES, None)
    assert decode_untyped(value, BYTES, no_pickle) == value


class Text(str):
    __slots__ = ()


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    "value",
    [
        (1,), {1}, {1: 2}, {None: 1}, {True: 1}, {Text("a"): 1}, OrderedDict(a=1), Text("a"), Colour.RED, Level.LOW,
        Pair(1, 2), bytearray(b"a"), [1, (2,)], {"a": {"b": {3}}}, datetime.datetime(2026, 1, 1), math.inf, -math.inf,
        "\ud800", {"\ud800": 1}, ["\udfff"], 10**4_300, -(10**5_000), 1j,
    ],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
def test_whatever_json_would_change_is_pickled(value: Any) -> None:
    assert encode_untyped(value).content_type == PICKLE


@pytest.mark.parametrize("value", [10**3_000, -(2**64), 2**53 + 1])
def test_large_integers_are_json_as_long_as_python_reads_them_back(value: int) -> None:
    encoded = encode_untyped(value)

    assert encoded.content_type == JSON
    assert decode_untyped(encoded.data, JSON, no_pickle) == value


def test_a_model_is_json_with_its_schemas_name() -> None:
    encoded = encode_untyped(UserProfile(name="Ada"))

    assert (encoded.content_type, encoded.schema_name) == (JSON, "profile")
    assert json.loads(encoded.data) == {"name": "Ada", "goals": [], "units": "metric"}


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(SerializationError):
        encode_untyped(value)


def test_a_value_that_is_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(SerializationError):
        encode_untyped(value)


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(SerializationError):
        encode_untyped(x for x in "abc")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"{'a': 1}", b"[1,]", b"1 2", b"[" * 10**5]
)
def test_bytes_that_are_named_json_and_are_none_are_an_error(data: bytes) -> None:
    with pytest.raises(DeserializationError):
        decode_untyped(data, JSON, no_pickle)


def test_no_codec_falls_back_to_another() -> None:
    pickled = encode_untyped((1, 2)).data

    assert decode_untyped(pickled, BYTES, no_pickle) == pickled
    assert decode_untyped(b"[1]", "text/plain", no_pickle) == b"[1]"
    with pytest.raises(DeserializationError):
        decode_untyped(pickled, JSON, no_pickle)


# -- typed -----------------------------------------------------------------------------------------------------------


def test_a_typed_value_comes_back() -> None:
    codec = typed_codec(dict[str, tuple[int, ...]])
    encoded, _ = codec.encode({"a": (1, 2)})

    assert codec.decode(encoded.data, JSON, no_pickle) == {"a": (1, 2)}


def test_encoding_gives_the_value_that_a_reader_will_get() -> None:
    value = Profile(name="Ada")
    _, read = typed_codec(Profile).encode(value)

    assert read == value
    assert read is not value


def test_typed_bytes_are_raw() -> None:
    assert typed_codec(bytes).encode(b"\xff")[0] == (b"\xff", BYTES, None)
    with pytest.raises(SerializationError):
        typed_codec(bytes).encode(bytearray(b"x"))


def test_aliases_are_written_and_read() -> None:
    encoded, _ = typed_codec(Aliased).encode(Aliased(heart_rate=60))

    assert encoded.data == b'{"heartRate":60}'
    assert typed_codec(Aliased).decode(encoded.data, JSON, no_pickle) == Aliased(heart_rate=60)


class OnlyWritten(BaseModel):
    value: int = Field(0, serialization_alias="written")


class OnlyRead(BaseModel):
    value: int = Field(0, validation_alias="old")


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=str.upper))
    value: int = 0


class Around(BaseModel):
    inner: list[OnlyRead] = []


@pytest.mark.parametrize("model", [OnlyWritten, OnlyRead, Generated, Around])
def test_a_field_that_is_not_read_from_where_it_is_written_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(SerializationError, match="validation_alias"):
        typed_codec(model)


@dataclasses.dataclass
class OnlyWrittenRecord:
    value: Annotated[int, Field(serialization_alias="written")] = 0


@pydantic_dataclass
class OnlyWrittenData:
    value: int = Field(0, serialization_alias="written")


class OnlyWrittenDict(TypedDict, total=False):
    value: Annotated[int, Field(serialization_alias="written")]


class AroundRecord(BaseModel):
    inner: list[OnlyWrittenRecord] = []


class OpenDict(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    value: Annotated[int, Field(validation_alias=AliasChoices("value", "old"), serialization_alias="old")]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (OnlyWrittenRecord, OnlyWrittenRecord(5)),
        (OnlyWrittenData, OnlyWrittenData(5)),
        (OnlyWrittenDict, {"value": 5}),
        (AroundRecord, AroundRecord(inner=[OnlyWrittenRecord(5)])),
        (OpenDict, {"value": 5, "old": 6}),
    ],
)
def test_what_is_lost_under_the_key_of_a_record_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(SerializationError, match="would be read back"):
        typed_codec(kind).encode(value)


class Renamed(BaseModel):
    value: int = Field(0, validation_alias=AliasChoices("value", "old"))


class ByPath(BaseModel):
    value: int = Field(0, validation_alias=AliasChoices(AliasPath("old", 0), AliasPath("value")))


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_name=True)
    value: int = Field(0, validation_alias="old")


class ByValidator(BaseModel):
    value: int = Field(0, validation_alias="old")

    @model_validator(mode="before")
    @classmethod
    def rename(cls, data: Any) -> Any:
        return {"old": data["value"]} if "value" in data else data


class BySerializer(BaseModel):
    value: int = Field(0, validation_alias="old")

    @model_serializer
    def write(self) -> dict[str, int]:
        return {"old": self.value}


@pytest.mark.parametrize("model", [Renamed, ByPath, ByName, ByValidator, BySerializer])
def test_a_field_that_is_read_from_elsewhere_too_comes_back(model: Any) -> None:
    value = model.model_validate_json(b'{"old":5}' if model is not ByPath else b'{"old":[5]}')
    assert typed_codec(model).encode(value)[1].value == 5


@pytest.mark.parametrize("around", [list[Between], dict[str, Between], Annotated[tuple[Between, ...], "any"]])
def test_an_unknown_field_with_the_key_of_a_known_one_is_refused(around: Any) -> None:
    value = Between.model_validate({"full_name": "Ada", "name": "old"})
    held: Any = {"a": value} if around == dict[str, Between] else [value] if around == list[Between] else (value,)

    with pytest.raises(SerializationError, match=r"Between\.full_name is written as 'name', and the value has an"):
        typed_codec(around).encode(held)


def test_of_two_keys_of_one_field_the_first_is_read_at_any_depth() -> None:
    read = typed_codec(list[Between]).decode(b'[{"name":"old","full_name":"Ada","other":1}]', JSON, no_pickle)

    assert read == [Between.model_validate({"full_name": "Ada", "other": 1})]
    assert typed_codec(list[Between]).encode(read)[0].data == b'[{"name":"Ada","goals":[],"other":1}]'


def test_a_field_that_is_left_out_at_times_is_refused() -> None:
    class Sometimes(BaseModel):
        value: int = Field(5, exclude_if=lambda value: value == 0)

    with pytest.raises(SerializationError, match="excluded"):
        typed_codec(Sometimes)


class Chosen(BaseModel):
    all: list[Between] = []
    best: Between | None = None

    @model_validator(mode="after")
    def choose(self) -> Chosen:
        self.best = self.all[0]
        return self


class TwoFieldsOfOneKey(BaseModel):
    model_config = ConfigDict(extra="allow")
    first: int = Field(0, validation_alias=AliasChoices("first", "x"), serialization_alias="x")
    second: int = Field(0, validation_alias=AliasChoices("second", "x"), serialization_alias="x")


def test_a_model_that_stands_at_two_places_is_read() -> None:
    read = typed_codec(Chosen).decode(b'{"all":[{"name":"old","full_name":"Ada"}]}', JSON, no_pickle)
    assert read.best is read.all[0]
    assert read.all == [Between(full_name="Ada")]


def test_two_fields_of_one_key_are_read() -> None:
    read = typed_codec(TwoFieldsOfOneKey).decode(b'{"first":1,"second":2,"x":3}', JSON, no_pickle)
    assert (read.first, read.second, read.model_extra) == (1, 2, {})


@pytest.mark.parametrize("failure", [MemoryError(), UnavailableError("the store of a validator does not answer")])
def test_what_says_nothing_of_the_value_is_no_schema_error(failure: Exception) -> None:
    class Failing(BaseModel):
        @model_validator(mode="before")
        @classmethod
        def fail(cls, _: Any) -> Any:
            raise failure

    with pytest.raises(type(failure)):
        typed_codec(Failing).decode(b"{}", JSON, no_pickle)


@dataclasses.dataclass
class ExcludingRecord:
    value: Annotated[int, Field(exclude=True)] = 0


@dataclasses.dataclass
class ExcludingByDefault:
    value: int = Field(0, exclude=True)


@pydantic_dataclass
class ExcludingData:
    value: int = Field(0, exclude=True)


class ExcludingDict(TypedDict):
    value: NotRequired[Annotated[int, Field(exclude=True)]]


class ExcludingTuple(NamedTuple):
    value: Annotated[int, Field(exclude=True)] = 0


def test_a_field_of_a_named_tuple_is_not_excluded() -> None:
    assert typed_codec(ExcludingTuple).encode(ExcludingTuple(5))[1] == ExcludingTuple(5)


@pytest.mark.parametrize("kind", [ExcludingRecord, ExcludingByDefault, ExcludingData, ExcludingDict])
def test_a_record_with_an_excluded_field_is_refused(kind: Any) -> None:
    with pytest.raises(SerializationError, match=rf"{kind.__name__}\.value is excluded"):
        typed_codec(list[kind])


def test_computed_fields_are_not_written() -> None:
    class Square(BaseModel):
        side: int

        @computed_field
        @property
        def area(self) -> int:
            return self.side**2

    assert typed_codec(Square).encode(Square(side=3))[0].data == b'{"side":3}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("value_type", [float, float | None, list[float | None], deque[float | None], Any])
def test_a_number_that_json_cannot_hold_is_refused(value_type: Any, number: float) -> None:
    value = number
    if value_type == list[float | None]:
        value = [number]  # type: ignore[assignment]
    elif value_type == deque[float | None]:
        value = deque([number])  # type: ignore[assignment]

    with pytest.raises(SerializationError):
        typed_codec(value_type).encode(value)


def test_none_is_not_taken_for_a_lost_number() -> None:
    assert typed_codec(list[float | None]).encode([None, 1.0])[1] == [None, 1.0]


def test_an_integer_that_python_would_not_read_back_is_refused() -> None:
    with pytest.raises(SerializationError):
        typed_codec(int).encode(10**4_400)


class Anything(BaseModel):
    data: bytes = b""
    text: str = ""
    other: Any = None
    inner: list[Anything] = []


def contains_itself() -> Anything:
    value = Anything()
    value.inner.append(value)
    return value


def nested(depth: int) -> Anything:
    value = Anything()
    for _ in range(depth):
        value = Anything(inner=[value])
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Anything(data=b"\xff"), "bytes that are not UTF-8; ser_json_bytes='base64'"),
        (Anything(text="\ud800"), "half of a surrogate pair"),
        (Anything(other=object()), "a class that Pydantic cannot write"),
        (contains_itself(), "contains itself"),
        (nested(300), "nested too deeply"),
    ],
    ids=["bytes", "surrogate", "object", "circle", "depth"],
)
def test_a_value_without_json_is_refused_with_the_reason(value: Anything, reason: str) -> None:
    with pytest.raises(SerializationError, match=reason):
        typed_codec(Anything).encode(value)


def test_bytes_that_are_not_utf8_are_kept_in_base64_as_the_refusal_says() -> None:
    class Picture(BaseModel):
        model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        data: bytes

    value = Picture(data=b"\xff\x00")
    encoded, decoded = typed_codec(Picture).encode(value)

    assert decoded == typed_codec(Picture).decode(encoded.data, JSON, no_pickle) == value


def test_text_with_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(SerializationError):
        typed_codec(str).encode("\ud800")


@dataclasses.dataclass
class Credentials:
    password: SecretStr


class SecretTuple(NamedTuple):
    password: SecretStr


class SecretDict(TypedDict):
    token: NotRequired[SecretStr]


class Outer(BaseModel):
    inner: Credentials


class Early(BaseModel):
    late: Late | None = None


class Late(BaseModel):
    password: SecretStr


class Nested(BaseModel):
    tokens: dict[str, list[SecretBytes | None]]


class Recursive(BaseModel):
    children: list[Recursive] = []
    secret: Secret[int]


@pytest.mark.parametrize(
    "value_type",
    [
        SecretStr,
        list[SecretBytes],
        Nested,
        Recursive,
        Credentials,
        SecretTuple,
        SecretDict,
        Outer,
        Nested | None,
        Early,
    ],
)
def test_a_type_with_a_secret_is_refused(value_type: Any) -> None:
    with pytest.raises(SerializationError, match="secret"):
        typed_codec(value_type)


def test_a_model_that_names_what_is_defined_nowhere_is_refused() -> None:
    waiting = create_model("Waiting", other=("Nowhere", ...))
    with pytest.raises(SerializationError, match=r"Waiting is not a type .* name in its annotations is not defined"):
        typed_codec(waiting)


def test_pydantic_may_say_what_is_wrong_with_a_type() -> None:
    tagged: Any = Annotated[Profile | UserProfile, Field(discriminator="tag")]
    with pytest.raises(SerializationError, match="needs a discriminator field for key 'tag'"):
        typed_codec(tagged)


@pytest.mark.parametrize("value", [Profile(name="a secret"), ["a secret"], "a secret", {"a secret": 1}])
def test_a_value_in_place_of_a_type_is_told_by_its_class(value: Any) -> None:
    with pytest.raises(SerializationError, match=f"an instance of {type(value).__name__} is not a type") as caught:
        typed_codec(value)
    context = caught.value.__context__
    assert "a secret" not in f"{caught.value} {context}"


@pytest.mark.parametrize(
    ("value_type", "value", "place"),
    [
        (list[Profile], [Profile.model_construct(name="a secret", goals="run")], "0.goals: list_type"),
        (list[int], [1, "2"], "1: int_type"),
        (dict[str, list[float]], {"a": ["2"]}, "\u2026.0: float_type"),
    ],
)
def test_what_pydantic_would_only_warn_of_is_told_with_its_place(value_type: Any, value: Any, place: str) -> None:
    with pytest.raises(SerializationError, match=re.escape(place)):
        typed_codec(value_type).encode(value)


def test_a_type_is_told_without_what_it_is_annotated_with() -> None:
    above_zero: Any = Annotated[int, Field(gt=0)]
    with pytest.raises(SerializationError, match="could not be read back as an int: "):
        typed_codec(above_zero).encode(-1)


def test_any_model_can_stand_in_a_field() -> None:
    class Holder(BaseModel):
        held: BaseModel | None = None

    assert typed_codec(Holder).encode(Holder())[0].data == b'{"held":null}'


class Partly(BaseModel):
    shown: int = 1
    kept: int = Field(7, exclude=True)


Recursive = TypeAliasType("Recursive", "dict[str, Recursive] | int")


@pytest.mark.parametrize(
    "value_type",
    [
        TypeAliasType("Named", Partly),
        TypeAliasType("Listed", list[Partly]),
        NewType("New", Partly),
        TypeVar("Bound", bound=Partly),
        TypeVar("OneOf", Partly, int),
        TypeVar("Default", default=Partly),
    ],
    ids=str,
)
def test_a_name_for_a_type_hides_no_excluded_field(value_type: Any) -> None:
    holder = create_model("Holder", value=(value_type, ...))
    with pytest.raises(SerializationError, match=r"Partly\.kept is excluded"):
        typed_codec(holder)


def test_an_alias_of_itself_can_be_stored() -> None:
    value_type: Any = Recursive
    encoded, _ = typed_codec(value_type).encode({"a": {"b": 1}})
    assert encoded.data == b'{"a":{"b":1}}'


def test_a_type_with_an_excluded_field_is_refused() -> None:
    class Inner(BaseModel):
        lost: int = Field(default=0, exclude=True)

    class Holder(BaseModel):
        inner: list[Inner]

    with pytest.raises(SerializationError, match=r"Inner\.lost"):
        typed_codec(Holder)


def test_a_type_that_pydantic_does_not_know_is_refused() -> None:
    class Alien:
        pass

    with pytest.raises(SerializationError):
        typed_codec(Alien)


def test_a_subclass_inside_a_model_is_not_cut_down_in_silence() -> None:
    class Detailed(Profile):
        notes: str = "more"

    class Team(BaseModel):
        members: list[Profile]

    with pytest.raises(SerializationError):
        typed_codec(Team).encode(Team(members=[Detailed()]))


def test_what_pydantic_would_only_warn_of_is_refused() -> None:
    with pytest.raises(SerializationError):
        typed_codec(Profile).encode(Profile.model_construct(name=3))


def test_json_of_another_shape_is_a_schema_error_with_places_and_kinds() -> None:
    with pytest.raises(SchemaError) as caught:
        typed_codec(Profile).decode(b'{"name": 1, "goals": [1]}', JSON, no_pickle)

    assert caught.value.problems == (("name", "string_type"), ("goals.0", "string_type"))


class Told(BaseModel):
    model_config = ConfigDict(extra="forbid")
    counts: dict[str, int] = {}
    years: dict[int, Profile | int] = {}
    alias: int = Field(0, validation_alias=AliasChoices("alias", AliasPath("deep", "down")))


@pytest.mark.parametrize(
    ("data", "places"),
    [
        (b'{"counts": {"the secret": "x"}}', "counts.\u2026: int_parsing"),
        (b'{"years": {"the secret": 1}}', "years.\u2026.[key]: int_parsing"),
        (b'{"years": {"7": {"name": 1}}}', "years.\u2026.Profile.name: string_type, years.\u2026.int: int_type"),
        (b'{"deep": {"down": "x"}}', "deep.down: int_parsing"),
        (b'{"older": 1}', "older: extra_forbidden"),
    ],
)
def test_a_schema_error_tells_the_fields_and_classes_of_a_place_and_no_keys_of_mappings(
    data: bytes, places: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        typed_codec(Told).decode(data, JSON, no_pickle)

    assert str(caught.value) == f"the stored value is not a Told: {places}"


def test_the_number_of_a_place_in_a_pickle_may_be_a_key_and_is_not_told() -> None:
    with pytest.raises(SchemaError, match=r"Told: years\.\u2026\.Profile: model_type, years") as caught:
        typed_codec(Told).decode(b"", PICKLE, lambda: {"years": {1815: "the secret"}})

    assert caught.value.problems[0] == ("years.1815.Profile", "model_type")


@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b'{"a\\n\\u001b[31mb": 1}', JSON), (b"", "a\n\x1b[31mb")],
    ids=["a place", "a content type"],
)
def test_what_is_stored_puts_no_line_of_its_own_into_an_error(data: bytes, content_type: str) -> None:
    with pytest.raises(DeserializationError, match=r"a\\n\\x1b\[31mb") as caught:
        typed_codec(Told).decode(data, content_type, no_pickle)

    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"{'a': 1}"])
def test_what_is_not_json_is_no_schema_error(data: bytes) -> None:
    with pytest.raises(DeserializationError) as caught:
        typed_codec(Profile).decode(data, JSON, no_pickle)

    assert not isinstance(caught.value, SchemaError)


def test_raw_bytes_are_not_guessed_to_be_json() -> None:
    with pytest.raises(DeserializationError):
        typed_codec(Profile).decode(b"{}", BYTES, no_pickle)


def test_a_pickled_value_is_validated_as_the_type() -> None:
    assert typed_codec(Profile).decode(b"", PICKLE, lambda: {"name": "Ada"}) == Profile(name="Ada")
    with pytest.raises(SchemaError):
        typed_codec(Profile).decode(b"", PICKLE, lambda: {"name": 1})


def test_types_that_look_alike_have_codecs_of_their_own() -> None:
    assert typed_codec(Literal[1]).decode(b"1", JSON, no_pickle) == 1
    assert typed_codec(Literal[True]).decode(b"true", JSON, no_pickle) is True


def test_a_root_model_is_written_as_its_root() -> None:
    class Names(RootModel[list[str]]):
        pass

    assert typed_codec(Names).encode(Names(["a"]))[0] == (b'["a"]', JSON, "names")
