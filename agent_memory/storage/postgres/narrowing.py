"""Filters as conditions of PostgreSQL on the projection of a value; ``filters.matches`` has the last word.

A condition holds at least wherever the filter does, and for every row whose value could not be projected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, cast

from ...filters import AllOf, AnyOf, Comparison, Condition

_ORDERED: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def narrow(condition: Condition) -> tuple[str, dict[str, Any]]:
    """Return an SQL condition that holds at least wherever ``condition`` does, and its bindings."""
    narrowed = _Narrowed()
    inner = narrowed.condition(condition)
    return ("TRUE" if inner == "TRUE" else f"(entry.projection IS NULL OR {inner})"), narrowed.values


class _Narrowed:
    """Makes a condition and collects its bindings, which are named ``f0``, ``f1`` and so on."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def condition(self, condition: Condition) -> str:
        """Return the condition for a projected value."""
        match condition:
            case AllOf(terms):
                parts = [part for part in map(self.condition, terms) if part != "TRUE"]
                return f"({' AND '.join(parts)})" if parts else "TRUE"
            case AnyOf(terms):
                return self._any(list(map(self.condition, terms)))
            case Comparison(field, operator, operand):
                if not _storable(field):
                    return "TRUE"
                if operator == "$in":
                    return self._any([self._equal(field, one) for one in operand])
                if operator == "$eq":
                    return self._equal(field, operand)
                return self._ordered(field, operator, operand) if operator in _ORDERED else "TRUE"

    def _any(self, parts: list[str]) -> str:
        if "TRUE" in parts:
            return "TRUE"
        return f"({' OR '.join(parts)})" if parts else "FALSE"

    def _bind(self, value: Any) -> str:
        name = f"f{len(self.values)}"
        self.values[name] = value
        return f"%({name})s"

    def _found(self, field: str, arrow: str) -> list[str]:
        """Return the expressions of a field, taken literally and as a path."""
        found = [f"(entry.projection {arrow} {self._bind(field)}::text)"]
        if "." in field:
            found.append(f"(entry.projection #{arrow[1:]} {self._bind(field.split('.'))}::text[])")
        return found

    def _equal(self, field: str, operand: Any) -> str:
        if isinstance(operand, int | float) and not isinstance(operand, bool):
            return self._ordered(field, "$eq", operand)
        if not isinstance(operand, str | bool | Mapping) and operand is not None:
            return "TRUE"
        sure = _sure(operand)
        if sure is _UNSURE:
            return "TRUE"
        paths = [{field: sure}]
        if "." in field:
            nested: Any = sure
            for part in reversed(field.split(".")):
                nested = {part: nested}
            paths.append(nested)
        return self._any([f"entry.projection @> {self._bind(json.dumps(path))}::jsonb" for path in paths])

    def _ordered(self, field: str, operator: str, operand: Any) -> str:
        if isinstance(operand, str):
            if not _storable(operand):
                return "TRUE"
            bound = self._bind(operand)
            return self._any(
                [f'{found} COLLATE "C" {_ORDERED[operator]} {bound}::text' for found in self._found(field, "->>")]
            )
        if isinstance(operand, bool) or not isinstance(operand, int | float):
            return "TRUE"
        tests = self._bounds(operator, operand)
        if not tests:
            return "TRUE"
        return self._any([" AND ".join(f"{found} {test}" for test in tests) for found in self._found(field, "->")])

    def _bounds(self, operator: str, operand: float) -> list[str]:
        # The stored digits are exact here and rounded to a double elsewhere: the neighbouring doubles are the bounds.
        try:
            number = float(operand)
        except OverflowError:
            return []
        low, high = math.nextafter(number, -math.inf), math.nextafter(number, math.inf)
        tests: list[str] = []
        if operator in ("$eq", "$gt", "$gte") and math.isfinite(low):
            tests.append(f">= {self._bind(json.dumps(low))}::jsonb")
        if operator in ("$eq", "$lt", "$lte") and math.isfinite(high):
            tests.append(f"<= {self._bind(json.dumps(high))}::jsonb")
        return tests


_UNSURE: Final = object()


def _sure(operand: Any) -> Any:
    """Return what an equal value surely contains in JSONB: texts, booleans and nulls, in objects; not numbers."""
    if isinstance(operand, str):
        return operand if _storable(operand) else _UNSURE
    if operand is None or isinstance(operand, bool):
        return operand
    if isinstance(operand, Mapping):
        parts = {name: _sure(part) for name, part in cast("Mapping[Any, Any]", operand).items() if _storable(name)}
        return {name: part for name, part in parts.items() if part is not _UNSURE}
    return _UNSURE


def _storable(text: Any) -> bool:
    """Say whether JSONB can hold a text."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
