"""Reading what agents may see, and making text of it that cannot break out of its place.

A stored value that does not validate never fails a read: it is reported by place and kind of error.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final, NamedTuple, cast

from pydantic import BaseModel, ValidationError

from agent_memory import AgentMemoryError, DeserializationError, IntegrityError, SchemaError

from .annotations import by_location, visible, visible_fields
from .bindings import Plan, Spec

_MARKUP: Final = re.compile("[<>&\x7f]")
_INVISIBLE: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Letters and marks that show nothing, so that text can hide in a row of them: variation selectors, fillers, joiners and
# the blank Braille pattern. https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt
_BLANK: Final = frozenset(
    {
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
    }
)
# Other forms of < > & " and \, the same where a tokenizer normalizes by NFKC, as those of SentencePiece do by default.
_ALIKE: Final = frozenset("\uff1c\uff1e\uff06\uff02\uff3c\ufe64\ufe65\ufe60\ufe68")


class Row(NamedTuple):
    """A value that was read: what agents see of it, or what is wrong with it; neither if there is none."""

    id: str
    data: dict[str, Any] | None
    problem: str | None = None


def read_document(spec: Spec) -> Plan[Row]:
    """Read a document once."""
    try:
        snapshot = yield lambda entity: entity.document(spec.model, name=spec.name).snapshot()
    except (DeserializationError, IntegrityError) as error:
        return Row(spec.name, None, problem_of(spec.model, error))
    return Row(spec.name, None if snapshot is None else visible(snapshot.value))


def read_items(spec: Spec, limit: int, older_than: str | None = None) -> Plan[list[Row]]:
    """Read the newest items of a collection, newest first."""
    options: dict[str, Any] = {"limit": limit, "reverse": True, "after": older_than}
    try:
        found = yield lambda entity: entity.collection(spec.model, name=spec.name).list(**options)
        return [Row(one.id, visible(one.value)) for one in found]
    except (DeserializationError, IntegrityError):
        pass
    # One bad item must not hide the others: each is read for itself.
    try:
        raw = yield lambda entity: entity.collection(spec.model, name=spec.name).raw(**options)
    except IntegrityError as error:
        return [Row("", None, problem_of(spec.model, error))]
    rows: list[Row] = []
    for one in raw:
        if one.entry.content_type == "application/json":
            rows.append(_row(spec.model, one.id, one.value))
        else:
            rows.append((yield from _read_item(spec, one.id)))
    return rows


def _read_item(spec: Spec, item_id: str) -> Plan[Row]:
    try:
        found = yield lambda entity: entity.collection(spec.model, name=spec.name).item(item_id).snapshot()
    except (DeserializationError, IntegrityError) as error:
        return Row(item_id, None, problem_of(spec.model, error))
    return Row(item_id, None if found is None else visible(found.value))


def _row(model: type[BaseModel], item_id: str, data: bytes) -> Row:
    try:
        return Row(item_id, visible(model.model_validate_json(data)))
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    except (AgentMemoryError, MemoryError):
        # Of the value it says nothing.
        raise
    except Exception as error:
        # Validators are the application's own code, and may raise anything.
        return Row(item_id, None, _places(model, [("", type(error).__name__)]))
    if any(one["type"] == "json_invalid" for one in found):
        return Row(item_id, None, "not JSON")
    return Row(item_id, None, _places(model, [(".".join(map(str, one["loc"])), one["type"]) for one in found]))


def problem_of(model: type[BaseModel], error: Exception) -> str:
    """Return what is wrong with a stored value: places and kinds, never the value."""
    if isinstance(error, SchemaError):
        return _places(model, error.problems)
    return str(getattr(error, "code", "deserialization"))


def _places(model: type[BaseModel], problems: Any) -> str:
    # Below a field's name a location may hold stored text: the keys of a mapping, say.
    names = by_location(visible_fields(model))
    found: list[str] = []
    for place, kind in cast("list[tuple[str, str]]", problems):
        whole = place in ("", "(the value)")
        name = "(all together)" if whole else names.get(place.partition(".")[0], "a field that is not shown")
        text = f"{name}: {kind}"
        if text not in found:
            found.append(text)
    return ", ".join(found[:5]) + (f", and {len(found) - 5} more" if len(found) > 5 else "")


# -- text ------------------------------------------------------------------------------------------------------------


def safe_json(value: Any) -> str:
    """Return a value as JSON in one line, with everything escaped that could end or disguise its place in a prompt.

    Angle brackets, ampersands, what may be normalized to them, control characters and invisible ones are written as
    ``\\uXXXX``: still the same JSON. The keys of mappings are sorted.
    """
    return _escaped(json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(", ", ": ")))


def safe_fields(data: dict[str, Any]) -> str:
    """Return fields as a JSON object like ``safe_json``, but in the order of their declaration."""
    return "{" + ", ".join(f"{safe_json(name)}: {safe_json(one)}" for name, one in data.items()) + "}"


def safe_text(text: str) -> str:
    """Return text in one line, escaped like ``safe_json`` but without quotes."""
    return safe_json(text)[1:-1]


def _escaped(text: str) -> str:
    if text.isascii():
        return _MARKUP.sub(_escape, text)
    return "".join(_escape(one) if _is_unsafe(one) else one for one in text)


def _is_unsafe(character: str) -> bool:
    return (
        character in "<>&"
        or unicodedata.category(character) in _INVISIBLE
        or ord(character) in _BLANK
        or character in _ALIKE
    )  # fmt: skip


def _escape(found: re.Match[str] | str) -> str:
    character = found if isinstance(found, str) else found.group()
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"
