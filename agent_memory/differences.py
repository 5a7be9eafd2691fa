"""What of a value JSON would not give back as it is.

Two questions, with one walk through both values: whether a model or dataclass was cut down to the one that is declared,
and whether anything became another value.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel

from .storable import with_article, written_key

_ORDERED: Final = (list, tuple, deque)
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


def is_equal(value: Any, other: Any) -> bool:
    """Say whether values are equal; what cannot be compared (an array of numbers, say) is not."""
    try:
        return bool(value == other)
    except Exception:
        # Comparing runs the values' own code, which may raise anything.
        return False


def cut_model(value: Any, decoded: Any, place: str) -> str | None:
    """Say which model or dataclass would not be read back as one: Pydantic drops in silence what a subclass adds."""
    found = _difference(value, decoded, kinds_alone=True)
    return found and f"{place}{found}"


def difference(value: Any, decoded: Any, place: str) -> str | None:
    """Say what would be read back as something else, None if nothing would; the text holds no value.

    A tuple may become a list. Private attributes are no data. What has no equality of its own counts by its class.
    """
    found = _difference(value, decoded, kinds_alone=False)
    return found and f"{place}{found}"


class Double(NamedTuple):
    """An unknown field that has the key of a known one: the model, the name of the known field, and the key."""

    model: BaseModel
    name: str
    key: str


def doubled(value: Any) -> Iterator[Double]:
    """Iterate over the unknown fields in a value that have the key of a known one.

    Where what is stored has two keys for one field, Pydantic reads one and takes the other for an unknown field.
    """
    if isinstance(value, BaseModel) and value.__pydantic_extra__:
        for name, field in type(value).__pydantic_fields__.items():
            key = written_key(name, field)
            if key in value.__pydantic_extra__:
                yield Double(value, name, key)
    fields = _fields(value)
    parts: Iterable[Any] = ()
    if fields is not None:
        parts = fields.values()
    elif isinstance(value, Mapping):
        parts = cast("Mapping[Any, Any]", value).values()
    elif isinstance(value, (*_ORDERED, Set)):
        parts = cast("Iterable[Any]", value)
    for part in parts:
        yield from doubled(part)


def _difference(value: Any, decoded: Any, *, kinds_alone: bool) -> str | None:
    """Return what is to be said behind the value's place."""
    if type(value) in _PLAIN if kinds_alone else is_equal(value, decoded):
        return None
    fields = _fields(value)
    parts: Iterable[tuple[str, Any, Any]]
    if fields is not None:
        if type(value) is not type(decoded):
            return f" is {with_article(type(value).__name__)}, which would not be read back as one"
        others = _fields(decoded) or {}
        for name in _unread(value):
            if not is_equal(fields[name], others[name]):
                return f".{name} would not be read back: its class takes no such argument"
        parts = ((f".{name}", part, others.get(name)) for name, part in fields.items())
    elif isinstance(value, Mapping) and isinstance(decoded, Mapping):
        mapping, there = cast("Mapping[Any, Any]", value), cast("Mapping[Any, Any]", decoded)
        if not kinds_alone and mapping.keys() != there.keys():
            return " would be read back with other keys"
        parts = (("[…]", part, there[key]) for key, part in mapping.items() if key in there)
    elif isinstance(value, _ORDERED) and isinstance(decoded, _ORDERED):
        left, right = cast("Sequence[Any]", value), cast("Sequence[Any]", decoded)
        if not kinds_alone and len(left) != len(right):
            return " would be read back with more or fewer elements"
        parts = (("[…]", *pair) for pair in zip(left, right, strict=False))
    elif isinstance(value, Set) and isinstance(decoded, Set):
        elements, read = cast("Set[Any]", value), cast("Set[Any]", decoded)
        kinds: set[type[Any]] = {type(one) for one in read}
        for one in elements:
            if _fields(one) is not None and type(one) not in kinds:
                return f" holds {with_article(type(one).__name__)}, which would not be read back as one"
        return None if kinds_alone or _has_same_elements(elements, read) else " would be read back with other elements"
    else:
        return None if kinds_alone or _is_same(value, decoded) else _told(value, decoded)
    for inner, part, other in parts:
        found = _difference(part, other, kinds_alone=kinds_alone)
        if found is not None:
            return inner + found
    return None


def _has_same_elements(value: Set[Any], decoded: Set[Any]) -> bool:
    """Say whether each element has one to which it makes no difference; private attributes can make them unequal."""
    # In one order, so that the first one is mostly the right one.
    left = sorted((one for one in decoded if one not in value), key=_text)
    for one in sorted((one for one in value if one not in decoded), key=_text):
        for index, other in enumerate(left):
            if _difference(one, other, kinds_alone=False) is None:
                del left[index]
                break
        else:
            return False
    return not left


def _text(value: Any) -> str:
    return repr(_fields(value))


def _fields(value: Any) -> dict[str, Any] | None:
    """Return what a model or dataclass holds, None for anything else."""
    if isinstance(value, BaseModel):
        # Not all of __dict__: cached properties stand there too.
        held, extra = value.__dict__, value.__pydantic_extra__
        own = {name: held[name] for name in type(value).__pydantic_fields__ if name in held}
        return {**own, **extra} if extra else own
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return None


def _unread(value: Any) -> list[str]:
    """Return the fields that are written, and made anew when a value is read."""
    return [] if isinstance(value, BaseModel) else [one.name for one in dataclasses.fields(value) if not one.init]


def _is_same(value: Any, decoded: Any) -> bool:
    """Say whether values that are not equal are the same all the same."""
    if type(value) is not type(decoded):
        return False
    if isinstance(value, datetime) and value.tzinfo is not None and decoded.tzinfo is not None:
        # In the hour that a zone has twice, Python takes no two zones' times for equal.
        return value - decoded == timedelta(0)
    # An array is not equal to itself; what has no equality of its own is equal to nothing else.
    return type(value).__eq__ is object.__eq__ or not is_equal(value, value)


def _told(value: Any, decoded: Any) -> str:
    if type(value) is type(decoded):
        return f" is {with_article(type(value).__name__)} that would be read back as another"
    return (
        f" is {with_article(type(value).__name__)}, which would be read back as {with_article(type(decoded).__name__)}"
    )
