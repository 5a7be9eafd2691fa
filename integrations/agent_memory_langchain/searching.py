"""Searching a collection by text and by field: plain comparisons on what agents see, newest first."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, Final, Literal, cast, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic import create_model as make_model

from .annotations import visible_fields
from .bindings import Plan, Spec, plural
from .reading import Row, read_items
from .schemas import Arguments, Refused, alternatives

PAGE: Final = 200
_TEXT_CONFIG: Final = ("str_strip_whitespace", "str_to_lower", "str_to_upper", "coerce_numbers_to_str")
SEARCHED: Final = 2_000
"""How many items a search looks at, the newest first; it says where it stopped."""

_SCALARS: Final = (
    str, int, float, bool, decimal.Decimal, datetime.date, datetime.datetime, datetime.time, uuid.UUID, NoneType,
)  # fmt: skip


def search_arguments(spec: Spec, paging: dict[str, Any]) -> Arguments:
    """Return the arguments of a collection's search: a text, fields to compare, and those that page through it."""
    words = "words that must all occur, in any order and in any field"
    own: dict[str, Any] = {"text": (str | None, Field(None, description=words))}
    fields: dict[str, Any] = {
        name: (field.annotation, Field(None, description=field.description))
        for name, field in visible_fields(spec.model).items()
        if all(map(_is_scalar, alternatives(field.annotation)))
    }
    if fields:
        # A text is given the form in which the model stores it.
        kept = {name: one for name, one in spec.model.model_config.items() if name in _TEXT_CONFIG}
        config = {"extra": "forbid", "protected_namespaces": (), "arbitrary_types_allowed": True, **kept}
        where = make_model("Where", __config__=cast(ConfigDict, config), **fields)
        own["where"] = (where, Field(None, description="fields that must be equal"))
    return Arguments(f"search_{plural(spec.label)}", {}, own={**own, **paging})


def search_items(spec: Spec, sent: dict[str, Any]) -> Plan[tuple[list[Row], str | None]]:
    """Return the newest items that match, and the item behind which there may be more; None if there are none."""
    words = (sent["text"] or "").casefold().split()
    given = cast("BaseModel | None", sent.get("where"))
    where = given if given is not None and given.model_fields_set else None
    if not words and where is None:
        raise Refused(f"search_{plural(spec.label)}: send a text or fields to compare.")
    found: list[Row] = []
    last, searched = sent["older_than"], 0
    while searched < SEARCHED:
        rows = yield from read_items(spec, PAGE, last)
        for row in rows:
            if not row.id:
                raise Refused(f"search_{plural(spec.label)}: items cannot be read; only the application can repair it.")
            if row.data is not None and _matches(row.data, words, where):
                found.append(row)
                if len(found) > sent["limit"]:
                    return found[:-1], found[-2].id
        if len(rows) < PAGE:
            return found, None
        last, searched = rows[-1].id, searched + len(rows)
    return found, last


def _matches(data: dict[str, Any], words: Sequence[str], where: BaseModel | None) -> bool:
    if where is not None and not _equal(data, where):
        return False
    leaves = [str(leaf).casefold() for leaf in _leaves(data)] if words else []
    return all(any(word in leaf for leaf in leaves) for word in words)


def _equal(data: dict[str, Any], where: BaseModel) -> bool:
    """Compare values, not texts: 12:00+02:00 is 10:00Z, and 1.50 is 1.5."""
    names = where.model_fields_set
    try:
        stored = type(where).model_validate_json(json.dumps({name: data.get(name) for name in names}))
    except ValidationError:
        return False
    return all(getattr(stored, name) == getattr(where, name) for name in names)


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, dict):
        data = list(cast("dict[str, Any]", data).values())
    if isinstance(data, list):
        for one in cast("list[Any]", data):
            yield from _leaves(one)
    elif data is not None:
        yield data


def _is_scalar(kind: Any) -> bool:
    return kind in _SCALARS or get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum))
