"""What the SQLite catalog knows of blobs, and how it takes away what nobody can reach any more; see ``Catalog``.

An index says what may go, and the row itself has the last word: one flipped bit in an index must delete nothing that is
in use. SQLite reads a column from the index that it searches, and with a ``+`` before it searches none for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from ...messages import BYTES
from ..catalog import DEAD, GARBAGE, STAGED, BlobRow
from ..rules import EMPTY_SHA256, swept_requests
from .rows import all_rows
from .writes import HOUR_US, floor_of, raise_floor, retire

# -- blobs -----------------------------------------------------------------------------------------------------------


def put_blobs(connection: apsw.Connection, blobs: Sequence[BlobRow]) -> None:
    """Remember blobs, or set what is known of them."""
    for blob in blobs:
        all_rows(connection, "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(blob))


def renew(connection: apsw.Connection, blob_id: str, now: int) -> bool:
    rows = all_rows(
        connection, "UPDATE blob SET at_us = ? WHERE id = ? AND state = ? RETURNING id", (now, blob_id, STAGED)
    )
    return bool(rows)


def claim_blobs(
    connection: apsw.Connection, now: int, *, staged_before: int, garbage_before: int, limit: int
) -> list[BlobRow]:
    rows = all_rows(
        connection,
        "UPDATE blob SET state = ?5, at_us = ?6 WHERE id IN (SELECT id FROM blob "
        "WHERE (state = ?1 AND at_us < ?2) OR (state = ?3 AND at_us < ?4) LIMIT ?7) "
        "AND ((+state = ?1 AND +at_us < ?2) OR (+state = ?3 AND +at_us < ?4)) RETURNING *",
        (STAGED, staged_before, GARBAGE, garbage_before, DEAD, now, limit),
    )
    return [BlobRow(*row) for row in rows]


def dead_blobs(connection: apsw.Connection, *, before: int, limit: int) -> list[BlobRow]:
    rows = all_rows(
        connection,
        "SELECT * FROM blob WHERE id IN (SELECT id FROM blob WHERE state = ?1 AND at_us < ?2 LIMIT ?3) "
        "AND +state = ?1 AND +at_us < ?2",
        (DEAD, before, limit),
    )
    return [BlobRow(*row) for row in rows]


def forget_blobs(connection: apsw.Connection, ids: Sequence[str]) -> None:
    for one in ids:
        all_rows(connection, "DELETE FROM blob WHERE id = ? AND state = ?", (one, DEAD))


# -- rows ------------------------------------------------------------------------------------------------------------


def expire(connection: apsw.Connection, now: int, *, limit: int) -> int:
    rows = all_rows(
        connection,
        "SELECT scope, key, blob_id, vectors FROM entry WHERE expires_us IS NOT NULL AND expires_us <= ? LIMIT ?",
        (now, limit),
    )
    expired = 0
    for scope, key, blob_id, vectors in rows:
        found = all_rows(
            connection,
            "UPDATE entry SET deleted = 1, updated_us = ?, size = 0, sha256 = ?, content_type = ?, signature = NULL, "
            "schema_name = NULL, schema_version = NULL, expires_us = NULL, ttl_us = NULL, provenance = NULL, "
            "vectors = 0, blob_id = NULL, chunk_size = NULL, value = NULL WHERE scope = ? AND key = ? "
            "AND expires_us <= ? RETURNING 1",
            (now, EMPTY_SHA256, BYTES, scope, key, now),
        )
        if found:
            retire(connection, scope, key, blob_id, vectors, now)
            expired += 1
    return expired


def drop_tombstones(connection: apsw.Connection, *, before: int, limit: int) -> int:
    rows = all_rows(
        connection,
        "SELECT scope, key, version FROM entry WHERE deleted AND updated_us < ? LIMIT ?",
        (before, limit),
    )
    dropped = 0
    for scope, key, version in rows:
        raise_floor(connection, scope, version)
        dropped += len(
            all_rows(connection, "DELETE FROM entry WHERE scope = ? AND key = ? AND deleted RETURNING 1", (scope, key))
        )
    return dropped


def drop_receipts(connection: apsw.Connection, *, before: int, limit: int) -> int:
    rows = all_rows(
        connection,
        "DELETE FROM receipt WHERE (hour, write) IN (SELECT hour, write FROM receipt WHERE hour < ? LIMIT ?) "
        "RETURNING hour",
        (before // HOUR_US, limit),
    )
    return len(rows)


def drop_requests(connection: apsw.Connection, now: int, *, before: int, limit: int) -> int:
    handled = 0
    scopes = all_rows(
        connection,
        "SELECT scope FROM scope AS old WHERE last_write_us IS NOT NULL AND last_write_us < ?1 "
        "AND EXISTS (SELECT 1 FROM scope WHERE scope = old.scope AND last_write_us < ?1) LIMIT ?2",
        (before, limit),
    )
    for (scope,) in scopes:
        room = limit - handled
        if room <= 0:
            break
        rows = all_rows(
            connection,
            "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE scope = ?1 LIMIT ?2) AND +scope = ?1 "
            "RETURNING key, blob_id, vectors, version",
            (scope, room),
        )
        for key, blob_id, vectors, version in rows:
            retire(connection, scope, key, blob_id, vectors, now)
            raise_floor(connection, swept_requests(scope), version)
        if len(rows) < room:
            raise_floor(connection, swept_requests(scope), floor_of(connection, scope))
            all_rows(connection, "DELETE FROM scope WHERE scope = ?", (scope,))
        handled += len(rows) + 1
    return handled
