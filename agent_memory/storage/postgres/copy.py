"""Rows of the PostgreSQL catalog as a copy of a store carries them: as they stand, deletions included."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from ..catalog import COLUMNS, LIVE, ScopeRow, StoredRow, not_older, provenance_text
from .binding import Array, Vector
from .connections import UNLIMITED, Session, connect, execute
from .errors import no_vectors, numeric, psycopg, translate
from .rows import NOW, retire, to_row
from .writes import is_searchable, projectable

_STORED: Final = f"SELECT {COLUMNS}, scope, ttl_us FROM agent_memory.entry"
_PLACES: Final = "unnest(%(scopes)s::text[], %(keys)s::text[]) AS place (scope, key)"
_AT: Final = (
    f"SELECT found.* FROM {_PLACES} CROSS JOIN LATERAL "
    f"({_STORED} WHERE entry.scope = place.scope AND entry.key = place.key OFFSET 0) AS found"
)
_VECTORS: Final = (
    f"SELECT found.* FROM {_PLACES} CROSS JOIN LATERAL "
    "(SELECT scope, key, version, {schema}.vector_send(embedding) FROM agent_memory.vector "
    "WHERE vector.scope = place.scope AND vector.key = place.key ORDER BY number OFFSET 0) AS found"
)
_TAKEN: Final = {
    "scope": "text", "key": "text", "version": "bigint", "etag": "text", "size": "bigint", "sha256": "text",
    "content_type": "text", "signature": "text", "schema_name": "text", "schema_version": "bigint",
    "created_us": "bigint", "updated_us": "bigint", "expires_us": "bigint", "provenance": "text", "deleted": "boolean",
    "blob_id": "text", "chunk_size": "bigint", "ttl_us": "bigint", "searchable": "boolean", "projectable": "boolean",
    "value": "bytea",
}  # fmt: skip
# Values are taken from where they were bound only when they are stored, so that no step in between carries them.
_SMALL: Final = {name: of for name, of in _TAKEN.items() if name != "value"}
_COLUMNS: Final = [name for name in _SMALL if name != "projectable"]
_VALUE: Final = "(%(value)s::bytea[])[taken.n]"
_TAKE: Final = f"""
    WITH put AS (
        INSERT INTO agent_memory.entry AS entry ({", ".join(_COLUMNS)}, projection, value)
        SELECT {", ".join(_COLUMNS)}, CASE WHEN projectable THEN convert_from({_VALUE}, 'UTF8')::jsonb END, {_VALUE}
        FROM unnest({", ".join(f"%({name})s::{of}[]" for name, of in _SMALL.items())})
            WITH ORDINALITY AS taken ({", ".join(_SMALL)}, n)
        ON CONFLICT (scope, key) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])},
            projection = excluded.projection, value = excluded.value,
            replaced_blob_id = nullif(entry.blob_id, excluded.blob_id)
        WHERE entry.version < excluded.version OR (entry.version = excluded.version AND entry.etag = excluded.etag)
        RETURNING entry.scope, entry.key, entry.blob_id, entry.replaced_blob_id),
    retired AS ({retire("put", "put.scope", "put.replaced_blob_id", NOW)}),
    live AS (UPDATE agent_memory.blob AS blob SET state = '{LIVE}', at_us = {NOW} FROM put WHERE blob.id = put.blob_id)
    {{forgotten}}
    SELECT scope, key FROM put
"""
_FORGOTTEN: Final = (
    ", forgotten AS (DELETE FROM agent_memory.vector AS vector USING put "
    "WHERE vector.scope = put.scope AND vector.key = put.key)"
)
_KEEP: Final = "COPY agent_memory.vector (scope, key, version, number, embedding) FROM STDIN (FORMAT BINARY)"
# What a slow line carries while a statement may run; of vectors, what an index takes in.
_STATEMENT_BYTES: Final = 1024 * 1024


def stored(session: Session, after: tuple[str, str], limit: int, vectors: str | None) -> list[StoredRow]:
    """See ``Catalog.stored``."""
    rows = session.rows(
        f"{_STORED} WHERE (scope, key) > (%(scope)s, %(key)s) ORDER BY scope, key LIMIT %(limit)s",
        {"scope": after[0], "key": after[1], "limit": limit},
    )
    return _stored_rows(session, rows, vectors)


def stored_at(session: Session, places: Collection[tuple[str, str]], vectors: str | None) -> list[StoredRow]:
    """See ``Catalog.stored_at``."""
    return _stored_rows(session, session.rows(_AT, _bound(places)), vectors)


def _bound(places: Collection[tuple[str, str]]) -> dict[str, Any]:
    return {"scopes": Array("text", [one[0] for one in places]), "keys": Array("text", [one[1] for one in places])}


def _stored_rows(session: Session, rows: Sequence[Any], vectors: str | None) -> list[StoredRow]:
    embeddings: dict[tuple[str, str, int], list[bytes]] = {}
    if rows and vectors is not None:
        statement = _VECTORS.replace("{schema}", vectors)
        for *place, sent in session.rows(statement, _bound([(row[-2], row[0]) for row in rows])):
            embeddings.setdefault((place[0], place[1], place[2]), []).append(_received(sent))
    found: list[StoredRow] = []
    for *columns, scope, ttl_us in rows:
        row = to_row(columns)
        row = row._replace(entry=row.entry._replace(deleted=columns[13]))
        own = embeddings.get((scope, row.entry.key, row.entry.version), ())
        found.append(StoredRow(scope, row, ttl_us, tuple(own)))
    return found


def _received(sent: bytes) -> bytes:
    """Return a vector from pgvector's binary form; see ``binding.Vector``."""
    floats = array("f", sent[4:])
    floats.byteswap()
    return floats.tobytes()


def take(session: Session, rows: Sequence[StoredRow], now: int | None, vectors: str | None) -> None:
    """See ``Catalog.take``."""
    if vectors is None and any(row.vectors for row in rows):
        raise no_vectors()
    with session.connection.transaction():
        for part in _parts(rows):
            _take(session, part, now, vectors)
            _keep_vectors(session, part)


def _keep_vectors(session: Session, rows: Sequence[StoredRow]) -> None:
    if not any(row.vectors for row in rows):
        return
    with session.cursor.copy(_KEEP) as copy:
        for scope, row, _, embeddings in rows:
            for number, embedding in enumerate(embeddings):
                place = (scope, row.entry.key, row.entry.version)
                copy.write_row((*place, numeric.Int4(number), Vector(embedding)))


def _parts(rows: Sequence[StoredRow]) -> Iterator[Sequence[StoredRow]]:
    """Give the rows in as many parts as it takes for their values and vectors to fit statements."""
    first = size = 0
    for index, row in enumerate(rows):
        size += len(row.row.data or b"") + sum(map(len, row.vectors))
        if size > _STATEMENT_BYTES:
            yield rows[first : index + 1]
            first, size = index + 1, 0
    if first < len(rows):
        yield rows[first:]


def _take(session: Session, rows: Sequence[StoredRow], now: int | None, vectors: str | None) -> None:
    values: dict[str, Any] = {"now": now}
    for (name, of), column in zip(_TAKEN.items(), zip(*map(_taken, rows), strict=True), strict=True):
        values[name] = Array(of, column)
    # Planned each time: the tables grow while they are copied to.
    statement = _TAKE.replace("{forgotten}", "" if vectors is None else _FORGOTTEN)
    try:
        with session.connection.transaction():
            taken = set(session.rows(statement, values, prepare=False))
    except psycopg.DataError:
        # JSONB takes less than JSON: no number of 20,000 decimals, for one. Only what it does not take goes without.
        if len(rows) > 1:
            _take(session, rows[: len(rows) // 2], now, vectors)
            _take(session, rows[len(rows) // 2 :], now, vectors)
            return
        values["projectable"] = Array("boolean", [False])
        taken = set(session.rows(statement, values, prepare=False))
    for row in rows:
        if (row.scope, row.row.entry.key) not in taken:
            raise not_older(row)


def _taken(stored_row: StoredRow) -> tuple[Any, ...]:
    """Return a row as the values of _TAKEN."""
    scope, row, ttl_us, _ = stored_row
    entry, data = row.entry, row.data
    searchable = not entry.deleted and is_searchable(entry.content_type, data)
    return (
        scope, *entry[:12], provenance_text(entry.provenance), entry.deleted, row.blob_id, row.chunk_size, ttl_us,
        searchable, searchable and data is not None and projectable(data), data,
    )  # fmt: skip


_SCOPE: Final = "SELECT scope, version_floor, last_write_us FROM agent_memory.scope"


def scopes(session: Session, after: str, limit: int) -> list[ScopeRow]:
    """See ``Catalog.scopes``."""
    statement = f"{_SCOPE} WHERE scope > %(after)s ORDER BY scope LIMIT %(limit)s"
    return [ScopeRow(*row) for row in session.rows(statement, {"after": after, "limit": limit})]


def scopes_at(session: Session, names: Collection[str]) -> list[ScopeRow]:
    """See ``Catalog.scopes_at``."""
    rows = session.rows(f"{_SCOPE} WHERE scope = ANY(%(names)s::text[])", {"names": Array("text", list(names))})
    return [ScopeRow(*row) for row in rows]


def take_scopes(session: Session, rows: Sequence[ScopeRow]) -> None:
    """See ``Catalog.take_scopes``."""
    scopes, floors, times = zip(*rows, strict=True)
    session.rows(
        "INSERT INTO agent_memory.scope AS scope (scope, version_floor, last_write_us) "
        "SELECT * FROM unnest(%(scopes)s::text[], %(floors)s::bigint[], %(times)s::bigint[]) "
        "ON CONFLICT (scope) DO UPDATE SET "
        "version_floor = greatest(scope.version_floor, excluded.version_floor), "
        "last_write_us = greatest(scope.last_write_us, excluded.last_write_us)",
        {"scopes": Array("text", scopes), "floors": Array("bigint", floors), "times": Array("bigint", times)},
    )


def analyze(dsn: str) -> None:
    """Let PostgreSQL look at what a copy brought: until then it takes the tables for small, and plans for that.

    Without the rights on a table it is left to autovacuum, which does the same within minutes.
    """
    connection = connect(dsn)
    try:
        connection.execute(UNLIMITED)
        rows = connection.execute(
            "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class "
            "WHERE relnamespace = 'agent_memory'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
        ).fetchall()
        execute(connection, f"ANALYZE (SKIP_LOCKED) {rows[0][0]}")
    except psycopg.Error as error:
        raise translate(error, lost=connection.closed).error from None
    finally:
        connection.close()
