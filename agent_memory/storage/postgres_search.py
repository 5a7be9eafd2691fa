"""Listing and searching in the PostgreSQL catalog.

PostgreSQL narrows a filter down on the projection of a JSON object; ``filters.matches`` has the last word on every row,
so that a filter means the same in every catalog. A row whose value cannot be projected is always looked into.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from ..filters import AllOf, AnyOf, Comparison, Condition, parse
from ..keys import MAX_KEY_BYTES, successor
from ..messages import BATCH_INLINE_LIMIT, PAGE_LIMIT, List, ListParents, Scope, Search
from .catalog import COLUMNS, LoadBlob, Row, ScoredRow, chosen_parents, holds
from .postgres_binding import Vector
from .postgres_connections import Session
from .postgres_errors import pq, sql
from .postgres_rows import LIVE, key_range, to_row

_FETCH: Final = 200
_MANY: Final = 1_000
# A search with an index holds so many candidates, for pgvector's 40 miss more. With pgvector 0.8 and later it goes on
# until it has enough of what the conditions on keys leave.
_TUNE: Final = (
    "SELECT set_config(name, CASE name WHEN 'hnsw.ef_search' THEN greatest(setting::integer, 100)::text "
    "ELSE 'strict_order' END, false) FROM pg_settings WHERE name IN ('hnsw.ef_search', 'hnsw.iterative_scan')"
)
_ORDERED: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def list_keys(session: Session, request: List, now: int | None) -> list[Row]:
    """Return a page of live rows; see ``Catalog.list``."""
    where, values = key_range(request.scope, request.prefix)
    if request.cursor is not None:
        where += f" AND entry.key {'<' if request.reverse else '>'} %(cursor)s"
    order = "ORDER BY key DESC" if request.reverse else "ORDER BY key"
    values |= {"cursor": request.cursor, "limit": request.limit, "now": now, "bytes": BATCH_INLINE_LIMIT}
    page = f"FROM agent_memory.entry AS entry WHERE {where} AND {LIVE} {order} LIMIT %(limit)s"
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
        f"{end} AND {LIVE} AND strpos(substr(entry.key, %(skip)s::integer), '/') > 0 ORDER BY entry.key LIMIT 1"
    )
    # "0" follows "/" in every encoding of text: the smallest key that no longer starts with "name/".
    following = "(%(prefix)s || split_part(substr(found.key, %(skip)s::integer), '/', 1) || '0') COLLATE \"C\""
    statement = (
        f"WITH RECURSIVE found (key) AS (({step.format(start='%(start)s')}) UNION ALL "
        f"SELECT ({step.format(start=following)}) FROM found WHERE found.key IS NOT NULL) "
        "SELECT split_part(substr(key, %(skip)s::integer), '/', 1) FROM found WHERE key IS NOT NULL LIMIT %(limit)s"
    )
    values = {
        "scope": scope.path, "prefix": prefix, "start": prefix if after is None else f"{prefix}{after}0",
        "end": successor(prefix), "skip": len(prefix) + 1, "limit": limit, "now": now,
    }  # fmt: skip
    return [row[0] for row in session.rows(statement, values)]


def list_parents(session: Session, request: ListParents, now: int | None) -> list[str]:
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
        return chosen_parents(request, (row[0] for row in found))


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
        AND (part = %(depth)s OR strpos(substr(entry.key, length(name) + 1), '/') < 1) AND {LIVE} AND entry.searchable
        ORDER BY entry.key LIMIT 1)
"""


# -- search ----------------------------------------------------------------------------------------------------------


def search(session: Session, request: Search, now: int | None, load: LoadBlob, vectors: str | None) -> list[ScoredRow]:
    """Return the hits of a search; see ``messages.Search``. ``vectors`` is the schema of pgvector."""
    condition = parse(request.filter)
    first = request.offset + request.limit
    if request.vector is None:
        statement, values = _newest(request, condition, now)
    else:
        assert vectors is not None
        if not condition.terms and first <= PAGE_LIMIT:
            _tune(session, vectors)
            # Nearly always the most similar vectors are those of the hits: no other row is looked at.
            statement, values = _similar(request, condition, now, vectors, best=first)
            hits = _hits(session.rows(statement, values, prepare=False), request, condition, load)
            if len(hits) == request.limit:
                return hits
        statement, values = _similar(request, condition, now, vectors)
    if first <= PAGE_LIMIT:
        # Nearly always every row that was narrowed down to is a hit; with their values, more would fill the memory.
        rows = session.rows(f"{statement} LIMIT {first}", values, prepare=False)
        hits = _hits(rows, request, condition, load)
        if len(hits) == request.limit or len(rows) < first:
            return hits
    with session.connection.transaction(), session.connection.cursor("search", binary=True) as cursor:
        cursor.itersize = _FETCH
        cursor.execute(cast(Any, statement), values)
        return _hits(cursor, request, condition, load)


def _hits(rows: Iterable[Any], request: Search, condition: AllOf, load: LoadBlob) -> list[ScoredRow]:
    found: list[ScoredRow] = []
    skip = request.offset
    for values in rows:
        row = to_row(values[:-1])
        if not holds(condition, row, load):
            continue
        if skip:
            skip -= 1
            continue
        found.append(ScoredRow(row, values[-1]))
        if len(found) == request.limit:
            break
    return found


def _newest(request: Search, condition: AllOf, now: int | None) -> tuple[str, dict[str, Any]]:
    where, values = _where(request, condition, now)
    return (
        f"SELECT {COLUMNS}, NULL::float8 AS score FROM agent_memory.entry AS entry WHERE {where} "
        "ORDER BY entry.updated_us DESC, entry.key",
        values,
    )


def _similar(
    request: Search, condition: AllOf, now: int | None, vectors: str, *, best: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the statement that finds rows by similarity: all of them, or at least the ``best`` ones that have
    vectors, unless values with several crowd them out."""
    assert request.vector is not None
    where, values = _where(request, condition, now)
    values["vector"] = Vector(request.vector)
    columns = ", ".join(f"entry.{name}" for name in COLUMNS.split(", "))
    dimensions = len(request.vector) // 4
    # The length stands in the statement itself: only so an index of vectors of that length can be used.
    scored = (
        f"SELECT entry.key, entry.version, {indexed('entry.embedding', dimensions, vectors)} "
        f"OPERATOR({vectors}.<=>) %(vector)s::{vectors}.vector AS distance FROM agent_memory.vector AS entry "
        f"WHERE {_place(request)} AND {vectors}.vector_dims(entry.embedding) = {dimensions} "
    )
    # A value may have several vectors. Either way the vectors themselves are not what is grouped and sorted.
    scored += "OFFSET 0" if best is None else f"ORDER BY distance FETCH FIRST {2 * best} ROWS WITH TIES"
    scored = (
        f"SELECT key, version, 1 - nullif(min(distance), 'NaN') AS score FROM ({scored}) AS one GROUP BY key, version"
    )
    return (
        f"WITH best AS MATERIALIZED ({scored}) SELECT {columns}, best.score "
        f"FROM agent_memory.entry AS entry {'LEFT' if best is None else ''} JOIN best ON best.key = entry.key "
        f"AND best.version = entry.version WHERE {where} {'' if best is None else 'AND best.score IS NOT NULL'} "
        "ORDER BY best.score DESC NULLS LAST, entry.updated_us DESC, entry.key",
        values,
    )


def indexed(column: str, dimensions: int, schema: str) -> str:
    """Return the expression of a vector that an index is of, and by which a search that may use it has to order."""
    return f"({column}::{schema}.vector({dimensions}))"


def _tune(session: Session, schema: str) -> None:
    """Prepare a session, once, for searches with an index of pgvector."""
    idle = session.connection.info.transaction_status == pq.TransactionStatus.IDLE
    if session.searches_vectors or not idle:
        # What is set within a transaction may be undone with it.
        return
    # Settings of an extension are known once it is loaded, which this does.
    session.rows(f"SELECT '[0]'::{schema}.vector")
    session.rows(_TUNE)
    session.searches_vectors = True


def _where(request: Search, condition: AllOf, now: int | None) -> tuple[str, dict[str, Any]]:
    narrow = _Narrow()
    where = f"{_place(request)} AND {LIVE} AND entry.searchable AND {narrow.holds(condition)}"
    return where, {**narrow.values, "now": now}


def _place(request: Search) -> str:
    """Return the condition that a key is one of those searched, with the values in the statement itself.

    A plan is made without knowing what is bound, and a good one depends on how many keys there are.
    """
    where, values = key_range(request.scope, request.prefix)
    if request.nested:
        where += " AND strpos(entry.key, '/') > 0"
    return where % {name: sql.Literal(value).as_string().replace("%", "%%") for name, value in values.items()}


# -- narrowing -------------------------------------------------------------------------------------------------------


class _Narrow:
    """Makes an SQL condition that holds at least wherever a filter does, and collects its bindings."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def holds(self, condition: Condition) -> str:
        inner = self._of(condition)
        return "TRUE" if inner == "TRUE" else f"(entry.projection IS NULL OR {inner})"

    def _of(self, condition: Condition) -> str:
        match condition:
            case AllOf(terms):
                parts = [part for part in map(self._of, terms) if part != "TRUE"]
                return f"({' AND '.join(parts)})" if parts else "TRUE"
            case AnyOf(terms):
                return self._any(list(map(self._of, terms)))
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
