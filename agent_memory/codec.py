"""Typed values to bytes and back: JSON by Pydantic, decoded before it leaves, so that what is written can be read.

Three encodings, each named in the entry by its content type and never guessed from the bytes: JSON, raw bytes, and
signed cloudpickle for what is neither. ``untyped`` chooses among them by what a value is.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError

from .differences import cut_model, difference, doubled, is_equal
from .errors import AgentMemoryError, DeserializationError, SchemaError, SerializationError
from .keys import shown
from .messages import BYTES, JSON, PICKLE
from .storable import check_storable, mismatch, type_name, with_article

T = TypeVar("T")

Problem: TypeAlias = tuple[tuple[str | int, ...], str]
"""Where a value is wrong and how, as Pydantic names both: not the value, but maybe keys of mappings in it."""

# What Pydantic says of a value that has no JSON, without the value.
_UNWRITABLE: Final = {
    "invalid utf-8": "it holds bytes that are not UTF-8; ser_json_bytes='base64' and val_json_bytes='base64' in the "
    "model's config keep them",
    "surrogates not allowed": "it holds text with half of a surrogate pair",
    "serialization depth exceeded": "it is nested too deeply",
    "Circular reference": "it contains itself",
    "unknown type": "it holds an instance of a class that Pydantic cannot write",
}

# What is said instead of texts that speak of Pydantic's adapter, or repeat what was given as a type.
_IN_OTHER_WORDS: Final = {
    "class-not-fully-defined": "a name in its annotations is not defined where it is, or only for type checkers",
    "schema-for-unknown-type": "no schema is known for it, or for a part of it",
}

# Pydantic imports a part of itself when the first type is made. A process that forks while a thread is there leaves its
# child the lock of that import for ever.
TypeAdapter(bytes)


class Encoded(NamedTuple):
    """The bytes of a value and what the entry says of them."""

    data: bytes
    content_type: str
    schema_name: str | None = None


def snake_case(name: str) -> str:
    """Return a class name as a document name: ``UserProfile`` becomes ``user_profile``, ``HTTPLog`` ``http_log``."""
    name = re.sub(r"[^0-9A-Za-z_]+", "_", name).strip("_")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return name.lower()


def schema_name(model: Any) -> str | None:
    """Return the name that a model goes by: its ``memory_name`` if it pins one, else its name in snake_case."""
    if not isinstance(model, type):
        return None
    pinned = getattr(model, "memory_name", None)
    return pinned if isinstance(pinned, str) else snake_case(model.__name__)


class TypedCodec(Generic[T]):
    """JSON by Pydantic for one type. Made once per type: see ``typed_codec``.

    Raises SerializationError for a type that cannot be stored faithfully: one with secrets, with excluded fields, or
    with fields that are not read from where they are written.
    """

    def __init__(self, value_type: Any) -> None:
        self._name = type_name(value_type)
        problem = None
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(value_type)
            # Not the adapter's own methods: what they add takes as long as writing a small model.
            self._to_json = self._adapter.serializer.to_json
            self._validate_json: Callable[..., T] = self._adapter.validator.validate_json
        except PydanticUserError as error:
            problem = _IN_OTHER_WORDS.get(error.code or "", error.message)
        except Exception as error:
            # What was given is no type at all; Pydantic parses a text as one and looks into a mapping.
            problem = type(error).__name__
        if problem is not None:
            # Outside the handler: Pydantic's text may repeat a value that was given in place of a type.
            raise SerializationError(f"{self._name} is not a type that Pydantic can store: {problem}")
        self._nests_models, self._doubles, self._names = check_storable(value_type)
        self._type = value_type
        self.schema_name = schema_name(value_type) if _has_own_name(value_type) else None
        self._raw = value_type is bytes

    def encode(self, value: T) -> tuple[Encoded, T]:
        """Return the bytes, and the value as a reader will get it: the bytes are decoded before they leave."""
        if self._raw:
            if type(value) is not bytes:
                raise SerializationError(f"expected bytes, not {type(value).__name__}")
            return Encoded(value, BYTES), value
        data = self._dump(value)
        if self._doubles and (double := next(doubled(value), None)):
            place = f"{type(double.model).__name__}.{double.name}"
            raise SerializationError(
                f"{place} is written as {double.key!r}, and the value has an unknown field of that name"
            )
        _refuse_lost_numbers(value, data, self._adapter)
        decoded = _validated(self._validate_json, data)
        if isinstance(decoded, _Invalid):
            raise SerializationError(
                f"what would be written could not be read back as {with_article(self._name)}: "
                f"{self.joined(decoded.problems)}"
            )
        same = is_equal(value, decoded)
        problem = cut_model(value, decoded, self._name) if self._nests_models or not same else None
        if not same:
            problem = problem or self._change(value, decoded)
        if problem is not None:
            raise SerializationError(problem)
        return Encoded(data, JSON, self.schema_name), decoded

    def decode(self, data: bytes, content_type: str, load_pickle: Callable[[], Any]) -> T:
        """Return the value; raise DeserializationError if it is no JSON and SchemaError if it is not this type."""
        if content_type == JSON:
            decoded = _validated(self._validate_json, data)
        elif content_type == PICKLE:
            decoded = _validated(self._adapter.validate_python, load_pickle())
        elif self._raw:
            return data  # type: ignore[return-value]  # T is bytes here
        else:
            raise DeserializationError(f"the value is {shown(_short(content_type))}, not JSON; raw() reads it")
        if not isinstance(decoded, _Invalid):
            return self._cleared(decoded)
        if any(kind == "json_invalid" for _, kind in decoded.problems):
            raise DeserializationError("the stored bytes are not JSON; raw() reads them")
        told = self.joined(decoded.problems, in_python=content_type == PICKLE)
        raise SchemaError(
            f"the stored value is not {with_article(self._name)}: {told}",
            problems=[(_place(map(str, location)), kind) for location, kind in decoded.problems],
        )

    def joined(self, problems: Sequence[Problem], *, in_python: bool = False) -> str:
        """Return what is wrong with a value as one line: the first five places, each with the kind of its error.

        The keys of mappings are data, and left out. In JSON they are text, but ``in_python`` a number may be one.
        """
        places = ", ".join(f"{_place(self._named(*problem, in_python))}: {problem[1]}" for problem in problems[:5])
        return places if len(problems) <= 5 else f"{places}, and {len(problems) - 5} more"

    def _named(self, location: tuple[str | int, ...], kind: str, in_python: bool) -> Iterator[str]:
        for depth, part in enumerate(location, 1):
            # The name of a field that the model does not have tells what has become of it.
            is_name = part in self._names or (kind == "extra_forbidden" and depth == len(location))
            yield shown(str(part)) if is_name or (isinstance(part, int) and not in_python) else "…"

    def is_same(self, data: bytes, other: bytes) -> bool:
        """Say whether JSON is read as one value: a set has no order, and older models wrote fewer or more fields."""
        values = [self._cleared(_validated(self._validate_json, one)) for one in (data, other)]
        if self._raw or any(isinstance(value, _Invalid) for value in values):
            return False
        with suppress(Exception):
            # Serializers run code of the type's own, and a set of models has no form in plain data.
            written, expected = (self._dump(cast(T, value)) for value in values)
            # Only a set's elements, or a mapping's keys, may be the same bytes in another order.
            if written == expected or Counter(written) != Counter(expected):
                return written == expected
            plain, there = (self._adapter.dump_python(cast(T, value), round_trip=True) for value in values)
            return _is_alike(plain, there)
        return False

    def _cleared(self, decoded: Any) -> Any:
        """Drop what was stored under the key of a field that was read from another one: it would be written over it."""
        for model, _, key in list(doubled(decoded)) if self._doubles else ():
            # A model may stand at several places, and two of its fields may have one key.
            (model.__pydantic_extra__ or {}).pop(key, None)
            model.__pydantic_fields_set__.discard(key)
        return decoded

    def _change(self, value: T, decoded: T) -> str | None:
        """Say what JSON would change; what the type's own validators make of a value is no change, if it stays so."""
        expected, again = value, decoded
        with suppress(Exception):
            # Validators that are written for JSON may raise anything.
            fields = self._adapter.dump_python(value, by_alias=True, round_trip=True, warnings=False)
            expected = self._adapter.validate_python(fields)
        with suppress(Exception):
            # What validators leave as it is when fields go by their names, was changed by the keys that they have in
            # JSON: one that is written and not read, or one that two fields are written to.
            fields = self._adapter.dump_python(value, by_alias=False, round_trip=True, warnings=False)
            if is_equal(self._adapter.validate_python(fields, by_alias=False, by_name=True), value):
                expected = value
        with suppress(SerializationError, ValidationError):
            again = self._validate_json(self._dump(decoded))
        return difference(expected, decoded, self._name) or difference(decoded, again, self._name)

    def _dump(self, value: T) -> bytes:
        try:
            return self._to_json(value, by_alias=True, round_trip=True, warnings="error")
        except (ValueError, TypeError, RecursionError, AttributeError) as error:
            problem = next((ours for theirs, ours in _UNWRITABLE.items() if theirs in str(error)), type(error).__name__)
        # Outside the handler: Pydantic's text repeats the value, and must not be this error's context.
        if isinstance(self._type, type) and self._type is not Any and not isinstance(value, self._type):
            raise SerializationError(mismatch(self._type, value))
        with suppress(Exception):
            # Pydantic can write the value all the same. Reading that back strictly tells which fields are wrong.
            data = self._to_json(value, by_alias=False, round_trip=True, warnings=False)
            found = _validated(partial(self._validate_json, strict=True, by_alias=False, by_name=True), data)
            problem = self.joined(found.problems) if isinstance(found, _Invalid) else problem
        raise SerializationError(f"the value is not {with_article(self._name)}: {problem}")


class _Invalid(NamedTuple):
    """What Pydantic found wrong.

    A validation error's own text repeats the value. So it never becomes the cause or the context of ours: what it says
    is taken out, its handler is left, and only then is an error raised.
    """

    problems: list[Problem]


def _validated(validate: Callable[[Any], T], value: Any) -> T | _Invalid:
    try:
        return validate(value)
    except ValidationError as error:
        return _Invalid(problems_of(error))
    except (AgentMemoryError, MemoryError):
        # Of the value it says nothing.
        raise
    except Exception as error:
        # Validators are the type's own code, and of a value that they do not know they may raise anything.
        return _Invalid([((), type(error).__name__)])


def problems_of(error: ValidationError) -> list[Problem]:
    """Return what is wrong, without the values that the error's text repeats."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [(one["loc"], one["type"]) for one in found]


def _place(location: Iterable[str]) -> str:
    return ".".join(location) or "(the value)"


@lru_cache(maxsize=512)
def _cached_codec(value_type: Any) -> TypedCodec[Any]:
    return TypedCodec(value_type)


def typed_codec(value_type: Any) -> TypedCodec[Any]:
    """Return the codec of a type; Pydantic's schema for it is built once."""
    try:
        return _cached_codec(value_type)
    except TypeError:
        # Some annotations (an Annotated with a list, say) cannot be hashed.
        return TypedCodec(value_type)


def _has_own_name(value_type: object) -> bool:
    """Say whether a class has a name of its own to store values under: models and dataclasses do, ``int`` does not."""
    return isinstance(value_type, type) and (
        issubclass(value_type, BaseModel) or dataclasses.is_dataclass(cast(object, value_type))
    )


def _refuse_lost_numbers(value: Any, data: bytes, adapter: TypeAdapter[Any]) -> None:
    """JSON has no NaN and no infinity; Pydantic writes null, which an optional field would take back as None."""
    if b"null" not in data and b"NaN" not in data and b"Infinity" not in data:
        return
    if _has_lost_number(adapter.dump_python(value, round_trip=True, warnings=False)):
        raise SerializationError("JSON cannot hold NaN or infinity: the value would not be read back as it is")


def _has_lost_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str | bytes):
        return False
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return any(map(_has_lost_number, mapping)) or any(map(_has_lost_number, mapping.values()))
    return isinstance(value, Collection) and any(map(_has_lost_number, cast("Collection[Any]", value)))


def _is_alike(value: Any, other: Any) -> bool:
    """Say whether plain data is the same down to its types and texts; a set's elements count by being equal."""
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        mapping, there = cast("dict[Any, Any]", value), cast("dict[Any, Any]", other)
        return mapping.keys() == there.keys() and all(_is_alike(one, there[key]) for key, one in mapping.items())
    if isinstance(value, list | tuple):
        left, right = cast("list[Any]", value), cast("list[Any]", other)
        return len(left) == len(right) and all(map(_is_alike, left, right))
    return value == other and (isinstance(value, Set) or repr(value) == repr(other))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
