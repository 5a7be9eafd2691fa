"""Rows of the PostgreSQL catalog as a copy of a store carries them: as they stand, deletions included."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from ..messages import JSON
from .catalog import COLUMNS, LIVE, ScopeRow, StoredRow, not_older
from .postgres_apply import no_vectors
from .postgres_binding import Vector
from .postgres_connections import Session
from .postgres_rows import NOW, to_row
from .postgres_writes import projectable

_STORED: Final = f"SELECT {COLUMNS}, scope, ttl_us FROM agent_memory.entry"
_TAKEN: Final = (
    "scope", "key", "version", "etag", "size", "sha256", "content_type", "signature", "schema_name", "schema_version",
    "created_us", "updated_us", "expires_us", "provenance", "deleted", "blob_id", "chunk_size", "value", "ttl_us",
    "searchable",
)  # fmt: skip
_TAKE: Final = (
    f"INSERT INTO agent_memory.entry AS entry ({', '.join(_TAKEN)}, projection) "
    f"VALUES ({', '.join(f'%({name})s' for name in _TAKEN)}, "
    "CASE WHEN %(projectable)s THEN convert_from(%(value)s::bytea, 'UTF8')::jsonb END) "
    f"ON CONFLICT (scope, key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _TAKEN[2:])}, "
    "projection = excluded.projection, replaced_blob_id = NULL WHERE entry.version < excluded.version "
    "OR (entry.version = excluded.version AND entry.etag = excluded.etag) RETURNING key"
)


def stored(session: Session, after: tuple[str, str], limit: int, vectors: str | None) -> list[StoredRow]:
    """See ``Catalog.stored``."""
    rows = session.rows(
        f"{_STORED} WHERE (scope, key) > (%(scope)s, %(key)s) ORDER BY scope, key LIMIT %(limit)s",
        {"scope": after[0], "key": after[1], "limit": limit},
    )
    return [_stored_row(session, row, vectors) for row in rows]


def stored_at(session: Session, scope: str, key: str, vectors: str | None) -> StoredRow | None:
    """See ``Catalog.stored_at``."""
    rows = session.rows(f"{_STORED} WHERE scope = %(scope)s AND key = %(key)s", {"scope": scope, "key": key})
    return _stored_row(session, rows[0], vectors) if rows else None


def _stored_row(session: Session, row: Any, vectors: str | None) -> StoredRow:
    *columns, scope, ttl_us = row
    found = to_row(columns)
    found = found._replace(entry=found.entry._replace(deleted=columns[13]))
    embeddings: list[Any] = []
    if vectors is not None:
        embeddings = session.rows(
            "SELECT embedding::real[] FROM agent_memory.vector "
            "WHERE scope = %(scope)s AND key = %(key)s AND version = %(version)s ORDER BY number",
            {"scope": scope, "key": columns[0], "version": columns[1]},
        )
    return StoredRow(scope, found, ttl_us, tuple(struct.pack(f"<{len(one[0])}f", *one[0]) for one in embeddings))


def take(session: Session, rows: Sequence[StoredRow], now: int | None, vectors: str | None) -> None:
    """See ``Catalog.take``."""
    with session.connection.transaction():
        for stored_row in rows:
            _take_one(session, stored_row, now, vectors)


def _take_one(session: Session, stored_row: StoredRow, now: int | None, vectors: str | None) -> None:
    scope, row, ttl_us, embeddings = stored_row
    entry, data = row.entry, row.data
    place = {"scope": scope, "key": entry.key, "version": entry.version, "now": now, "blob_id": row.blob_id}
    there = session.rows(
        "SELECT blob_id FROM agent_memory.entry WHERE scope = %(scope)s AND key = %(key)s FOR UPDATE", place
    )
    searchable = entry.content_type == JSON and not entry.deleted and (data is None or data[:1] == b"{")
    provenance = json.dumps(dict(entry.provenance)) if entry.provenance else None
    values: dict[str, Any] = dict(
        zip(
            _TAKEN,
            (scope, *entry[:12], provenance, entry.deleted, row.blob_id, row.chunk_size, data, ttl_us, searchable),
            strict=True,
        )
    )
    values["projectable"] = searchable and data is not None and projectable(data)
    if not session.rows(_TAKE, values):
        raise not_older(stored_row)
    if there and there[0][0] != row.blob_id:
        session.rows(
            f"UPDATE agent_memory.blob SET state = 'garbage', at_us = {NOW} WHERE id = %(old)s",
            {**place, "old": there[0][0]},
        )
    if row.blob_id is not None:
        session.rows(f"UPDATE agent_memory.blob SET state = '{LIVE}', at_us = {NOW} WHERE id = %(blob_id)s", place)
    if vectors is not None:
        session.rows("DELETE FROM agent_memory.vector WHERE scope = %(scope)s AND key = %(key)s", place)
    elif embeddings:
        raise no_vectors()
    for number, embedding in enumerate(embeddings):
        session.rows(
            "INSERT INTO agent_memory.vector (scope, key, version, number, embedding) "
            f"VALUES (%(scope)s, %(key)s, %(version)s, %(number)s, %(vector)s::{vectors}.vector)",
            {**place, "number": number, "vector": Vector(embedding)},
        )


def floor(session: Session, scope: str) -> int:
    """See ``Catalog.floor``."""
    rows = session.rows("SELECT version_floor FROM agent_memory.scope WHERE scope = %(scope)s", {"scope": scope})
    return int(rows[0][0]) if rows else 0


def scopes(session: Session, after: str, limit: int) -> list[ScopeRow]:
    """See ``Catalog.scopes``."""
    rows = session.rows(
        "SELECT scope, version_floor, last_write_us FROM agent_memory.scope WHERE scope > %(after)s "
        "ORDER BY scope LIMIT %(limit)s",
        {"after": after, "limit": limit},
    )
    return [ScopeRow(*row) for row in rows]


def take_scopes(session: Session, rows: Sequence[ScopeRow]) -> None:
    """See ``Catalog.take_scopes``."""
    for row in rows:
        session.rows(
            "INSERT INTO agent_memory.scope AS scope (scope, version_floor, last_write_us) "
            "VALUES (%(scope)s, %(version_floor)s, %(last_write_us)s) ON CONFLICT (scope) DO UPDATE SET "
            "version_floor = greatest(scope.version_floor, excluded.version_floor), "
            "last_write_us = greatest(scope.last_write_us, excluded.last_write_us)",
            row._asdict(),
        )
