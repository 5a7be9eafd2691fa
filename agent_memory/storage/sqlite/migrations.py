"""The steps that make a SQLite catalog, oldest first. A step that was released is never changed, only followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import apsw

from .rows import all_rows


def create_tables(connection: apsw.Connection) -> None:
    """Rowid tables with the value last: metadata is read without touching the pages that a value overflows to."""
    for statement in (
        """CREATE TABLE entry (
            scope TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, etag TEXT NOT NULL,
            size INTEGER NOT NULL, sha256 TEXT NOT NULL, content_type TEXT NOT NULL, signature TEXT,
            schema_name TEXT, schema_version INTEGER,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, expires_us INTEGER, ttl_us INTEGER,
            provenance TEXT, deleted INTEGER NOT NULL, vectors INTEGER NOT NULL, blob_id TEXT,
            chunk_size INTEGER, value BLOB,
            PRIMARY KEY (scope, key)
        ) STRICT""",
        "CREATE INDEX entry_tombstone ON entry (updated_us) WHERE deleted",
        "CREATE INDEX entry_expiry ON entry (expires_us) WHERE expires_us IS NOT NULL",
        # Receipts come and go by the hour: with the hour in front they are one tree, written at one place and swept at
        # its beginning, without an index on time.
        """CREATE TABLE receipt (
            hour INTEGER NOT NULL, write BLOB NOT NULL, fingerprint BLOB NOT NULL, version INTEGER,
            created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, expires_us INTEGER,
            PRIMARY KEY (hour, write)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE blob (
            id TEXT NOT NULL PRIMARY KEY, scope TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL,
            chunk_size INTEGER, state TEXT NOT NULL, at_us INTEGER NOT NULL
        ) STRICT""",
        "CREATE INDEX blob_state ON blob (state, at_us)",
        """CREATE TABLE scope (
            scope TEXT NOT NULL PRIMARY KEY, version_floor INTEGER NOT NULL DEFAULT 0, last_write_us INTEGER
        ) STRICT""",
        "CREATE INDEX scope_last_write ON scope (last_write_us) WHERE last_write_us IS NOT NULL",
        """CREATE TABLE vector (
            scope TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL, embedding BLOB NOT NULL,
            PRIMARY KEY (scope, key, number)
        ) STRICT""",
        "CREATE TABLE secret (name TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT",
    ):
        all_rows(connection, statement)


MIGRATIONS: Final[tuple[tuple[str, Callable[[apsw.Connection], None]], ...]] = (("0001_create_tables", create_tables),)
