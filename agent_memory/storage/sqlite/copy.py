"""Rows of the SQLite catalog as a copy of a store carries them: as they stand, deletions included."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import apsw

from ..catalog import COLUMNS, LIVE, ScopeRow, StoredRow, not_older, provenance_text
from .rows import AT_KEY, PLACE, all_rows, damaged, rows_at, to_row
from .vectors import keep_vectors
from .writes import raise_floor, retire

_STORED: Final = f"{COLUMNS}, scope, ttl_us, vectors"
_AFTER: Final = f"SELECT {PLACE} FROM entry WHERE (scope, key) > (?, ?) ORDER BY scope, key LIMIT ?"
_TAKEN: Final = (
    "scope", "key", "version", "etag", "size", "sha256", "content_type", "signature", "schema_name", "schema_version",
    "created_us", "updated_us", "expires_us", "provenance", "deleted", "blob_id", "chunk_size", "value", "ttl_us",
    "vectors",
)  # fmt: skip


def stored(connection: apsw.Connection, after: tuple[str, str], limit: int) -> list[StoredRow]:
    """See ``Catalog.stored``."""
    rows = all_rows(connection, f"{rows_at(_AFTER, _STORED)} ORDER BY within, at", (*after, limit))
    return [_stored_row(connection, row) for row in rows]


def stored_at(connection: apsw.Connection, places: Collection[tuple[str, str]]) -> list[StoredRow]:
    """See ``Catalog.stored_at``."""
    found = (all_rows(connection, rows_at(AT_KEY, _STORED), place) for place in places)
    return [_stored_row(connection, row) for rows in found for row in rows]


def _stored_row(connection: apsw.Connection, row: Any) -> StoredRow:
    *columns, scope, ttl_us, count, sound, at = row
    found = to_row((*columns, sound, at))
    found = found._replace(entry=found.entry._replace(deleted=bool(columns[13])))
    vectors: list[Any] = []
    if count:
        vectors = all_rows(
            connection, "SELECT embedding FROM vector WHERE scope = ? AND key = ? ORDER BY number", (scope, columns[0])
        )
    embeddings = tuple(one[0] for one in vectors)
    if not all(type(one) is bytes for one in embeddings) or not (ttl_us is None or type(ttl_us) is int):
        raise damaged(found.entry.key)
    return StoredRow(scope, found, ttl_us, embeddings)


def take(connection: apsw.Connection, rows: Sequence[StoredRow], now: int) -> None:
    """See ``Catalog.take``."""
    for stored_row in rows:
        scope, row, ttl_us, vectors = stored_row
        entry = row.entry
        there = all_rows(
            connection,
            rows_at(AT_KEY, "version, etag, blob_id, vectors"),
            (scope, entry.key),
        )
        for version, etag, blob_id, count, sound, _ in there:
            if not sound:
                raise damaged(entry.key)
            if version > entry.version or (version == entry.version and etag != entry.etag):
                raise not_older(stored_row)
            # A blob that stays the row's own is live again below.
            retire(connection, scope, entry.key, blob_id, count, now)
        all_rows(
            connection,
            f"INSERT OR REPLACE INTO entry ({', '.join(_TAKEN)}) VALUES ({', '.join('?' * len(_TAKEN))})",
            (
                scope, *entry[:12], provenance_text(entry.provenance), int(entry.deleted), row.blob_id, row.chunk_size,
                row.data, ttl_us, len(vectors),
            ),
        )  # fmt: skip
        keep_vectors(connection, scope, entry.key, vectors)
        if row.blob_id is not None:
            all_rows(connection, "UPDATE blob SET state = ?, at_us = ? WHERE id = ?", (LIVE, now, row.blob_id))


_SCOPE: Final = "SELECT scope, version_floor, last_write_us FROM scope"


def scopes(connection: apsw.Connection, after: str, limit: int) -> list[ScopeRow]:
    """See ``Catalog.scopes``."""
    rows = all_rows(connection, f"{_SCOPE} WHERE scope > ? ORDER BY scope LIMIT ?", (after, limit))
    return [ScopeRow(*row) for row in rows]


def scopes_at(connection: apsw.Connection, names: Collection[str]) -> list[ScopeRow]:
    """See ``Catalog.scopes_at``."""
    found = (all_rows(connection, f"{_SCOPE} WHERE scope = ?", (name,)) for name in names)
    return [ScopeRow(*row) for rows in found for row in rows]


def take_scopes(connection: apsw.Connection, rows: Sequence[ScopeRow]) -> None:
    """See ``Catalog.take_scopes``."""
    for scope, version_floor, last_write_us in rows:
        raise_floor(connection, scope, version_floor)
        all_rows(
            connection,
            "UPDATE scope SET last_write_us = max(coalesce(last_write_us, 0), ?) WHERE scope = ? AND ? IS NOT NULL",
            (last_write_us, scope, last_write_us),
        )
