"""How the SQLite catalog carries out a write inside a transaction, and keeps its receipt."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import apsw

from ...errors import IntegrityError
from ...messages import CommitWrite, Entry, Write
from ..catalog import GARBAGE, LIVE, STAGED, is_time, is_version, provenance_text
from ..rules import (
    Current,
    Receipt,
    blob_gone,
    condition_failed,
    conditions_hold,
    etag_of,
    fingerprint,
    next_entry,
    replay,
    swept_requests,
    write_digest,
    write_mark,
)
from .rows import AT_KEY, IS_LIVE, all_rows, damaged, read_row, rows_at
from .vectors import forget_vectors, keep_vectors

Run: TypeAlias = Callable[..., Any]
"""Executes a statement with its bindings."""

HOUR_US: Final = 3_600_000_000
"""Receipts stand by the hour: one lives for one to two of them."""

_SELECT_RECEIPT: Final = (
    "SELECT fingerprint, version, created_us, updated_us, expires_us FROM receipt WHERE hour IN (?, ?) AND write = ?"
)
_SELECT_CURRENT: Final = rows_at(
    AT_KEY, f"version, etag, {IS_LIVE.replace('?', '?3')}, created_us, expires_us, ttl_us, blob_id, vectors, place"
)
_WRITTEN: Final = (
    "version", "etag", "size", "sha256", "content_type", "signature", "schema_name", "schema_version", "created_us",
    "updated_us", "expires_us", "ttl_us", "provenance", "deleted", "vectors", "blob_id", "chunk_size", "value",
)  # fmt: skip
_INSERT: Final = (
    f"INSERT INTO entry ({', '.join(_WRITTEN)}, scope, key) VALUES ({', '.join('?' * (len(_WRITTEN) + 2))})"
)
_UPDATE: Final = f"UPDATE entry SET {', '.join(f'{column} = ?' for column in _WRITTEN)} WHERE rowid = ?"
_INSERT_RECEIPT: Final = "INSERT INTO receipt VALUES (?, ?, ?, ?, ?, ?, ?)"


def carry_out(connection: apsw.Connection, run: Run, request: Write, now: int) -> Entry | None:
    """Carry out a write, or give the first result of one that is repeated; ``run`` is ``Writing.run``."""
    scope, write_id = request.scope.path, request.write_id
    if write_id is None:
        # No receipt: it would be a second page in the commit.
        return _change(connection, run, request, os.urandom(8), now)
    digest = write_digest(scope, write_id)
    # A uuid7's first 13 characters are its time: new receipts lie side by side.
    hour, name = now // HOUR_US, write_id[:13].encode("utf-8", "surrogatepass") + digest
    known = run(_SELECT_RECEIPT, (hour, hour - 1, name)).fetchall()
    if known:
        return replay(request, _receipt_of(known[0], digest))
    intent = bytes.fromhex(fingerprint(request))
    entry = _change(connection, run, request, write_mark(digest, intent), now)
    times = (entry.version, entry.created_us, entry.updated_us, entry.expires_us) if entry else (None, 0, 0, None)
    run(_INSERT_RECEIPT, (hour, name, intent, *times))
    return entry


def _change(connection: apsw.Connection, run: Run, request: Write, mark: bytes, now: int) -> Entry | None:
    """Carry out a write that was not made before, on its conditions; ``mark`` makes its etag unique."""
    scope, key = request.scope.path, request.key
    current, blob_id, vectors, rowid = None, None, 0, None
    if rows := run(_SELECT_CURRENT, (scope, key, now)).fetchall():
        *seen, blob_id, vectors, rowid, sound, _ = rows[0]
        if not sound:
            raise damaged(key)
        current = Current._make(seen)
        if not is_version(current.version):
            raise damaged(key)
        if not is_time(current.created_us):
            # Else the new value could not be read either.
            current = current._replace(created_us=now)
    if not conditions_hold(request, current and current.live_etag):
        raise condition_failed(request, read_row(connection, scope, key, now))
    entry = None
    if isinstance(request, CommitWrite) or (current is not None and current.live):
        entry, ttl_us = next_entry(request, mark, current, 0 if current else floor_of(connection, scope), now)
        retire(connection, scope, key, blob_id, vectors, now)
        _put(connection, run, request, entry, ttl_us, rowid)
    if request.scope.request_id is not None:
        run(
            "INSERT INTO scope (scope, last_write_us) VALUES (?, ?) "
            "ON CONFLICT (scope) DO UPDATE SET last_write_us = excluded.last_write_us",
            (scope, now),
        )
    return entry


def _receipt_of(row: Any, digest: bytes) -> Receipt:
    intent, version, created_us, updated_us, expires_us = row
    if not (
        type(intent) is bytes
        and (version is None or is_version(version))
        and is_time(created_us)
        and is_time(updated_us)
        and (expires_us is None or is_time(expires_us))
    ):
        raise IntegrityError("the receipt of this write is damaged in the database file")
    etag = "" if version is None else etag_of(write_mark(digest, intent), version)
    return Receipt(intent.hex(), version, etag, created_us, updated_us, expires_us)


def _put(
    connection: apsw.Connection, run: Run, request: Write, entry: Entry, ttl_us: int | None, rowid: int | None
) -> None:
    """Write an entry over the row that stands there, which leaves its index alone, or as a new row."""
    data: bytes | None = None
    blob_id: str | None = None
    chunk_size: int | None = None
    vectors = 0
    if isinstance(request, CommitWrite):
        data, vectors = request.data, len(request.vectors)
        if vectors:
            keep_vectors(connection, request.scope.path, request.key, request.vectors)
        if request.blob is not None:
            blob_id = request.blob.id
            chunk_size = _claim(connection, request, blob_id, entry.updated_us)
    written = (
        *entry[1:12], ttl_us, provenance_text(entry.provenance),
        int(entry.deleted), vectors, blob_id, chunk_size, data,
    )  # fmt: skip
    if rowid is None:
        run(_INSERT, (*written, request.scope.path, entry.key))
    else:
        run(_UPDATE, (*written, rowid))


def _claim(connection: apsw.Connection, request: CommitWrite, blob_id: str, now: int) -> int | None:
    """Make a staged blob the value of its key and return its chunk size; whoever claims it first has it."""
    claimed = all_rows(
        connection,
        "UPDATE blob SET state = ?, at_us = ? WHERE id = ? AND scope = ? AND key = ? AND state = ? "
        "RETURNING chunk_size",
        (LIVE, now, blob_id, request.scope.path, request.key, STAGED),
    )
    if not claimed:
        raise blob_gone()
    return claimed[0][0]


def retire(connection: apsw.Connection, scope: str, key: str, blob_id: str | None, vectors: int, now: int) -> None:
    """Let go of what a row's old value had: its blob becomes garbage, its vectors are forgotten."""
    if blob_id is not None:
        all_rows(
            connection,
            "UPDATE blob SET state = ?, at_us = ? WHERE id = ? AND scope = ? AND key = ?",
            (GARBAGE, now, blob_id, scope, key),
        )
    if vectors:
        forget_vectors(connection, scope, key)


def floor_of(connection: apsw.Connection, scope: str) -> int:
    """Return the version above which a key without a row starts."""
    rows = all_rows(
        connection, "SELECT max(version_floor) FROM scope WHERE scope IN (?, ?)", (scope, swept_requests(scope))
    )
    floor = rows[0][0] or 0
    if not is_version(floor):
        raise IntegrityError("the lowest version of a new key is damaged in the database file")
    return floor


def raise_floor(connection: apsw.Connection, scope: str, version: int) -> None:
    all_rows(
        connection,
        "INSERT INTO scope (scope, version_floor) VALUES (?, ?) ON CONFLICT (scope) "
        "DO UPDATE SET version_floor = max(version_floor, excluded.version_floor)",
        (scope, version),
    )
