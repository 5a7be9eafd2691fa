"""Filters on JSON objects: one meaning, whatever catalog carries them out.

``{"field": value}`` compares for equality, ``{"field": {"$gt": 3}}`` with an operator; several of either must all hold,
``$and`` and ``$or`` combine whole filters. A field is first taken literally and then as a dotted path. Numbers compare
as numbers, strings by code point; values of different types never compare, and a missing field matches nothing, not
even ``$ne``. A value that is an object matches an object that has all its fields. Operators stand at a field and not
inside such a value, where names that begin with ``$`` are refused unless ``$eq`` or the like comes first. What a field
is compared with is JSON: no date, no object of another type. (NaN, infinity and integers of more than 64 bits compare
where no server is in between, which refuses them.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from .errors import InvalidRequestError

MAX_DEPTH: Final = 16
MAX_TERMS: Final = 100
MAX_FIELD_CHARACTERS: Final = 1_024


class Comparison(NamedTuple):
    """One field against one operand. ``operator`` is one of OPERATORS."""

    field: str
    operator: str
    operand: Any


class AllOf(NamedTuple):
    """Conditions that must all hold; without any, it always does."""

    terms: tuple[Condition, ...]


class AnyOf(NamedTuple):
    """Conditions of which one must hold; without any, it never does."""

    terms: tuple[Condition, ...]


Condition: TypeAlias = Comparison | AllOf | AnyOf


def parse(given: Mapping[str, Any] | None) -> AllOf:
    """Return the condition that a filter states; raise InvalidRequestError if it is none. Nothing means everything."""
    return _parse(given or {}, 0, _Budget())


def matches(condition: Condition, value: Mapping[str, Any]) -> bool:
    """Say whether a JSON object fulfils a condition."""
    match condition:
        case AllOf(terms):
            return all(matches(term, value) for term in terms)
        case AnyOf(terms):
            return any(matches(term, value) for term in terms)
        case Comparison(field, operator, operand):
            found = _find(field, value)
            return found is not _ABSENT and OPERATORS[operator](found, operand)


class _Budget:
    def __init__(self) -> None:
        self.terms = 0

    def spend(self) -> None:
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise InvalidRequestError(f"a filter may have at most {MAX_TERMS} comparisons and parts")


def _parse(given: Any, depth: int, budget: _Budget) -> AllOf:
    if not isinstance(given, Mapping):
        raise InvalidRequestError("a filter is an object of fields and what they are compared with")
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"a filter may be nested {MAX_DEPTH} deep at most")
    if depth:
        budget.spend()
    terms: list[Condition] = []
    for field, operand in cast("Mapping[Any, Any]", given).items():
        if not isinstance(field, str) or not field or len(field) > MAX_FIELD_CHARACTERS:
            raise InvalidRequestError(f"a filter's field is a string of 1 to {MAX_FIELD_CHARACTERS} characters")
        if field in ("$and", "$or"):
            parts = tuple(_parse(part, depth + 1, budget) for part in _sequence(operand, field))
            terms.append(AllOf(parts) if field == "$and" else AnyOf(parts))
        elif field.startswith("$"):
            raise InvalidRequestError(f"{field[:40]!r} is no operator that combines filters; there are $and and $or")
        else:
            terms += _comparisons(field, operand, budget)
    return AllOf(tuple(terms))


def _comparisons(field: str, operand: Any, budget: _Budget) -> list[Comparison]:
    given: Mapping[Any, Any] = cast("Mapping[Any, Any]", operand) if isinstance(operand, Mapping) else {}
    operators = [name for name in given if isinstance(name, str) and name.startswith("$")]
    if not operators:
        budget.spend()
        wanted = _json(operand)
        if _holds_operator(wanted):
            # Taken for a value, it would be found nowhere, and nobody would be told.
            raise InvalidRequestError(
                'an operator stands at a field; one of an object is named by its path, as in "a.b"'
            )
        return [Comparison(field, "$eq", wanted)]
    if len(operators) != len(given):
        raise InvalidRequestError("a comparison holds either operators or fields, not both")
    found: list[Comparison] = []
    for name in operators:
        if name not in OPERATORS:
            raise InvalidRequestError(f"{name[:40]!r} is no operator; there are {', '.join(sorted(OPERATORS))}")
        budget.spend()
        one = _json(given[name])
        found.append(Comparison(field, name, list(_sequence(one, name)) if name == "$in" else one))
    return found


def _json(operand: Any) -> Any:
    """Return an operand that is JSON: on its way to a server another one would change its type."""
    try:
        sound = _is_json(operand)
    except RecursionError:
        sound = False
    if not sound:
        raise InvalidRequestError("a filter compares with JSON: no dates or other objects")
    return operand


def _is_json(operand: Any) -> bool:
    if isinstance(operand, list | tuple):
        return all(map(_is_json, cast("Sequence[Any]", operand)))
    if isinstance(operand, Mapping):
        parts = cast("Mapping[Any, Any]", operand)
        return all(isinstance(name, str) for name in parts) and all(map(_is_json, parts.values()))
    return operand is None or isinstance(operand, str | bool | int | float)


def _holds_operator(operand: Any) -> bool:
    if isinstance(operand, list | tuple):
        return any(map(_holds_operator, cast("Sequence[Any]", operand)))
    if isinstance(operand, Mapping):
        parts = cast("Mapping[str, Any]", operand)
        return any(name.startswith("$") for name in parts) or any(map(_holds_operator, parts.values()))
    return False


def _sequence(operand: Any, name: str) -> Sequence[Any]:
    if isinstance(operand, str | bytes) or not isinstance(operand, Sequence):
        raise InvalidRequestError(f"{name} takes a list")
    found = cast("Sequence[Any]", operand)
    if len(found) > MAX_TERMS:
        raise InvalidRequestError(f"{name} may list at most {MAX_TERMS} things")
    return found


_ABSENT: Final = object()


def _find(field: str, value: Mapping[str, Any]) -> Any:
    if field in value:
        return value[field]
    found: Any = value
    for part in field.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _ABSENT
        found = cast("Mapping[str, Any]", found)[part]
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(found: object, operand: object) -> bool:
    same_type = type(found) is type(operand)
    if isinstance(operand, Mapping) and isinstance(found, Mapping):
        there, wanted = cast("Mapping[str, Any]", found), cast("Mapping[str, Any]", operand)
        return all(name in there and _equal(there[name], part) for name, part in wanted.items())
    if isinstance(found, list) and isinstance(operand, list | tuple):
        left, right = cast("list[Any]", found), cast("Sequence[Any]", operand)
        return len(left) == len(right) and all(map(_equal, left, right))
    return ((_number(found) and _number(operand)) or same_type) and found == operand


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(found: Any, operand: Any) -> bool:
        same = (_number(found) and _number(operand)) or (isinstance(found, str) and isinstance(operand, str))
        return same and compare(found, operand)

    return holds


OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$eq": _equal,
    "$ne": lambda found, operand: not _equal(found, operand),
    "$gt": _ordered(lambda found, operand: found > operand),
    "$gte": _ordered(lambda found, operand: found >= operand),
    "$lt": _ordered(lambda found, operand: found < operand),
    "$lte": _ordered(lambda found, operand: found <= operand),
    "$in": lambda found, operand: any(_equal(found, one) for one in operand),
}
