"""Values to bytes and back.

Three encodings, each named in the entry by its content type and never guessed from the bytes: JSON, raw bytes, and
signed cloudpickle for what is neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, get_args, get_origin

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]
import pydantic_core
from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)

from .errors import DeserializationError, SchemaError, SerializationError
from .messages import BYTES, JSON, PICKLE

T = TypeVar("T")

_MAX_INT_DIGITS: Final = 4_300
_SECRETS: Final = (SecretStr, SecretBytes, Secret)


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


# -- typed values ----------------------------------------------------------------------------------------------------


class TypedCodec(Generic[T]):
    """JSON by Pydantic for one type. Made once per type: see ``typed_codec``.

    Raises SerializationError for a type that cannot be stored faithfully: one with secrets or excluded fields.
    """

    def __init__(self, value_type: Any) -> None:
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(value_type)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise SerializationError(
                f"{_type_name(value_type)} is not a type that Pydantic can store: {error.code}"
            ) from None
        _refuse_unstorable(value_type, _type_name(value_type), set())
        self.type_name = _type_name(value_type)
        self.schema_name = schema_name(value_type) if _is_model(value_type) else None
        self._raw = value_type is bytes

    def encode(self, value: T) -> tuple[Encoded, T]:
        """Return the bytes, and the value as a reader will get it: the bytes are decoded before they leave."""
        if self._raw:
            if type(value) is not bytes:
                raise SerializationError(f"expected bytes, not {type(value).__name__}")
            return Encoded(value, BYTES), value
        try:
            data = self._adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        except (
            pydantic_core.PydanticSerializationError,
            ValueError,
            TypeError,
            RecursionError,
            AttributeError,
        ) as error:
            raise SerializationError(f"the value is not a {self.type_name}: {type(error).__name__}") from None
        _refuse_lost_numbers(value, data, self._adapter)
        try:
            return Encoded(data, JSON, self.schema_name), self._adapter.validate_json(data)
        except ValidationError as error:
            raise SerializationError(
                f"what would be written could not be read back as {self.type_name}: {_problems_text(error)}"
            ) from None

    def decode(self, data: bytes, content_type: str, load_pickle: Callable[[], Any]) -> T:
        """Return the value; raise DeserializationError if it is no JSON and SchemaError if it is not this type."""
        if content_type == JSON:
            try:
                return self._adapter.validate_json(data)
            except ValidationError as error:
                raise _schema_error(error, self.type_name) from None
        if content_type == PICKLE:
            try:
                return self._adapter.validate_python(load_pickle())
            except ValidationError as error:
                raise _schema_error(error, self.type_name) from None
        if self._raw:
            return data  # type: ignore[return-value]  # T is bytes here
        raise DeserializationError(f"the value is {_short(content_type)}, not JSON; raw() reads it")

    def validate(self, value: Any) -> T:
        """Return ``value`` as this type; raise SerializationError if it is not."""
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise SerializationError(f"the value is not a {self.type_name}: {_problems_text(error)}") from None


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


def _is_model(value_type: object) -> bool:
    """Say whether a class has a name of its own to store values under: models and dataclasses do, ``int`` does not."""
    return isinstance(value_type, type) and (
        issubclass(value_type, BaseModel) or "__dataclass_fields__" in dir(value_type)
    )


def _type_name(value_type: Any) -> str:
    return value_type.__name__ if isinstance(value_type, type) else str(value_type)


def _refuse_unstorable(value_type: Any, where: str, seen: set[Any]) -> None:
    """Refuse secrets, which JSON masks, and excluded fields, which JSON drops: both would be lost in silence."""
    if isinstance(value_type, type) and issubclass(value_type, _SECRETS):
        raise SerializationError(f"{where} is a secret type: its value would be masked; store it elsewhere")
    for argument in get_args(value_type):
        _refuse_unstorable(argument, where, seen)
    origin = get_origin(value_type)
    if origin is not None:
        _refuse_unstorable(origin, where, seen)
    if isinstance(value_type, type) and issubclass(value_type, BaseModel) and value_type not in seen:
        seen.add(value_type)
        for name, field in value_type.model_fields.items():
            place = f"{value_type.__name__}.{name}"
            if field.exclude:
                raise SerializationError(f"{place} is excluded from the dump: it would be lost; remove exclude=True")
            _refuse_unstorable(field.annotation, place, seen)


def _refuse_lost_numbers(value: Any, data: bytes, adapter: TypeAdapter[Any]) -> None:
    """JSON has no NaN and no infinity; Pydantic writes null, which an optional field would take back as None."""
    if b"null" not in data and b"NaN" not in data and b"Infinity" not in data:
        return
    if _has_lost_number(adapter.dump_python(value, round_trip=True, warnings=False)):
        raise SerializationError("JSON cannot hold NaN or infinity: the value would not be read back as it is")


def _has_lost_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_lost_number, cast("Mapping[Any, Any]", value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(_has_lost_number, cast("Iterable[Any]", value)))
    return False


def _schema_error(error: ValidationError, type_name: str) -> DeserializationError:
    # From type and location alone: Pydantic's own text repeats the input.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["type"] == "json_invalid" for problem in found):
        return DeserializationError("the stored bytes are not JSON; raw() reads them")
    problems = [(".".join(map(str, problem["loc"])) or "(the value)", problem["type"]) for problem in found]
    return SchemaError(f"the stored value is not a {type_name}: {_join(problems)}", problems=problems)


def _problems_text(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return _join([(".".join(map(str, problem["loc"])) or "(the value)", problem["type"]) for problem in found])


def _join(problems: Sequence[tuple[str, str]]) -> str:
    shown = ", ".join(f"{place}: {kind}" for place, kind in problems[:5])
    return shown if len(problems) <= 5 else f"{shown}, and {len(problems) - 5} more"


# -- untyped values --------------------------------------------------------------------------------------------------


def encode_untyped(value: Any) -> Encoded:
    """Return a value's bytes by what it is: a model or exact JSON types as JSON, bytes as they are, else a pickle."""
    if isinstance(value, BaseModel):
        return typed_codec(type(value)).encode(value)[0]
    if type(value) is bytes:
        return Encoded(value, BYTES)
    try:
        if _is_exact_json(value):
            try:
                return Encoded(
                    json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), JSON
                )
            except UnicodeEncodeError:
                pass  # A lone surrogate: no JSON in UTF-8, but a pickle keeps it.
        return Encoded(cast(Any, cloudpickle).dumps(value, protocol=5), PICKLE)
    except RecursionError:
        raise SerializationError("the value is nested too deeply, or contains itself") from None
    except Exception as error:
        # Pickling runs the value's own code, which may raise anything.
        raise SerializationError(f"a {type(value).__name__} cannot be pickled: {type(error).__name__}") from None


def decode_untyped(data: bytes, content_type: str, load_pickle: Callable[[], Any]) -> Any:
    """Return plain data for JSON, bytes for bytes, the object for a pickle with a valid signature."""
    if content_type == JSON:
        try:
            return json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise DeserializationError("the stored bytes are not JSON; raw() reads them") from None
    if content_type == PICKLE:
        return load_pickle()
    return data


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_exact_json(value: Any) -> bool:
    kind = type(cast(object, value))
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        # Python refuses to read longer ones back from text.
        return value.bit_length() < _MAX_INT_DIGITS * 3
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return all(map(_is_exact_json, value))
    if kind is dict:
        return all(type(key) is str for key in value) and all(map(_is_exact_json, value.values()))
    return False


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "…"
