"""The bytes of a request, which anybody may have sent, to plain data of the shape that a verb takes.

What is refused is named by its place and never by its value.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from ..errors import AgentMemoryError, InvalidRequestError, LimitExceededError

_MOST_PARTS: Final = 250_000
_LISTED_ERRORS: Final = 100


def parts_of(raw: bytes) -> int:
    """Return about how many values there are in JSON: only those within each other have no comma in between.

    Raises LimitExceededError if they are more than any request may have.
    """
    parts = raw.count(b",")
    if parts > _MOST_PARTS:
        raise LimitExceededError("a request body has too many parts")
    return parts


def parse(raw: bytes) -> Any:
    """Return what JSON stands for; raise for what no store can keep, and for what would take too long to check."""
    parts_of(raw)
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_no_constant,
        )
        if b"\\u" in raw:
            # Only an escape can bring a lone surrogate, which no store can keep, into valid UTF-8.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except AgentMemoryError:
        raise
    except (ValueError, RecursionError):
        pass
    raise malformed("the body is not JSON in UTF-8, has half a surrogate pair, or is nested too deeply")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise malformed("a field stands twice in an object")
    return found


def _integer(text: str) -> int:
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**63:
        return number
    raise malformed("an integer has more than 64 bits")


def _float(text: str) -> float:
    number = float(text)
    if math.isfinite(number):
        return number
    raise malformed("a number is too large")


def _no_constant(_: str) -> Any:
    raise malformed("NaN and Infinity are not JSON")


def validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return a value as the shape that an adapter describes."""
    try:
        return adapter.validator.validate_python(value)
    except ValidationError as error:
        problem = malformed(_places(error))
    raise problem


def _places(error: ValidationError) -> str:
    if (count := error.error_count()) > _LISTED_ERRORS:
        # All of them would be listed for the first three: a second for a body that was there in a millisecond.
        return f"{count} fields are not what this verb takes"
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))[:80] or 'body'}: {one['type']}" for one in found[:3])


def malformed(detail: str) -> InvalidRequestError:
    """Return the error for a body that is not one of its verb's."""
    return InvalidRequestError(detail, code="malformed")
