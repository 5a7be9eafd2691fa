"""What a request to a store must be like; everything here raises before anything is read or written."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

from .errors import InvalidRequestError, LimitExceededError
from .filters import parse
from .keys import check_key, check_prefix
from .messages import JSON, PAGE_LIMIT, CommitWrite, Delete, List, ListParents, PrepareWrite, Search

MAX_PROVENANCE_BYTES: Final = 4_096
MAX_DIMENSIONS: Final = 8_192
MAX_VECTORS: Final = 256
MAX_PATTERNS: Final = 100
MAX_OFFSET: Final = 2**53
"""What JSON carries exactly everywhere."""
MAX_TTL_SECONDS: Final = 100 * 366 * 86_400.0


def check_list(request: List) -> None:
    check_limit(request.limit)
    check_prefix(request.prefix)
    if request.cursor is not None and not check_key(request.cursor).startswith(request.prefix):
        raise InvalidRequestError("this cursor belongs to another listing")


def check_search(request: Search) -> None:
    check_limit(request.limit)
    check_prefix(request.prefix)
    check_offset(request.offset)
    if request.vector is not None:
        check_vector(request.vector)
    parse(request.filter)


def check_parents(request: ListParents) -> None:
    check_limit(request.limit)
    check_prefix(request.prefix)
    check_prefix(request.cursor or "")
    check_offset(request.offset)
    if request.depth is not None:
        check_type(request.depth, int, "depth is a whole number")
        if not 0 < request.depth <= MAX_OFFSET:
            raise InvalidRequestError("depth must be at least 1")
    if len(request.patterns) > MAX_PATTERNS:
        raise LimitExceededError(f"a listing may have at most {MAX_PATTERNS} patterns")


def check_vector(vector: bytes) -> None:
    if not 0 < len(vector) <= 4 * MAX_DIMENSIONS or len(vector) % 4:
        raise InvalidRequestError(f"a vector is 1 to {MAX_DIMENSIONS} little-endian 32-bit floats")
    # As doubles so many floats never add up to infinity by themselves.
    if not math.isfinite(sum(struct.unpack(f"<{len(vector) // 4}f", vector))):
        raise InvalidRequestError("the numbers of a vector are finite")


def check_offset(offset: int) -> None:
    check_type(offset, int, "offset is a whole number")
    if not 0 <= offset <= MAX_OFFSET:
        raise InvalidRequestError(f"offset must be 0 to {MAX_OFFSET}")


def check_type(value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """Raise InvalidRequestError, which says what the value is to be, for one that no type checker has seen."""
    # Only Python takes a bool for a number: a server and PostgreSQL do not.
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise InvalidRequestError(f"{what}, not {type(value).__name__}")


def check_ttl(seconds: float | None) -> None:
    if seconds is None:
        return
    check_type(seconds, (int, float), "ttl is a number of seconds")
    if not 0 < seconds <= MAX_TTL_SECONDS:
        raise InvalidRequestError("a time to live must be above 0 seconds and below a hundred years")


def check_limit(limit: int) -> None:
    check_type(limit, int, "limit is a whole number")
    if not 0 < limit <= PAGE_LIMIT:
        raise InvalidRequestError(f"limit must be 1 to {PAGE_LIMIT}")


def check_provenance(provenance: Mapping[str, str]) -> None:
    try:
        size = len("".join([*provenance, *provenance.values()]).encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0:
        raise InvalidRequestError("provenance must be valid Unicode; it has a lone surrogate")
    if size > MAX_PROVENANCE_BYTES:
        raise LimitExceededError(f"provenance may have at most {MAX_PROVENANCE_BYTES} bytes")


def check_text(text: str | None, what: str) -> None:
    """Refuse what not every catalog can hold as a text."""
    if text is None or (text.isascii() and "\0" not in text):
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(f"{what} must be valid Unicode; it has a lone surrogate") from None
    if "\0" in text:
        raise InvalidRequestError(f"{what} must not contain NUL")


def check_write_id(write_id: str) -> None:
    if not 0 < len(write_id) <= 128:
        raise InvalidRequestError("a write id has 1 to 128 characters")


def check_condition(request: CommitWrite | Delete | PrepareWrite) -> None:
    if request.if_match is None:
        return
    if not request.if_match.strip():
        raise InvalidRequestError("if_match is blank; leave it out to write without a condition")
    if not isinstance(request, Delete) and request.if_none_match:
        raise InvalidRequestError("if_match and if_none_match exclude each other")


def check_write(request: CommitWrite | Delete) -> None:
    if request.write_id is not None:
        check_write_id(request.write_id)
        check_text(request.write_id, "a write id")
    check_condition(request)
    if request.provenance is not None:
        check_provenance(request.provenance)
    if isinstance(request, CommitWrite):
        for vector in request.vectors:
            check_vector(vector)
        if len(request.vectors) > MAX_VECTORS:
            raise LimitExceededError(f"a value may have at most {MAX_VECTORS} vectors")
        if request.vectors and request.content_type != JSON:
            raise InvalidRequestError("only a JSON value can have vectors")
        check_ttl(request.ttl_seconds)
        if len(request.content_type) > 255:
            raise InvalidRequestError("content_type has at most 255 characters")
        check_text(request.content_type, "content_type")
        check_text(request.signature, "a signature")
        check_text(request.schema_name, "schema_name")
