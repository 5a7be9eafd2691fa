"""Listing keys, segments and parents in the PostgreSQL catalog."""

from __future__ import annotations

from typing import Any, Final, cast

from ...keys import MAX_KEY_BYTES, end_of_parent, successor
from ...messages import BATCH_INLINE_LIMIT, List, ListParents, Scope
from ..catalog import COLUMNS, Row
from ..finding import chosen_parents
from .connections import Session
from .rows import IS_LIVE, TimeLimit, key_range, to_row

_MANY: Final = 1_000


def list_keys(session: Session, request: List, now: int | None) -> list[Row]:
    """Return a page of live rows; see ``Catalog.list``."""
    where, values = key_range(request.scope, request.prefix)
    if request.cursor is not None:
        where += f" AND entry.key {'<' if request.reverse else '>'} %(cursor)s"
    order = "ORDER BY key DESC" if request.reverse else "ORDER BY key"
    values |= {"cursor": request.cursor, "limit": request.limit, "now": now, "bytes": BATCH_INLINE_LIMIT}
    page = f"FROM agent_memory.entry AS entry WHERE {where} AND {IS_LIVE} {order} LIMIT %(limit)s"
    if request.max_inline_size is None:
        statement = f"SELECT {COLUMNS.replace('value', 'NULL')} {page}"
    else:
        # Counted where the values are: what does not fit the page never travels.
        statement = (
            f"SELECT {COLUMNS} FROM (SELECT {COLUMNS}, sum(length(value)) OVER ({order} ROWS UNBOUNDED PRECEDING) "
            f"AS total, row_number() OVER ({order}) AS place FROM (SELECT {COLUMNS} {page}) AS page) AS counted "
            f"WHERE total IS NULL OR total <= %(bytes)s OR place = 1 {order}"
        )
    return [to_row(row) for row in session.rows(statement, values)]


def list_segments(
    session: Session, scope: Scope, prefix: str, *, after: str | None, limit: int, now: int | None
) -> list[str]:
    """Return a page of segments; see ``Catalog.list_segments``."""
    # Skip from segment to segment: an entity with a million items costs one look-up, not a million.
    end = "AND entry.key < %(end)s" if successor(prefix) else ""
    step = (
        "SELECT entry.key FROM agent_memory.entry AS entry WHERE entry.scope = %(scope)s AND entry.key >= {start} "
        f"{end} AND {IS_LIVE} AND strpos(substr(entry.key, %(skip)s::integer), '/') > 0 ORDER BY entry.key LIMIT 1"
    )
    # "0" follows "/" in every encoding of text: the smallest key that no longer starts with "name/".
    following = "(%(prefix)s || split_part(substr(found.key, %(skip)s::integer), '/', 1) || '0') COLLATE \"C\""
    statement = (
        f"WITH RECURSIVE found (key) AS (({step.format(start='%(start)s')}) UNION ALL "
        f"SELECT ({step.format(start=following)}) FROM found WHERE found.key IS NOT NULL) "
        "SELECT split_part(substr(key, %(skip)s::integer), '/', 1) FROM found WHERE key IS NOT NULL LIMIT %(limit)s"
    )
    values = {
        "scope": scope.path, "prefix": prefix, "start": prefix if after is None else end_of_parent(f"{prefix}{after}/"),
        "end": successor(prefix), "skip": len(prefix) + 1, "limit": limit, "now": now,
    }  # fmt: skip
    return [row[0] for row in session.rows(statement, values)]


def list_parents(session: Session, request: ListParents, now: int | None, limit: TimeLimit) -> list[str]:
    """Return a page of names; see ``messages.ListParents``."""
    cursor, end = request.cursor or "", successor(request.prefix)
    # Which parents fit a pattern is known here alone: then all of them are wanted, uncut.
    depth = None if request.patterns or request.depth is None else min(request.depth, MAX_KEY_BYTES)
    values = {
        "scope": request.scope.path, "prefix": request.prefix, "end": end, "depth": depth, "now": now,
        "place": max(request.prefix, cursor), "parent": cursor[: cursor.rfind("/") + 1],
    }  # fmt: skip
    statement = _PARENTS.replace("{below}", "AND entry.key < %(end)s" if end else "")
    if not request.patterns:
        rows = session.rows(f"{statement} LIMIT {request.offset + request.limit}", values)
        return chosen_parents(request, (row[0] for row in rows))
    with session.connection.transaction(), session.connection.cursor("parents", binary=True) as found:
        found.itersize = _MANY
        found.execute(cast(Any, statement), values)
        return chosen_parents(request, (row[0] for row in limit.on(found)))


# Trimming from the right every character that is no slash leaves a key up to its last one.
_PARENT: Final = "rtrim(entry.key, replace(entry.key, '/', ''))"
_NAME: Final = "array_to_string((string_to_array({0}.parent, '/'))[:{1}], '/')"
# From a key, live or not, the way leads to the first one in another parent, or behind all that would be cut to the same
# name. What a key enters that the one before it did not is next in the order of names, if it holds an object. "0"
# follows "/" in every encoding of text: the smallest key that no longer starts with a name.
_PARENTS: Final = f"""
    WITH RECURSIVE found (place, parent, before, depth) AS (
        SELECT %(place)s::text COLLATE "C", %(parent)s::text COLLATE "C", %(parent)s::text COLLATE "C", 0
        UNION ALL
        SELECT CASE WHEN next.depth = %(depth)s THEN {_NAME.format("next", "next.depth")} || '0'
            ELSE next.key END COLLATE "C", next.parent, found.parent, next.depth
        FROM found CROSS JOIN LATERAL (
            SELECT key, parent, least(length(parent) - length(replace(parent, '/', '')), %(depth)s::integer) AS depth
            FROM (SELECT entry.key, {_PARENT} AS parent FROM agent_memory.entry AS entry
                WHERE entry.scope = %(scope)s AND entry.key >= found.place {{below}}
                AND {_PARENT} <> found.parent ORDER BY entry.key LIMIT 1) AS one) AS next)
    SELECT name FROM found CROSS JOIN LATERAL (
        SELECT {_NAME.format("found", "part")} || '/' AS name, part
        FROM generate_series(1, found.depth) AS part OFFSET 0) AS entered
    WHERE NOT starts_with(found.before, name) AND (
        SELECT true FROM agent_memory.entry AS entry WHERE entry.scope = %(scope)s
        AND entry.key >= greatest(name, %(prefix)s) {{below}} AND entry.key < left(name, -1) || '0'
        AND (part = %(depth)s OR strpos(substr(entry.key, length(name) + 1), '/') < 1)
        AND {IS_LIVE} AND entry.searchable ORDER BY entry.key LIMIT 1)
"""
