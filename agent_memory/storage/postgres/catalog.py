"""The catalog in PostgreSQL: any server that speaks its language, shared by any number of processes.

Opening never changes the schema: ``migrate`` does. The time is the database's. Every statement runs on its own, as one
transaction, except batches and writes of large values.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, TypeVar

from ...errors import UnavailableError
from ...messages import Entry, List, Operation, Scope, Write
from ..catalog import (
    COLUMNS,
    DEAD,
    SECRET_BYTES,
    STAGED,
    BlobRow,
    Clock,
    LoadBlob,
    Row,
    ScopeRow,
    StoredRow,
    StoredValue,
    Times,
    check_secret,
    stored_value,
)
from . import copy, sweep
from .apply import apply
from .batch import Context
from .binding import Array
from .connections import Pool, Session, Settings
from .listing import list_keys, list_segments
from .migrations import VECTOR_SCHEMA, check_schema
from .rows import DATABASE_TIME, NOW, live, to_row
from .sweep import BLOB_COLUMNS

T = TypeVar("T")

WAIT_SECONDS: Final = 2.0
STATEMENT_SECONDS: Final = 10.0

_PAGE: Final = 200
_LOOK_SECONDS: Final = 1.0
_VECTOR_RIGHTS: Final = ("SELECT", "INSERT", "DELETE")
_READ: Final[Any] = (
    f"SELECT {COLUMNS} FROM agent_memory.entry AS entry WHERE scope = $1::text AND key = $2::text AND {live('$3')}"
)
_BLOB_TYPES: Final = ("text", "text", "text", "bigint", "bigint", "text", "bigint")
_STAGE: Final = (
    f"INSERT INTO agent_memory.blob ({BLOB_COLUMNS}) SELECT * FROM unnest("
    f"{', '.join(f'%({name})s::{of}[]' for name, of in zip(BlobRow._fields, _BLOB_TYPES, strict=True))}) "
    "ON CONFLICT (id) DO NOTHING"
)


def _load_nothing(_row: Row, _size: int) -> bytes:
    raise AssertionError("a write looks into no large value")


class PostgresCatalog:
    """A catalog in a PostgreSQL database that was prepared with ``agent-memory migrate``.

    Args:
        dsn: ``postgresql://user:password@host/database``, or what else libpq takes.
        connections: how many may be open at once.
        wait_seconds: how long a call waits for one of them.
        statement_seconds: how long a statement may take, and the searches of a call together; waiting for another's
            write at most half of it.
        clock: microseconds since 1970; only tests give one, else it is the database's.

    Raises:
        UnavailableError: the server cannot be reached (``unreachable``), or the database was never migrated
            (``schema_missing``), or by a newer release (``newer_schema``).
    """

    def __init__(
        self,
        dsn: str,
        *,
        connections: int = 16,
        wait_seconds: float = WAIT_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock
        self._pool = Pool(dsn, Settings(connections, wait_seconds, statement_seconds, statement_seconds / 2))
        self._search_seconds = statement_seconds
        self._look_again = 0.0
        try:
            self._vector_schema = self._pool.run(_check)
        except BaseException:
            self._pool.close()
            raise

    @property
    def clock(self) -> Clock:
        return self._clock or self._database_time

    @property
    def is_file(self) -> bool:
        return False

    @property
    def _vectors(self) -> str | None:
        """The schema of pgvector's type; None while there are no vectors, until they are looked for again."""
        if self._vector_schema is None and time.monotonic() >= self._look_again:
            # Set before it looks: of many threads one does.
            self._look_again = time.monotonic() + _LOOK_SECONDS
            self._vector_schema = self._pool.run(_vector_schema)
        return self._vector_schema

    def _database_time(self) -> int:
        return int(self._rows(f"SELECT {DATABASE_TIME}")[0][0])

    def _now(self) -> int | None:
        return None if self._clock is None else self._clock()

    def _rows(self, statement: str, values: dict[str, Any] | None = None) -> list[Any]:
        return self._pool.run(lambda session: session.rows(statement, values))

    # -- reads -------------------------------------------------------------------------------------------------------

    def read(self, scope: Scope, key: str) -> Row | None:
        values = (scope.path, key, self._now())
        return self._pool.run(lambda session: _read(session, values))

    def list(self, request: List) -> list[Row]:
        return self._pool.run(lambda session: list_keys(session, request, self._now()))

    def list_segments(self, scope: Scope, prefix: str, *, after: str | None, limit: int) -> list[str]:
        return self._pool.run(
            lambda session: list_segments(session, scope, prefix, after=after, limit=limit, now=self._now())
        )

    def blob(self, blob_id: str) -> BlobRow | None:
        rows = self._rows(f"SELECT {BLOB_COLUMNS} FROM agent_memory.blob WHERE id = %(id)s", {"id": blob_id})
        return BlobRow(*rows[0]) if rows else None

    def values(self) -> Iterator[StoredValue]:
        statement = (
            f"SELECT {COLUMNS}, scope FROM agent_memory.entry "
            "WHERE (scope, key) > (%(scope)s, %(key)s) AND NOT deleted ORDER BY scope, key LIMIT %(limit)s"
        )
        place = {"scope": "", "key": "", "limit": _PAGE}
        while rows := self._rows(statement, place):
            yield from map(stored_value, rows)
            place |= {"scope": rows[-1][-1], "key": rows[-1][0]}

    def blobs(self) -> Iterator[BlobRow]:
        statement = f"SELECT {BLOB_COLUMNS} FROM agent_memory.blob WHERE id > %(id)s ORDER BY id LIMIT %(limit)s"
        place = {"id": "", "limit": _PAGE}
        while rows := self._rows(statement, place):
            yield from (BlobRow(*row) for row in rows)
            place["id"] = rows[-1][0]

    def is_sound(self) -> bool:
        # PostgreSQL looks after its own structure: see its checksums of pages, and amcheck.
        return True

    def ping(self) -> None:
        # Where PostgreSQL would not write rows, on a standby or without the right to, it locks none, not even no rows.
        self._rows("SELECT 1 FROM agent_memory.entry WHERE false FOR UPDATE")

    # -- writes ------------------------------------------------------------------------------------------------------

    def write(self, write: Write) -> Entry | None:
        return self.apply([write], _load_nothing)[0]

    def apply(self, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        context = Context(self._now(), self._vectors, load, self._search_seconds)
        return self._pool.run(lambda session: apply(session, operations, context))

    def touch(self, scope: Scope, keys: Sequence[str]) -> None:
        # The keys are named twice: joined alone, a plan made for few rows may read all those of the scope.
        self._rows(
            f"""WITH wanted AS MATERIALIZED (
                SELECT key FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)b)
                    AND expires_us > {NOW} ORDER BY key FOR NO KEY UPDATE)
            UPDATE agent_memory.entry AS entry SET expires_us = {NOW} + ttl_us FROM wanted
                WHERE entry.scope = %(scope)s AND entry.key = wanted.key AND entry.key = ANY(%(keys)b)
                    AND entry.expires_us > {NOW}""",
            {"scope": scope.path, "keys": list(keys), "now": self._now()},
        )

    def stage(self, blobs: Sequence[BlobRow]) -> None:
        columns = zip(BlobRow._fields, _BLOB_TYPES, zip(*blobs, strict=True), strict=True)
        self._rows(_STAGE, {name: Array(of, column) for name, of, column in columns})

    def renew(self, blob_id: str) -> bool:
        rows = self._rows(
            f"UPDATE agent_memory.blob SET at_us = {NOW} WHERE id = %(id)s AND state = '{STAGED}' RETURNING id",
            {"id": blob_id, "now": self._now()},
        )
        return bool(rows)

    def count(self) -> int:
        return int(self._rows("SELECT count(*) FROM agent_memory.entry")[0][0])

    def stored(self, *, after: tuple[str, str], limit: int) -> list[StoredRow]:
        vectors = self._vectors
        return self._pool.run(lambda session: copy.stored(session, after, limit, vectors))

    def stored_at(self, places: Collection[tuple[str, str]]) -> list[StoredRow]:
        vectors = self._vectors
        return self._pool.run(lambda session: copy.stored_at(session, places, vectors))

    def take(self, rows: Sequence[StoredRow]) -> None:
        vectors = self._vectors
        self._pool.run(lambda session: copy.take(session, rows, self._now(), vectors))

    def scopes(self, *, after: str, limit: int) -> list[ScopeRow]:
        return self._pool.run(lambda session: copy.scopes(session, after, limit))

    def scopes_at(self, names: Collection[str]) -> list[ScopeRow]:
        return self._pool.run(lambda session: copy.scopes_at(session, names))

    def take_scopes(self, rows: Sequence[ScopeRow]) -> None:
        self._pool.run(lambda session: copy.take_scopes(session, rows))

    def set_times(self, scope: Scope, times: Sequence[Times]) -> None:
        for key, created_us, updated_us in times:
            self._rows(
                "UPDATE agent_memory.entry SET created_us = %(created)s, updated_us = %(updated)s "
                "WHERE scope = %(scope)s AND key = %(key)s AND NOT deleted",
                {"scope": scope.path, "key": key, "created": created_us, "updated": updated_us},
            )

    def mend_blob(self, blob: BlobRow) -> None:
        self._rows(
            f"INSERT INTO agent_memory.blob ({BLOB_COLUMNS}) VALUES (%(id)s, %(scope)s, %(key)s, %(size)s, "
            "%(chunk_size)s, %(state)s, %(at_us)s) ON CONFLICT (id) DO UPDATE SET scope = excluded.scope, "
            "key = excluded.key, size = excluded.size, chunk_size = excluded.chunk_size, state = excluded.state, "
            "at_us = excluded.at_us",
            blob._asdict(),
        )

    def secret(self, name: str) -> bytes:
        self._rows(
            "INSERT INTO agent_memory.secret VALUES (%(name)s, %(value)s) ON CONFLICT (name) DO NOTHING",
            {"name": name, "value": secrets.token_bytes(SECRET_BYTES)},
        )
        rows = self._rows("SELECT value FROM agent_memory.secret WHERE name = %(name)s", {"name": name})
        return check_secret(rows[0][0])

    # -- sweeping ----------------------------------------------------------------------------------------------------

    def claim_blobs(self, *, staged_before: int, garbage_before: int, limit: int) -> list[BlobRow]:
        return self._pool.run(
            lambda session: sweep.claim_blobs(
                session, staged_before=staged_before, garbage_before=garbage_before, limit=limit, now=self._now()
            )
        )

    def dead_blobs(self, *, before: int, limit: int) -> list[BlobRow]:
        rows = self._rows(
            f"SELECT {BLOB_COLUMNS} FROM agent_memory.blob WHERE state = '{DEAD}' AND at_us < %(before)s "
            "LIMIT %(limit)s",
            {"before": before, "limit": limit},
        )
        return [BlobRow(*row) for row in rows]

    def forget_blobs(self, ids: Sequence[str]) -> None:
        if ids:
            self._rows(
                f"DELETE FROM agent_memory.blob WHERE id = ANY(%(ids)s) AND state = '{DEAD}'", {"ids": sorted(ids)}
            )

    def expire(self, *, limit: int) -> int:
        return self._swept(lambda session, now, vectors: sweep.expire(session, limit=limit, now=now, vectors=vectors))

    def drop_tombstones(self, *, before: int, limit: int) -> int:
        return self._pool.run(lambda session: sweep.drop_tombstones(session, before=before, limit=limit))

    def drop_receipts(self, *, before: int, limit: int) -> int:
        return self._pool.run(lambda session: sweep.drop_receipts(session, before=before, limit=limit))

    def drop_requests(self, *, before: int, limit: int) -> int:
        return self._swept(
            lambda session, now, vectors: sweep.drop_requests(
                session, before=before, limit=limit, now=now, vectors=vectors
            )
        )

    def _swept(self, step: Callable[[Session, int | None, bool], int]) -> int:
        vectors = self._vectors is not None
        return self._pool.run(lambda session: step(session, self._now(), vectors))

    def close(self) -> None:
        self._pool.close()


def _check(session: Session) -> str | None:
    """Return what ``_vector_schema`` does; raise UnavailableError if this database cannot be used at all."""
    if check_schema(session.connection) and not session.rows(VECTOR_SCHEMA):
        raise UnavailableError(
            "the PostgreSQL extension pgvector was removed from this database", code="schema_missing"
        )
    return _vector_schema(session)


def _vector_schema(session: Session) -> str | None:
    """Return the schema of pgvector's type if this user can keep vectors here.

    One that a later migration made the table for, and that has no rights on it yet, could not write at all with it.
    """
    rights = (f"has_table_privilege(to_regclass('agent_memory.vector'), '{one}')" for one in _VECTOR_RIGHTS)
    rows = session.rows(f"{VECTOR_SCHEMA} AND {' AND '.join(rights)}")
    return str(rows[0][0]) if rows else None


def _read(session: Session, values: Sequence[Any]) -> Row | None:
    row = session.reader.execute(_READ, values, binary=True).fetchone()
    return None if row is None else to_row(row)
