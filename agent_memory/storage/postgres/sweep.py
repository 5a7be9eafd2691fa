"""Sweeping a PostgreSQL catalog: each step is one statement, and skips what another sweep or a writer has locked.

Limits stand in the statements themselves. A plan is made without knowing what is bound, and takes an unknown limit for
a tenth of the table: it would read all of it to join it with a thousand rows.
"""

from __future__ import annotations

from typing import Any, Final

from ..catalog import DEAD, GARBAGE, STAGED, BlobRow
from ..rules import swept_requests
from .connections import Session
from .rows import NOW, retire

BLOB_COLUMNS: Final = "id, scope, key, size, chunk_size, state, at_us"

_RETIRE: Final = retire("old", "old.scope", "old.blob_id", NOW)
_FORGET: Final = (
    "DELETE FROM agent_memory.vector AS vector USING {source} "
    "WHERE vector.scope = {source}.scope AND vector.key = {source}.key"
)

_RAISE: Final = (
    "INSERT INTO agent_memory.scope AS scope (scope, version_floor) SELECT %(swept)s::text, max(old.version)"
)
_KEEP_HIGHER: Final = (
    "ON CONFLICT (scope) DO UPDATE SET version_floor = greatest(scope.version_floor, excluded.version_floor)"
)


def claim_blobs(
    session: Session, *, staged_before: int, garbage_before: int, limit: int, now: int | None
) -> list[BlobRow]:
    """See ``Catalog.claim_blobs``."""
    rows = session.rows(
        f"""WITH old AS MATERIALIZED (
            SELECT id FROM agent_memory.blob
            WHERE (state = '{STAGED}' AND at_us < %(staged)s) OR (state = '{GARBAGE}' AND at_us < %(garbage)s)
            LIMIT {limit} FOR UPDATE SKIP LOCKED)
        UPDATE agent_memory.blob AS blob SET state = '{DEAD}', at_us = {NOW} FROM old WHERE blob.id = old.id
        RETURNING {_of("blob")}""",
        {"staged": staged_before, "garbage": garbage_before, "now": now},
    )
    return [BlobRow(*row) for row in rows]


def expire(session: Session, *, limit: int, now: int | None, vectors: bool) -> int:
    """See ``Catalog.expire``."""
    # The time is asked once, in a SELECT of its own: an index is not searched for what may change from row to row.
    return _count(
        session,
        f"""WITH old AS MATERIALIZED (
            SELECT scope, key, blob_id FROM agent_memory.entry
            WHERE expires_us IS NOT NULL AND expires_us <= (SELECT {NOW}) LIMIT {limit} FOR UPDATE SKIP LOCKED),
        retired AS ({_RETIRE}),
        {f"forgotten AS ({_FORGET.format(source='old')})," if vectors else ""}
        gone AS (UPDATE agent_memory.entry AS entry SET deleted = true, searchable = false, updated_us = {NOW},
            size = 0, sha256 = '', content_type = '', signature = NULL, schema_name = NULL, schema_version = NULL,
            expires_us = NULL, ttl_us = NULL, provenance = NULL, blob_id = NULL, chunk_size = NULL, projection = NULL,
            value = NULL
            FROM old WHERE entry.scope = old.scope AND entry.key = old.key RETURNING 1)
        SELECT count(*) FROM gone""",
        {"now": now},
    )


def drop_tombstones(session: Session, *, before: int, limit: int) -> int:
    """See ``Catalog.drop_tombstones``: the floor is raised where the tombstone goes, so no snapshot misses both."""
    return _count(
        session,
        f"""WITH old AS MATERIALIZED (
            SELECT scope, key, version FROM agent_memory.entry WHERE deleted AND updated_us < %(before)s
            LIMIT {limit} FOR UPDATE SKIP LOCKED),
        raised AS (INSERT INTO agent_memory.scope AS scope (scope, version_floor)
            SELECT scope, max(version) FROM old GROUP BY scope ORDER BY scope {_KEEP_HIGHER}),
        gone AS (DELETE FROM agent_memory.entry AS entry USING old
            WHERE entry.scope = old.scope AND entry.key = old.key RETURNING 1)
        SELECT count(*) FROM gone""",
        {"before": before},
    )


def drop_receipts(session: Session, *, before: int, limit: int) -> int:
    """See ``Catalog.drop_receipts``."""
    return _count(
        session,
        f"""WITH old AS MATERIALIZED (
            SELECT scope, write_id FROM agent_memory.receipt WHERE at_us < %(before)s ORDER BY at_us
            LIMIT {limit} FOR UPDATE SKIP LOCKED),
        gone AS (DELETE FROM agent_memory.receipt AS receipt USING old
            WHERE receipt.scope = old.scope AND receipt.write_id = old.write_id RETURNING 1)
        SELECT count(*) FROM gone""",
        {"before": before},
    )


def drop_requests(session: Session, *, before: int, limit: int, now: int | None, vectors: bool) -> int:
    """See ``Catalog.drop_requests``."""
    handled = since = 0
    while handled < limit:
        with session.connection.transaction():
            # From where the last one stood: while a long transaction is open, all that are gone stay in the index.
            scopes = session.rows(
                "SELECT scope, last_write_us FROM agent_memory.scope WHERE last_write_us IS NOT NULL "
                "AND last_write_us >= %(since)s AND last_write_us < %(before)s "
                "ORDER BY last_write_us LIMIT 1 FOR UPDATE SKIP LOCKED",
                {"since": since, "before": before},
            )
            if not scopes:
                break
            (scope, since), room = scopes[0], limit - handled
            # A writer may hold one of the keys and wait for the scope: waiting for that writer would be a deadlock.
            keys = _count(
                session,
                f"""WITH old AS MATERIALIZED (
                    SELECT scope, key, blob_id, version FROM agent_memory.entry WHERE scope = %(scope)s
                    LIMIT {room} FOR UPDATE SKIP LOCKED),
                raised AS ({_RAISE} FROM old HAVING count(*) > 0 {_KEEP_HIGHER}),
                retired AS ({_RETIRE}),
                {f"forgotten AS ({_FORGET.format(source='old')})," if vectors else ""}
                gone AS (DELETE FROM agent_memory.entry AS entry USING old
                    WHERE entry.scope = old.scope AND entry.key = old.key RETURNING 1)
                SELECT count(*) FROM gone""",
                {"scope": scope, "swept": swept_requests(scope), "now": now},
            )
            if keys < room:
                session.rows(
                    "WITH old AS (DELETE FROM agent_memory.scope WHERE scope = %(scope)s "
                    f"RETURNING version_floor AS version) {_RAISE} FROM old HAVING max(old.version) > 0 {_KEEP_HIGHER}",
                    {"scope": scope, "swept": swept_requests(scope)},
                )
            handled += keys + 1
    return handled


def _count(session: Session, statement: str, values: dict[str, Any]) -> int:
    return int(session.rows(statement, values)[0][0])


def _of(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in BLOB_COLUMNS.split(", "))
