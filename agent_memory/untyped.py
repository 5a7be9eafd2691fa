"""Values without a declared type to bytes and back: each is encoded by what it is, and decoded by its content type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final, cast

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]
import pydantic_core
from pydantic import BaseModel

from .codec import Encoded, typed_codec
from .errors import DeserializationError, SerializationError
from .messages import BYTES, JSON, PICKLE

_MAX_INT_DIGITS: Final = 4_300


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
