"""Values to bytes and back.

Three encodings, each named in the entry by its content type and never guessed from the bytes: JSON, raw bytes, and
signed cloudpickle for what is neither.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]
import pydantic_core
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUserError,
    Secret,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict  # typing's knows none of those that Pydantic takes on Python 3.11

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


def by_stored_keys(model: type[BaseModel], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's fields by the keys that they have in JSON, by which validators that run before know them."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = field.serialization_alias or name
        keys[name] = key if key in _aliases(field) else name
    if len(set(keys.values())) < len(keys):
        return dict(fields)
    return {keys.get(name, name): value for name, value in fields.items()}


def _aliases(field: FieldInfo) -> list[str]:
    """Return the keys besides its name that a field is read from."""
    read = field.validation_alias
    if isinstance(read, AliasChoices | AliasPath):
        found = read.convert_to_aliases()
        paths = cast("list[list[str | int]]", found if isinstance(read, AliasChoices) else [found])
        return [path[0] for path in paths if len(path) == 1 and isinstance(path[0], str)]
    return [] if read is None else [read]


def _is_read_back(model: type[BaseModel], name: str, field: FieldInfo) -> bool:
    """Say whether a field is read from the key that it is written to."""
    config = model.model_config
    keys = _aliases(field) if config.get("validate_by_alias", True) else []
    if field.validation_alias is None or config.get("validate_by_name") or config.get("populate_by_name"):
        keys = [*keys, name]
    own = model.__pydantic_decorators__
    # A serializer of the model may write it anywhere, and a validator that runs before read it from there.
    trusted = own.model_serializers or any(one.info.mode != "after" for one in own.model_validators.values())
    return bool(trusted) or (field.serialization_alias or name) in keys


# -- typed values ----------------------------------------------------------------------------------------------------


class TypedCodec(Generic[T]):
    """JSON by Pydantic for one type. Made once per type: see ``typed_codec``.

    Raises SerializationError for a type that cannot be stored faithfully: one with secrets, with excluded fields, or
    with fields that are not read from where they are written.
    """

    def __init__(self, value_type: Any) -> None:
        try:
            self._adapter: TypeAdapter[T] = TypeAdapter(value_type)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise SerializationError(
                f"{_type_name(value_type)} is not a type that Pydantic can store: {error.code}"
            ) from None
        # Below the adapter's methods, whose wrapping takes as long as a small model.
        self._to_json = self._adapter.serializer.to_json
        self._validate_json: Callable[[bytes], T] = self._adapter.validator.validate_json
        self._nests_models = _nests_models(value_type)
        self._type = value_type
        self.type_name = _type_name(value_type)
        self.schema_name = schema_name(value_type) if _is_model(value_type) else None
        self._raw = value_type is bytes

    def encode(self, value: T) -> tuple[Encoded, T]:
        """Return the bytes, and the value as a reader will get it: the bytes are decoded before they leave."""
        if self._raw:
            if type(value) is not bytes:
                raise SerializationError(f"expected bytes, not {type(value).__name__}")
            return Encoded(value, BYTES), value
        data = self._dump(value)
        _refuse_lost_numbers(value, data, self._adapter)
        decoded = _validated(self._validate_json, data)
        if isinstance(decoded, _Invalid):
            raise SerializationError(
                f"what would be written could not be read back as {a(self.type_name)}: {_join(decoded.problems)}"
            )
        if self._nests_models:
            _refuse_cut_models(value, decoded, self.type_name)
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
            raise DeserializationError(f"the value is {_short(content_type)}, not JSON; raw() reads it")
        if not isinstance(decoded, _Invalid):
            return decoded
        if any(kind == "json_invalid" for _, kind in decoded.problems):
            raise DeserializationError("the stored bytes are not JSON; raw() reads them")
        raise SchemaError(
            f"the stored value is not {a(self.type_name)}: {_join(decoded.problems)}", problems=decoded.problems
        )

    def _dump(self, value: T) -> bytes:
        try:
            return self._to_json(value, by_alias=True, round_trip=True, warnings="error")
        except (ValueError, TypeError, RecursionError, AttributeError) as error:
            problem = type(error).__name__
        # Outside the handler: Pydantic's text repeats the value, and must not be this error's context.
        if isinstance(self._type, type) and not isinstance(value, self._type):
            raise SerializationError(f"expected {a(self.type_name)}, not {a(type(value).__name__)}")
        if isinstance(value, BaseModel):
            found = _validated(self._validate_fields, dict(value))
            problem = _join(found.problems) if isinstance(found, _Invalid) else problem
        raise SerializationError(f"the value is not {a(self.type_name)}: {problem}")

    def _validate_fields(self, fields: dict[str, Any]) -> T:
        # A model's fields go by their names here, whatever they are called in JSON.
        return self._adapter.validate_python(fields, strict=True, by_name=True, by_alias=False)


class _Invalid(NamedTuple):
    """What Pydantic found wrong: ``(location, type)`` pairs.

    A validation error's own text repeats the value. So it never becomes the cause or the context of ours: what it says
    is taken out, its handler is left, and only then is an error raised.
    """

    problems: list[tuple[str, str]]


def _validated(validate: Callable[[Any], T], value: Any) -> T | _Invalid:
    try:
        return validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return _Invalid([(".".join(map(str, one["loc"])) or "(the value)", one["type"]) for one in found])


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
        issubclass(value_type, BaseModel) or dataclasses.is_dataclass(cast(object, value_type))
    )


def a(name: str) -> str:
    """Return a name with its article."""
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def _type_name(value_type: Any) -> str:
    return value_type.__name__ if isinstance(value_type, type) else str(value_type)


def _refuse_unstorable(value_type: Any, where: str, seen: set[Any]) -> bool:
    """Refuse what would be lost in silence: secrets, which JSON masks, fields that it leaves out or that are not read.

    Return whether a model occurs in it.
    """
    if isinstance(value_type, type) and issubclass(value_type, _SECRETS):
        raise SerializationError(f"{where} is a secret type: its value would be masked; store it elsewhere")
    models = False
    for part in (*get_args(value_type), get_origin(value_type)):
        if part is not None:
            models |= _refuse_unstorable(part, where, seen)
    if not isinstance(value_type, type):
        return models
    kind = cast("type[object]", value_type)
    is_model = issubclass(kind, BaseModel)
    if kind in seen:
        return models or is_model
    seen.add(kind)
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            place = f"{kind.__name__}.{name}"
            if field.exclude or getattr(field, "exclude_if", None):
                raise SerializationError(f"{place} is excluded from the dump: it would be lost; do not exclude it")
            if not _is_read_back(kind, name, field):
                key = field.serialization_alias or name
                raise SerializationError(
                    f"{place} is written as {key!r} and not read from there: it would be lost; add that to its "
                    "validation_alias"
                )
            _refuse_unstorable(field.annotation, place, seen)
        return True
    for name, annotation in _annotations(kind).items():
        models |= _refuse_unstorable(annotation, f"{kind.__name__}.{name}", seen)
    return models


def _nests_models(value_type: Any) -> bool:
    """Check a type, and say whether a model can stand somewhere inside its values."""
    name = _type_name(value_type)
    if not (isinstance(value_type, type) and issubclass(value_type, BaseModel)):
        return _refuse_unstorable(value_type, name, set())
    fields = value_type.model_fields
    _refuse_unstorable(value_type, name, set())
    return any(_refuse_unstorable(field.annotation, name, {value_type}) for field in fields.values())


def _annotations(value_type: type[object]) -> Mapping[str, Any]:
    """Return the fields of a dataclass, a TypedDict or a NamedTuple."""
    if not (dataclasses.is_dataclass(value_type) or is_typeddict(value_type) or hasattr(value_type, "_fields")):
        return {}
    try:
        return get_type_hints(value_type, include_extras=True)
    except NameError:
        # A name that exists only for a type checker; Pydantic will have its own word on it.
        return {}


def _refuse_cut_models(value: Any, decoded: Any, place: str) -> None:
    """Refuse a subclass where a model is declared: Pydantic would drop the fields that it adds in silence."""
    if isinstance(value, BaseModel):
        if type(value) is not type(decoded):
            raise SerializationError(f"{place} is a {type(value).__name__}, which would not be read back as one")
        for name, part in value.__dict__.items():
            _refuse_cut_models(part, getattr(decoded, name, None), f"{place}.{name}")
    elif isinstance(value, Mapping) and isinstance(decoded, Mapping):
        pairs = zip(
            cast("Mapping[Any, Any]", value).values(), cast("Mapping[Any, Any]", decoded).values(), strict=False
        )
        for part, other in pairs:
            _refuse_cut_models(part, other, place)
    elif isinstance(value, list | tuple) and isinstance(decoded, list | tuple):
        for part, other in zip(cast("Sequence[Any]", value), cast("Sequence[Any]", decoded), strict=False):
            _refuse_cut_models(part, other, place)


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
        data = _exact_json(value)
        return Encoded(data, JSON) if data is not None else Encoded(_pickled(value), PICKLE)
    except RecursionError:
        problem = "the value is nested too deeply, or contains itself"
    except Exception as error:
        # Pickling runs the value's own code, which may raise anything.
        problem = f"a {type(value).__name__} cannot be pickled: {type(error).__name__}"
    raise SerializationError(problem)


def _exact_json(value: Any) -> bytes | None:
    if not _is_exact_json(value):
        return None
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate: no JSON in UTF-8, but a pickle keeps it.
        return None


def _pickled(value: Any) -> bytes:
    return cast(Any, cloudpickle).dumps(value, protocol=5)


def decode_untyped(data: bytes, content_type: str, load_pickle: Callable[[], Any]) -> Any:
    """Return plain data for JSON, bytes for bytes, the object for a pickle with a valid signature."""
    if content_type == JSON:
        return _plain_data(data)
    if content_type == PICKLE:
        return load_pickle()
    return data


def _plain_data(data: bytes) -> Any:
    """Return the plain data that JSON stands for; raise DeserializationError if it is none."""
    try:
        # Nine times as fast as the standard library; but what is nested deeply, or holds a lone surrogate, it refuses.
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        pass
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    raise DeserializationError("the stored bytes are not JSON; raw() reads them")


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
