"""Search in the PostgreSQL catalog: filters on JSON objects, the newest first, and similarity of vectors.

PostgreSQL narrows a filter down (see ``narrowing``); ``filters.matches`` has the last word on every row, so
that a filter means the same in every catalog. A row whose value cannot be projected is always looked into.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

from ...filters import AllOf, parse
from ...messages import PAGE_LIMIT, Search
from ..catalog import COLUMNS, LoadBlob, ScoredRow
from ..finding import holds
from .binding import Vector
from .connections import Session
from .errors import pq, sql
from .narrowing import narrow
from .rows import IS_LIVE, TimeLimit, key_range, to_row

_FETCH: Final = 200
# A search with an index keeps so many candidates, because pgvector's own 40 miss more hits. pgvector 0.8 and later
# goes on searching until enough of them meet the conditions on keys.
_TUNE: Final = (
    "SELECT set_config(name, CASE name WHEN 'hnsw.ef_search' THEN greatest(setting::integer, 100)::text "
    "ELSE 'strict_order' END, false) FROM pg_settings WHERE name IN ('hnsw.ef_search', 'hnsw.iterative_scan')"
)


def search(
    session: Session, request: Search, now: int | None, load: LoadBlob, vectors: str | None, limit: TimeLimit
) -> list[ScoredRow]:
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
            hits = _hits(session.rows(statement, values, prepare=False), request, condition, load, limit)
            if len(hits) == request.limit:
                return hits
        statement, values = _similar(request, condition, now, vectors)
    if first <= PAGE_LIMIT:
        # Nearly always every row that was narrowed down to is a hit; with their values, more would fill the memory.
        rows = session.rows(f"{statement} LIMIT {first}", values, prepare=False)
        hits = _hits(rows, request, condition, load, limit)
        if len(hits) == request.limit or len(rows) < first:
            return hits
    with session.connection.transaction(), session.connection.cursor("search", binary=True) as cursor:
        cursor.itersize = _FETCH
        cursor.execute(cast(Any, statement), values)
        return _hits(cursor, request, condition, load, limit)


def _hits(rows: Iterable[Any], request: Search, condition: AllOf, load: LoadBlob, limit: TimeLimit) -> list[ScoredRow]:
    found: list[ScoredRow] = []
    skip = request.offset
    for values in limit.on(rows):
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
    narrowed, values = narrow(condition)
    return f"{_place(request)} AND {IS_LIVE} AND entry.searchable AND {narrowed}", {**values, "now": now}


def _place(request: Search) -> str:
    """Return the condition that a key is one of those searched, with the values in the statement itself.

    A plan is made without knowing what is bound, and a good one depends on how many keys there are.
    """
    where, values = key_range(request.scope, request.prefix)
    if request.nested:
        where += " AND strpos(entry.key, '/') > 0"
    return where % {name: sql.Literal(value).as_string().replace("%", "%%") for name, value in values.items()}
