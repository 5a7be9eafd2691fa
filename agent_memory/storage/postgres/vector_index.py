"""Approximate indexes of pgvector, for scopes with many vectors: one for each length, made while others read and write.

Without one every vector of the keys searched is compared, which is exact and right for an entity's own memory. With one
PostgreSQL chooses, by what it estimates either to cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, TypeAlias

from ...errors import InvalidRequestError, UnavailableError
from .connections import UNLIMITED, Connection, connect, execute
from .errors import psycopg, translate
from .migrations import PARTS, VECTOR_SCHEMA, check_schema
from .search import indexed

MAX_INDEXED_DIMENSIONS: Final = 2_000
"""What an HNSW index of pgvector can hold (https://github.com/pgvector/pgvector, HNSW)."""

Progress: TypeAlias = Callable[[int, int], object]
"""Is told how many parts of the table are done, and of how many."""

_ATTEMPTS: Final = 60
_LOCK_SECONDS: Final = 1
_TABLE: Final = "agent_memory.vector"


def create_index(dsn: str, dimensions: int, *, progress: Progress | None = None) -> bool:
    """Make the index of vectors with so many numbers; return False if it was there.

    One that was interrupted is gone on with. Raises InvalidRequestError for a length that cannot be indexed, and for
    a database that cannot hold vectors.
    """
    if not 1 <= dimensions <= MAX_INDEXED_DIMENSIONS:
        raise InvalidRequestError(f"an index takes vectors of 1 to {MAX_INDEXED_DIMENSIONS} numbers, not {dimensions}")
    return _run(dsn, lambda connection: _create(connection, dimensions, progress))


def drop_index(dsn: str, dimensions: int) -> bool:
    """Drop the index of vectors with so many numbers; return False if there is none."""
    return _run(dsn, lambda connection: _drop(connection, dimensions))


def _run(dsn: str, work: Callable[[Connection], bool]) -> bool:
    connection = connect(dsn)
    try:
        connection.execute(UNLIMITED)
        if not check_schema(connection):
            raise InvalidRequestError(
                "the database holds no vectors yet: it needs the extension pgvector and agent-memory migrate"
            )
        with _alone(connection):
            return work(connection)
    except psycopg.Error as error:
        raise translate(error, lost=connection.closed).error from None
    finally:
        connection.close()


@contextmanager
def _alone(connection: Connection) -> Generator[None]:
    """Hold a lock: what the first is making would look to a second one like what an interrupted one left.

    It ends with the connection at the latest, but that is when the server has noticed: too late for who comes next.
    """
    [[taken]] = connection.execute("SELECT pg_try_advisory_lock('agent_memory.vector'::regclass::bigint)").fetchall()
    if not taken:
        raise UnavailableError("another agent-memory index-vectors is at work on this database")
    yield
    connection.execute("SELECT pg_advisory_unlock('agent_memory.vector'::regclass::bigint)")


def _create(connection: Connection, dimensions: int, progress: Progress | None) -> bool:
    name = _name(dimensions)
    if _is_valid(connection, name):
        return False
    [[schema]] = connection.execute(VECTOR_SCHEMA).fetchall()
    definition = (
        f"USING hnsw ({indexed('embedding', dimensions, schema)} {schema}.vector_cosine_ops) "
        f"WHERE {schema}.vector_dims(embedding) = {dimensions}"
    )
    _execute_in_a_gap(connection, f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {_TABLE} {definition}")
    for part in range(PARTS):
        of_part = f"{name}_{part:02}"
        if not _is_valid(connection, of_part):
            # What an interrupted CREATE INDEX CONCURRENTLY leaves is of no use.
            _execute_in_a_gap(connection, f"DROP INDEX IF EXISTS agent_memory.{of_part}")
            execute(connection, f"CREATE INDEX CONCURRENTLY {of_part} ON {_TABLE}_{part:02} {definition}")
        _execute_in_a_gap(connection, f"ALTER INDEX agent_memory.{name} ATTACH PARTITION agent_memory.{of_part}")
        if progress is not None:
            progress(part + 1, PARTS)
    return True


def _drop(connection: Connection, dimensions: int) -> bool:
    there = connection.execute("SELECT to_regclass(%s)", [f"agent_memory.{_name(dimensions)}"]).fetchone()
    _execute_in_a_gap(connection, f"DROP INDEX IF EXISTS agent_memory.{_name(dimensions)}")
    for part in range(PARTS):
        # Those that were made and not attached yet.
        _execute_in_a_gap(connection, f"DROP INDEX IF EXISTS agent_memory.{_name(dimensions)}_{part:02}")
    return there is not None and there[0] is not None


def _execute_in_a_gap(connection: Connection, statement: str) -> None:
    """Execute a statement that locks the table for a moment, when no transaction holds it.

    Whoever came after a statement that waits for its lock would wait behind it: so it waits a second at most, and
    comes again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with connection.transaction():
                execute(connection, f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
                execute(connection, statement)
            return
        except psycopg.errors.LockNotAvailable:
            if attempt == _ATTEMPTS:
                raise UnavailableError("PostgreSQL: long transactions hold the vectors; try again later") from None
            time.sleep(_LOCK_SECONDS)


def _is_valid(connection: Connection, name: str) -> bool:
    row = connection.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [f"agent_memory.{name}"]
    ).fetchone()
    return row is not None and bool(row[0])


def _name(dimensions: int) -> str:
    return f"vector_similar_{dimensions}"
