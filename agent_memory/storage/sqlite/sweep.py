"""What the SQLite catalog knows of blobs, and how it takes away what nobody can reach any more; see ``Catalog``."""

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
        "UPDATE blob SET state = ?, at_us = ? WHERE id IN (SELECT id FROM blob WHERE "
        "(state = ? AND at_us < ?) OR (state = ? AND at_us < ?) LIMIT ?) RETURNING *",
        (DEAD, now, STAGED, staged_before, GARBAGE, garbage_before, limit),
    )
    return [BlobRow(*row) for row in rows]


def dead_blobs(connection: apsw.Connection, *, before: int, limit: int) -> list[BlobRow]:
    rows = all_rows(connection, "SELECT * FROM blob WHERE state = ? AND at_us < ? LIMIT ?", (DEAD, before, limit))
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
    for scope, key, blob_id, vectors in rows:
        all_rows(
            connection,
            "UPDATE entry SET deleted = 1, updated_us = ?, size = 0, sha256 = ?, content_type = ?, signature = NULL, "
            "schema_name = NULL, schema_version = NULL, expires_us = NULL, ttl_us = NULL, provenance = NULL, "
            "vectors = 0, blob_id = NULL, chunk_size = NULL, value = NULL WHERE scope = ? AND key = ?",
            (now, EMPTY_SHA256, BYTES, scope, key),
        )
        retire(connection, scope, key, blob_id, vectors, now)
    return len(rows)


def drop_tombstones(connection: apsw.Connection, *, before: int, limit: int) -> int:
    rows = all_rows(
        connection,
        "SELECT scope, key, version FROM entry WHERE deleted AND updated_us < ? LIMIT ?",
        (before, limit),
    )
    for scope, key, version in rows:
        raise_floor(connection, scope, version)
        all_rows(connection, "DELETE FROM entry WHERE scope = ? AND key = ?", (scope, key))
    return len(rows)


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
        "SELECT scope FROM scope WHERE last_write_us IS NOT NULL AND last_write_us < ? LIMIT ?",
        (before, limit),
    )
    for (scope,) in scopes:
        room = limit - handled
        if room <= 0:
            break
        rows = all_rows(
            connection,
            "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE scope = ? LIMIT ?) "
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
