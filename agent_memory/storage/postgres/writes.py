"""Writes in PostgreSQL: one statement that checks, writes and records a write, for one key or for many.

Under READ COMMITTED a write waits for the row's lock and then tests its conditions on the newest version, not on the
one of its snapshot: ``ON CONFLICT … DO UPDATE … WHERE`` and ``UPDATE … WHERE`` both do. So conditions are linearizable
per key without a lock of our own. What a snapshot decides is only what cannot change behind it:

- The version of a key without a row is above the floor, its scope's and the one of all swept requests, and above the
  version that the snapshot still sees. A sweep drops a row and raises a floor in one transaction, so every snapshot
  has at least one of the two.
- A receipt that is missing in the snapshot but there by now violates the receipts' key: nothing is written.

A statement that cannot write every row it was given writes none, and says nothing about why. Only then the
receipts and the rows are read, and the write is repeated, answered from its receipt, or refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

import pydantic_core

from ...messages import JSON, CommitWrite, Entry, Write
from ..catalog import provenance_text
from ..rules import entry_of, fingerprint, swept_requests
from .binding import Array
from .connections import Cursor, Statement, positional
from .rows import IS_LIVE, NOW, retire

_FIELDS: Final = {
    "key": "text", "write_id": "text", "fingerprint": "text", "if_match": "text", "size": "bigint", "sha256": "text",
    "content_type": "text", "signature": "text", "schema_name": "text", "schema_version": "bigint", "ttl_us": "bigint",
    "provenance": "text", "blob_id": "text", "searchable": "boolean", "projectable": "boolean", "data": "bytea",
}  # fmt: skip


class Kind(NamedTuple):
    """What writes of one statement have in common."""

    verb: str
    scope: str
    in_request: bool
    create: bool = False
    keep_ttl: bool = False


def kind_of(write: Write) -> Kind:
    """Return the kind of a write: ``put``, ``swap`` if it names the version to replace, or ``delete``."""
    in_request = write.scope.request_id is not None
    if not isinstance(write, CommitWrite):
        return Kind("delete", write.scope.path, in_request)
    verb = "put" if write.if_match is None else "swap"
    return Kind(verb, write.scope.path, in_request, write.if_none_match, write.keep_ttl and write.ttl_seconds is None)


def is_simple(write: Write) -> bool:
    """Say whether one statement carries out a write: no blob to claim, no vectors to keep."""
    return not isinstance(write, CommitWrite) or (write.blob is None and not write.vectors)


def start(cursor: Cursor, kind: Kind, writes: Sequence[Write], *, now: int | None, vectors: bool, plain: bool) -> None:
    """Execute the statement that carries out writes of one kind to different keys; ``plain`` projects no JSON."""
    many = len(writes) > 1
    inputs = [_input(write, plain) for write in writes]
    values: dict[str, Any] = {"scope": kind.scope, "swept": swept_requests(kind.scope), "now": now}
    values["token"] = secrets.token_hex(8)
    if many:
        # Code points are in the same order as the bytes of their UTF-8.
        inputs.sort(key=itemgetter(0))
        for (name, of), column in zip(_FIELDS.items(), zip(*inputs, strict=True), strict=True):
            # What no write has need not be sent.
            values[name] = None if column.count(None) == len(column) else Array(of, column)
    else:
        values |= zip(_FIELDS, inputs[0], strict=True)
    statement, names = _statement(kind._replace(scope=""), many, vectors)
    cursor.execute(statement, [values[name] for name in names], prepare=True, binary=True)


def finish(writes: Sequence[Write], rows: Sequence[Any]) -> dict[str, Entry | None]:
    """Return the entries of the writes that were carried out, by key; None for a delete that found nothing."""
    by_key = {write.key: write for write in writes}
    return {
        key: None if version is None else entry_of(by_key[key], version, etag, created_us, updated_us, expires_us)
        for key, version, etag, created_us, updated_us, expires_us in rows
    }


def _input(write: Write, plain: bool) -> tuple[Any, ...]:
    """Return a write as the values of _FIELDS."""
    provenance = provenance_text(write.provenance)
    head = (write.key, write.write_id, fingerprint(write), write.if_match)
    if not isinstance(write, CommitWrite):
        return (*head, 0, "", "", None, None, None, None, provenance, None, False, False, None)
    data, blob = write.data, write.blob
    size = len(data) if data is not None else 0 if blob is None else blob.size
    searchable = is_searchable(write.content_type, data)
    return (
        *head, size, write.sha256 or "", write.content_type, write.signature, write.schema_name,
        write.schema_version, None if write.ttl_seconds is None else round(write.ttl_seconds * 1_000_000), provenance,
        None if blob is None else blob.id, searchable,
        searchable and not plain and data is not None and projectable(data), data,
    )  # fmt: skip


def is_searchable(content_type: str, data: bytes | None) -> bool:
    """Say whether a value is a JSON object, or a large one (None) that may be: a search has to load it to see."""
    return content_type == JSON and (data is None or data[:1] == b"{")


def projectable(data: bytes) -> bool:
    """Say whether JSONB can hold this JSON: it knows no NUL and no lone surrogate."""
    if b"\\u" in data and (b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data):
        return False
    try:
        pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError:
        return False
    return True


# -- statements ------------------------------------------------------------------------------------------------------

_SET: Final = """
    version = entry.version + 1, updated_us = clock.us, deleted = {deleted}, size = input.size, sha256 = input.sha256,
    content_type = input.content_type, signature = input.signature, schema_name = input.schema_name,
    schema_version = input.schema_version, provenance = input.provenance, searchable = input.searchable,
    etag = (entry.version + 1) || input.mark, replaced_blob_id = entry.blob_id, blob_id = input.blob_id"""


@lru_cache(maxsize=64)
def _statement(kind: Kind, many: bool, vectors: bool) -> Statement:
    write = _DELETE if kind.verb == "delete" else _put(kind) if kind.verb == "put" else _swap(kind)
    parts = [
        f"WITH input AS ({_INPUT_MANY if many else _INPUT})",
        f"clock AS MATERIALIZED (SELECT {NOW} AS us)",
        f"put AS ({write} RETURNING entry.key, entry.version, entry.etag, entry.created_us, entry.updated_us, "
        "entry.expires_us, entry.replaced_blob_id)",
        f"done AS (SELECT key, version, etag, created_us, updated_us, expires_us, <n> AS n FROM put "
        f"{_NOTHING_TO_DELETE if kind.verb == 'delete' else ''})",
        _RECORDED,
        _RETIRED,
    ]
    if vectors:
        parts.append(_FORGOTTEN)
    if kind.in_request:
        parts.append(_REQUEST)
    text = f"{', '.join(parts)} SELECT key, version, etag, created_us, updated_us, expires_us FROM done"
    if many:
        # All or none: dividing by zero undoes the statement.
        text += " WHERE 1 / ((SELECT count(*) FROM done) = cardinality(%(key)s::text[]))::integer = 1"
    for name, one_or_many in _ONE_OR_MANY.items():
        text = text.replace(f"<{name}>", one_or_many[many])
    return positional(text)


# Values are taken from where they were bound only when they are stored, so that no step in between carries them.
_SMALL: Final = {name: of for name, of in _FIELDS.items() if name != "data"}
_INPUT: Final = f"""
    SELECT {", ".join(f"%({name})s::{of} AS {name}" for name, of in _SMALL.items())}, 1 AS n,
        '-' || %(token)s::text AS mark"""
_INPUT_MANY: Final = f"""
    SELECT *, '-' || %(token)s::text || '-' || n AS mark
    FROM unnest({", ".join(f"%({name})s::{of}[]" for name, of in _SMALL.items())})
        WITH ORDINALITY AS one ({", ".join(_SMALL)}, n)"""
# Given keys and ids are compared with each row, not joined: a plan that was made while there were few rows might read
# all those of the scope. And what a written row was made from is known by its etag, so that nothing is looked for.
_ONE_OR_MANY: Final = {
    "key": ("%(key)s::text", "ANY(%(key)s::text[])"),
    "write_id": ("%(write_id)s::text", "ANY(%(write_id)s::text[])"),
    "n": ("1", "split_part(etag, '-', 3)::integer"),
    "write_id of done": ("%(write_id)s::text", "(%(write_id)s::text[])[done.n]"),
    "fingerprint of done": ("%(fingerprint)s::text", "(%(fingerprint)s::text[])[done.n]"),
    "data": ("%(data)s::bytea", "(%(data)s::bytea[])[input.n]"),
}
_UNKNOWN: Final = (
    "NOT EXISTS (SELECT FROM agent_memory.receipt AS receipt WHERE receipt.scope = %(scope)s::text "
    "AND receipt.write_id = <write_id>)"
)
_NOTHING_TO_DELETE: Final = f"""
    UNION ALL SELECT input.key, NULL, '', 0, 0, NULL, input.n FROM input
    WHERE input.if_match IS NULL AND {_UNKNOWN} AND input.key NOT IN (SELECT put.key FROM put)"""
_RECORDED: Final = """
    recorded AS (INSERT INTO agent_memory.receipt (scope, write_id, fingerprint, at_us, version, etag, created_us,
        updated_us, expires_us)
    SELECT %(scope)s::text, <write_id of done>, <fingerprint of done>, clock.us, done.version, done.etag,
        done.created_us, done.updated_us, done.expires_us FROM done, clock)"""
_RETIRED: Final = f"retired AS ({retire('put, clock', '%(scope)s::text', 'put.replaced_blob_id', 'clock.us')})"
_FORGOTTEN: Final = """
    forgotten AS (DELETE FROM agent_memory.vector AS vector WHERE vector.scope = %(scope)s::text
    AND vector.key = <key> AND vector.version < (SELECT put.version FROM put WHERE put.key = vector.key))"""
_REQUEST: Final = """
    request AS (INSERT INTO agent_memory.scope AS scope (scope, last_write_us) SELECT %(scope)s::text, clock.us
    FROM clock WHERE EXISTS (SELECT FROM done) ON CONFLICT (scope) DO UPDATE
    SET last_write_us = greatest(scope.last_write_us, excluded.last_write_us))"""
_IN_ORDER: Final = "(SELECT * FROM input ORDER BY n OFFSET 0) AS input"
_PROJECTION: Final = "CASE WHEN input.projectable THEN convert_from(<data>, 'UTF8')::jsonb END"
_CHUNK_SIZE: Final = "(SELECT blob.chunk_size FROM agent_memory.blob AS blob WHERE blob.id = input.blob_id)"
_FLOOR: Final = "(SELECT scope.version_floor FROM agent_memory.scope AS scope WHERE scope.scope = {})"


def _put(kind: Kind) -> str:
    kept = f"CASE WHEN {IS_LIVE} THEN entry.{{0}} ELSE excluded.{{0}} END" if kind.keep_ttl else "excluded.{0}"
    floor = _FLOOR.format("%(scope)s::text")
    if kind.in_request:
        floor += ", " + _FLOOR.format("%(swept)s::text")
    return f"""
        INSERT INTO agent_memory.entry AS entry (scope, key, version, etag, size, sha256, content_type, signature,
            schema_name, schema_version, created_us, updated_us, expires_us, ttl_us, provenance, deleted, searchable,
            blob_id, chunk_size, projection, value)
        SELECT %(scope)s::text, input.key, input.version, input.version || input.mark, input.size,
            input.sha256, input.content_type, input.signature, input.schema_name, input.schema_version, clock.us,
            clock.us, clock.us + input.ttl_us, input.ttl_us, input.provenance, false, input.searchable, input.blob_id,
            {_CHUNK_SIZE}, {_PROJECTION}, <data>
        FROM clock, (SELECT input.*, greatest(0, seen.version, {floor}) + 1 AS version FROM input
            LEFT JOIN agent_memory.entry AS seen
                ON seen.scope = %(scope)s::text AND seen.key = input.key AND seen.key = <key>
            ORDER BY n OFFSET 0) AS input
        WHERE {_UNKNOWN}
        ON CONFLICT (scope, key) DO UPDATE SET version = entry.version + 1,
            etag = (entry.version + 1) || substr(excluded.etag, strpos(excluded.etag, '-')), size = excluded.size,
            sha256 = excluded.sha256, content_type = excluded.content_type, signature = excluded.signature,
            schema_name = excluded.schema_name, schema_version = excluded.schema_version,
            created_us = CASE WHEN {IS_LIVE} THEN entry.created_us ELSE excluded.created_us END,
            updated_us = excluded.updated_us, expires_us = {kept.format("expires_us")},
            ttl_us = {kept.format("ttl_us")}, provenance = excluded.provenance, deleted = false,
            searchable = excluded.searchable, replaced_blob_id = entry.blob_id, blob_id = excluded.blob_id,
            chunk_size = excluded.chunk_size, projection = excluded.projection, value = excluded.value
        {f"WHERE NOT ({IS_LIVE})" if kind.create else ""}"""


def _swap(kind: Kind) -> str:
    kept = "entry.expires_us, entry.ttl_us" if kind.keep_ttl else "clock.us + input.ttl_us, input.ttl_us"
    return f"""
        UPDATE agent_memory.entry AS entry SET {_SET.format(deleted="false")}, (expires_us, ttl_us) = ROW({kept}),
            chunk_size = {_CHUNK_SIZE}, projection = {_PROJECTION}, value = <data>
        FROM {_IN_ORDER}, clock WHERE entry.scope = %(scope)s::text AND entry.key = input.key AND entry.key = <key>
            AND {IS_LIVE} AND entry.etag = input.if_match AND {_UNKNOWN}"""


_DELETE: Final = f"""
    UPDATE agent_memory.entry AS entry SET {_SET.format(deleted="true")}, expires_us = NULL, ttl_us = NULL,
        chunk_size = NULL, projection = NULL, value = NULL
    FROM {_IN_ORDER}, clock WHERE entry.scope = %(scope)s::text AND entry.key = input.key AND entry.key = <key>
        AND {IS_LIVE} AND (input.if_match IS NULL OR entry.etag = input.if_match) AND {_UNKNOWN}"""
