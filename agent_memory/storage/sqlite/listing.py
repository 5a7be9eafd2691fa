"""Listing keys, segments and parents in the SQLite catalog."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, cast

import apsw

from ...keys import end_of_parent, successor
from ...messages import BATCH_INLINE_LIMIT, List, ListParents, Scope
from ..catalog import COLUMNS, Row
from ..finding import chosen_parents, shown_name
from .rows import IS_LIVE, IS_OBJECT, PLACE, TimeLimit, all_rows, key_range, live_rows_at, to_row


def list_keys(connection: apsw.Connection, request: List, now: int) -> list[Row]:
    """Return a page of live rows; see ``Catalog.list``."""
    edge = {"before" if request.reverse else "after": request.cursor}
    where, bindings = key_range(request.scope, request.prefix, **edge)
    columns = COLUMNS if request.max_inline_size is not None else COLUMNS.replace("value", "NULL")
    order = "DESC" if request.reverse else "ASC"
    places = f"SELECT {PLACE} FROM entry WHERE {where}"
    sql = f"{live_rows_at(places, columns)} ORDER BY at {order} LIMIT ?"
    found: list[Row] = []
    size = 0
    cursor: Any = cast(Any, connection).execute(sql, (*bindings, now, request.limit))
    try:
        for values in cursor:
            row = to_row(values)
            size += len(row.data or b"")
            if found and size > BATCH_INLINE_LIMIT:
                break
            found.append(row)
    finally:
        # Whoever keeps the error of a damaged row keeps this frame, and the connection would stay in its snapshot.
        cursor.close(True)
    return found


def list_segments(
    connection: apsw.Connection, scope: Scope, prefix: str, *, after: str | None, limit: int, now: int
) -> list[str]:
    """Return a page of segments; see ``Catalog.list_segments``."""
    # From each segment straight to the next: an entity with a million items costs one look-up, not a million.
    found: list[str] = []
    end = successor(prefix)
    start = prefix if after is None else end_of_parent(f"{prefix}{after}/")
    sql = (
        f"SELECT key FROM entry WHERE scope = ? AND key >= ? AND {'key < ? AND' if end else ''} {IS_LIVE} "
        "AND instr(substr(key, ?), '/') > 0 ORDER BY key LIMIT 1"
    )
    bounds = (end,) if end else ()
    while len(found) < limit:
        rows = all_rows(connection, sql, (scope.path, start, *bounds, now, len(prefix) + 1))
        if not rows:
            break
        name = str(rows[0][0])[len(prefix) :].partition("/")[0]
        found.append(name)
        start = end_of_parent(f"{prefix}{name}/")
    return found


def list_parents(connection: apsw.Connection, request: ListParents, now: int, limit: TimeLimit) -> list[str]:
    """Return a page of names; see ``messages.ListParents``."""
    return chosen_parents(request, _parents(connection, request, now, limit))


def _parents(connection: apsw.Connection, request: ListParents, now: int, limit: TimeLimit) -> Iterator[str]:
    """Iterate over the parents after the cursor, in byte order; each is looked for only when it is wanted.

    Of several that the listing cuts to one name, only the first is given. The way leads from a key to the next one with
    another parent. That parent and those above it come next in byte order, except those that were passed before.
    """
    last = request.cursor or ""
    parent = _parent_of(last)
    place = max(request.prefix, last)
    while (key := _first_elsewhere(connection, request, place, parent)) is not None:
        # None of these statements takes long, but there may be many.
        limit.check()
        place, parent = key, _parent_of(key)
        for name in accumulate(f"{segment}/" for segment in parent.split("/")[:-1]):
            # Which of those below it fits a pattern is not known yet.
            is_cut = name.count("/") == request.depth and not request.patterns
            if not last.startswith(name) and _holds_objects(connection, request, name, now, below=is_cut):
                yield name
            elif not is_cut:
                continue
            shown = shown_name(request, name)
            if shown is not None and shown.count("/") == request.depth:
                # All others below it would have the same name.
                place, parent = end_of_parent(shown), ""
                last = shown
                break
        else:
            last = parent


def _first_elsewhere(connection: apsw.Connection, request: ListParents, place: str, parent: str) -> str | None:
    """Return the first key from ``place`` on that has a parent, and another one."""
    where, bindings = key_range(request.scope, request.prefix, start=place)
    rows = all_rows(
        connection,
        f"SELECT key FROM entry WHERE {where} AND instr(key, '/') > 0 "
        "AND (instr(substr(key, ?), '/') > 0 OR key >= ?) ORDER BY key LIMIT 1",
        (*bindings, len(parent) + 1, end_of_parent(parent)),
    )
    return str(rows[0][0]) if rows else None


def _parent_of(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _holds_objects(connection: apsw.Connection, request: ListParents, parent: str, now: int, *, below: bool) -> bool:
    """Say whether some of a parent's own keys, among those listed, are live objects; or with ``below`` of all keys."""
    where, bindings = key_range(request.scope, max(parent, request.prefix))
    if not below:
        where, bindings = f"{where} AND instr(substr(key, ?), '/') = 0", (*bindings, len(parent) + 1)
    sql = f"SELECT 1 FROM entry WHERE {where} AND {IS_LIVE} AND {IS_OBJECT} LIMIT 1"
    return bool(all_rows(connection, sql, (*bindings, now)))
