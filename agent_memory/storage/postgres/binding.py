"""How values are bound that psycopg would bind more slowly, or not at all."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from struct import Struct, pack
from typing import Any, Final, NamedTuple

from .errors import adapt, numeric, pq, psycopg


class Vector(NamedTuple):
    """A vector to bind: its little-endian 32-bit floats."""

    data: bytes


class _VectorDumper(adapt.Dumper):
    """pgvector's binary form: the number of dimensions, two unused bytes, big-endian 32-bit floats."""

    format = pq.Format.BINARY
    # The type's number differs from database to database; the statement's cast says what it is.
    oid = 0

    def dump(self, obj: Vector) -> bytes:
        floats = array("f", obj.data)
        floats.byteswap()
        return pack(">HH", len(floats), 0) + floats.tobytes()


class Array(NamedTuple):
    """Values to bind as an array of int8, text, boolean or bytea; psycopg's own takes three times as long."""

    type: str
    values: Sequence[Any]


class _ArrayDumper(adapt.Dumper):
    """https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/arrayfuncs.c, array_recv."""

    format = pq.Format.BINARY
    oid = 0

    def dump(self, obj: Array) -> bytes | None:
        oid, encode = _ELEMENTS[obj.type]
        parts = [pack(">5i", 1, 1, oid, len(obj.values), 1)]
        for value in obj.values:
            if value is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                data = encode(value)
                parts += _LENGTH(len(data)), data
        return b"".join(parts)


_LENGTH: Final = Struct(">i").pack
_ELEMENTS: Final[dict[str, tuple[int, Callable[[Any], bytes]]]] = {
    "bigint": (20, Struct(">q").pack), "text": (25, str.encode), "bytea": (17, bytes),
    "boolean": (16, Struct("?").pack),
}  # fmt: skip


def adapters() -> adapt.AdaptersMap:
    """Return psycopg's own adapters and these."""
    found = adapt.AdaptersMap(psycopg.adapters)
    # One type for integers of every size, so that a statement is prepared once.
    found.register_dumper(int, numeric.Int8BinaryDumper)
    found.register_dumper(Vector, _VectorDumper)
    found.register_dumper(Array, _ArrayDumper)
    return found
