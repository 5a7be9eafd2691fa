"""Carrying out the operations of a batch in the SQLite catalog, in order and at one time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import apsw

from ...messages import CommitWrite, Delete, List, ListParents, Operation, PrepareRead, Search
from ..catalog import LoadBlob, Row, has_writes
from ..finding import add_up
from .busy import BUSY_SECONDS
from .listing import list_keys, list_parents
from .rows import PLACE, TimeLimit, all_rows, damaged, live_rows_at, read_row, to_row
from .search import search
from .writes import Run, carry_out

SEARCH_SECONDS: Final = 10.0
"""How long searches of one call may take, as PostgreSQL's statements may."""

_SELECT_MANY: Final = live_rows_at(
    f"SELECT {PLACE} FROM entry WHERE scope = ? AND key IN (SELECT value FROM json_each(?))"
)


def apply(
    connection: apsw.Connection,
    run: Run,
    operations: Sequence[Operation],
    load: LoadBlob,
    now: int,
    search_seconds: float,
) -> list[Any]:
    """Carry out operations in a transaction that has begun; see ``Catalog.apply``. ``run`` is ``Writing.run``."""
    writes = has_writes(operations)
    read = {} if writes else _read_many(connection, operations, now)
    limit = TimeLimit(min(BUSY_SECONDS, search_seconds) if writes else search_seconds)
    results: list[Any] = []
    carried = 0
    for operation in operations:
        result: Any
        match operation:
            case PrepareRead():
                key = operation.key
                result = read_row(connection, operation.scope.path, key, now) if writes else read.get(key)
            case CommitWrite() | Delete():
                result = carry_out(connection, run, operation, now)
            case List():
                result = list_keys(connection, operation, now)
                carried = add_up(carried, result)
            case ListParents():
                with limit.of(connection):
                    result = list_parents(connection, operation, now, limit)
                carried = add_up(carried, result)
            case Search():
                with limit.of(connection):
                    result = search(connection, operation, now, load, limit)
                carried = add_up(carried, (hit.row for hit in result))
        results.append(result)
    return results


def _read_many(connection: apsw.Connection, operations: Sequence[Operation], now: int) -> dict[str, Row]:
    """Return the rows of all reads, which are of one scope: one statement takes a quarter of the time of many."""
    reads = [operation for operation in operations if type(operation) is PrepareRead]
    if not reads:
        return {}
    keys = json.dumps([read.key for read in reads])
    rows = all_rows(connection, _SELECT_MANY, (reads[0].scope.path, keys, now))
    found = {row[0]: to_row(row) for row in rows}
    for key in found.keys() - {read.key for read in reads}:
        # Another's row in the place of one that was asked for, which is not absent.
        raise damaged(key)
    return found
