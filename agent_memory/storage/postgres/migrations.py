"""The steps that make a PostgreSQL catalog, oldest first. A step that was released is never changed, only followed.

Everything stands in the schema ``agent_memory``. Keys compare byte by byte (``COLLATE "C"``). The tables of values and
receipts are split by scope, so that each call touches one part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ...errors import UnavailableError
from .connections import UNLIMITED, Connection, connect, execute
from .errors import DUPLICATES, psycopg, translate

PARTS: Final = 16
_ATTEMPTS: Final = 20


class Step(NamedTuple):
    """One step. An optional one is made as soon as ``possible`` says so, and ``needs`` is why it may not be.

    A catalog works without it.
    """

    name: str
    migrate: Callable[[Connection], None]
    possible: Callable[[Connection], bool] | None = None
    needs: str = ""


def create_tables(connection: Connection) -> None:
    """What a search looks at stands first and the value last: what is behind a column is not touched to read it."""
    connection.execute(
        """CREATE TABLE agent_memory.entry (
            scope text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, version bigint NOT NULL,
            size bigint NOT NULL, created_us bigint NOT NULL, updated_us bigint NOT NULL,
            expires_us bigint, ttl_us bigint, chunk_size bigint, schema_version bigint,
            deleted boolean NOT NULL, searchable boolean NOT NULL, projection jsonb,
            etag text NOT NULL, sha256 text NOT NULL, content_type text NOT NULL, signature text, schema_name text,
            provenance text, blob_id text, replaced_blob_id text, value bytea,
            PRIMARY KEY (scope, key)
        ) PARTITION BY HASH (scope)"""
    )
    connection.execute(
        """CREATE TABLE agent_memory.receipt (
            scope text COLLATE "C" NOT NULL, write_id text COLLATE "C" NOT NULL, at_us bigint NOT NULL, version bigint,
            created_us bigint NOT NULL, updated_us bigint NOT NULL, expires_us bigint, fingerprint text NOT NULL,
            etag text NOT NULL, PRIMARY KEY (scope, write_id)
        ) PARTITION BY HASH (scope)"""
    )
    _split(connection, "entry")
    _split(connection, "receipt")
    for statement in (
        "CREATE INDEX entry_newest ON agent_memory.entry (scope, updated_us DESC, key) WHERE searchable",
        "CREATE INDEX entry_tombstone ON agent_memory.entry (updated_us) WHERE deleted",
        "CREATE INDEX entry_expiry ON agent_memory.entry (expires_us) WHERE expires_us IS NOT NULL",
        "CREATE INDEX receipt_age ON agent_memory.receipt (at_us)",
        """CREATE TABLE agent_memory.blob (
            id text COLLATE "C" PRIMARY KEY, scope text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL,
            size bigint NOT NULL, chunk_size bigint, state text NOT NULL, at_us bigint NOT NULL
        )""",
        "CREATE INDEX blob_age ON agent_memory.blob (state, at_us) WHERE state <> 'live'",
        """CREATE TABLE agent_memory.scope (
            scope text COLLATE "C" PRIMARY KEY, version_floor bigint NOT NULL DEFAULT 0, last_write_us bigint
        )""",
        "CREATE INDEX scope_last_write ON agent_memory.scope (last_write_us) WHERE last_write_us IS NOT NULL",
        "CREATE TABLE agent_memory.secret (name text PRIMARY KEY, value bytea NOT NULL)",
    ):
        connection.execute(statement)


def create_vectors(connection: Connection) -> None:
    """Vectors name the version they stand for: those of an overwritten value are found no more."""
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    row = connection.execute(VECTOR_SCHEMA).fetchone()
    assert row is not None
    execute(
        connection,
        f"""CREATE TABLE agent_memory.vector (
            scope text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, version bigint NOT NULL,
            number integer NOT NULL, embedding {row[0]}.vector NOT NULL,
            PRIMARY KEY (scope, key, version, number)
        ) PARTITION BY HASH (scope)""",
    )
    # In the row itself while it fits a page: fetching 10,000 of them from elsewhere would be most of a search's time.
    connection.execute("ALTER TABLE agent_memory.vector ALTER COLUMN embedding SET STORAGE MAIN")
    _split(connection, "vector")


def _has_pgvector(connection: Connection) -> bool:
    if connection.execute(VECTOR_SCHEMA).fetchone() is not None:
        return True
    if connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone() is None:
        return False
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _split(connection: Connection, table: str) -> None:
    for part in range(PARTS):
        execute(
            connection,
            f"CREATE TABLE agent_memory.{table}_{part:02} PARTITION OF agent_memory.{table} "
            f"FOR VALUES WITH (MODULUS {PARTS}, REMAINDER {part})",
        )


VECTOR_SCHEMA: Final = (
    "SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace "
    "WHERE extname = 'vector'"
)

STEPS: Final = (
    Step("0001_create_tables", create_tables),
    Step(
        "0002_create_vectors",
        create_vectors,
        _has_pgvector,
        "semantic search needs the extension pgvector: install it on the server, let a superuser CREATE EXTENSION "
        "vector in this database, and migrate again",
    ),
)


def migrate(dsn: str, *, dry_run: bool = False, left_out: Callable[[Step], None] | None = None) -> list[str]:
    """Bring a database up to date, each step in a transaction of its own; return the names of the steps it took.

    Several may run at once. A step takes as long as it takes; one that is cut short, however, leaves nothing, and the
    next run begins with it. Semantic search needs the extension pgvector: its step waits until the server has it, and
    ``left_out`` is told. With ``dry_run`` nothing is changed, and the names are those of the steps that would be taken.

    Raises UnavailableError if the server cannot be reached or a newer agent-memory made the database, and
    PermissionDeniedError if the user may not make tables.
    """
    connection = connect(dsn)
    try:
        connection.execute(UNLIMITED)
        # Several at once wait for each other's step; a lock that somebody else holds for longer is worth an error.
        connection.execute("SET lock_timeout = '60s'")
        return _migrate(connection, dry_run, left_out)
    except psycopg.Error as error:
        raise translate(error, lost=connection.closed).error from None
    finally:
        connection.close()


def _migrate(connection: Connection, dry_run: bool, left_out: Callable[[Step], None] | None) -> list[str]:
    encoding = connection.execute("SELECT current_setting('server_encoding')").fetchone()
    if encoding is None or encoding[0] != "UTF8":
        raise UnavailableError("the PostgreSQL database must have the encoding UTF8", code="wrong_encoding")
    if dry_run:
        applied = applied_steps(connection) or set()
        check_not_newer(applied)
        return [step.name for step in STEPS if step.name not in applied and _may(step, connection, dry_run, left_out)]
    _create_schema(connection)
    taken: list[str] = []
    for step in STEPS:
        with connection.transaction():
            # The lock is held until the step is recorded: of several that run at once, one takes it.
            connection.execute("LOCK TABLE agent_memory.migration IN SHARE ROW EXCLUSIVE MODE")
            applied = applied_steps(connection) or set()
            check_not_newer(applied)
            if step.name in applied or not _may(step, connection, dry_run, left_out):
                continue
            step.migrate(connection)
            connection.execute("INSERT INTO agent_memory.migration (name) VALUES (%s)", (step.name,))
        taken.append(step.name)
    return taken


def _may(step: Step, connection: Connection, dry_run: bool, left_out: Callable[[Step], None] | None) -> bool:
    if step.possible is None:
        return True
    with connection.transaction(force_rollback=dry_run):
        possible = step.possible(connection)
    if not possible and left_out is not None:
        left_out(step)
    return possible


def _create_schema(connection: Connection) -> None:
    # IF NOT EXISTS looks first and makes then: two sessions at once may both find nothing, and one of them fails.
    for attempt in range(_ATTEMPTS):
        try:
            if applied_steps(connection) is not None:
                return
            with connection.transaction():
                connection.execute("CREATE SCHEMA IF NOT EXISTS agent_memory")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS agent_memory.migration "
                    "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
                )
        except psycopg.Error as error:
            if error.sqlstate not in DUPLICATES or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05)
        else:
            return


def applied_steps(connection: Connection) -> set[str] | None:
    """Return the names of the steps that were taken; None if this database was never migrated."""
    row = connection.execute("SELECT to_regclass('agent_memory.migration') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    return {name for (name,) in connection.execute("SELECT name FROM agent_memory.migration").fetchall()}


def check_not_newer(applied: set[str]) -> None:
    newer = sorted(applied.difference(step.name for step in STEPS))
    if newer:
        raise UnavailableError(
            f"the PostgreSQL database was made by a newer agent-memory (it has {newer[-1]}): upgrade this one",
            code="newer_schema",
        )


def check_schema(connection: Connection) -> bool:
    """Raise UnavailableError unless this database can be used as it is; return whether it can hold vectors."""
    applied = applied_steps(connection)
    check_not_newer(applied or set())
    missing = [step.name for step in STEPS if step.possible is None and step.name not in (applied or ())]
    if missing:
        state = "has no tables of agent-memory yet" if applied is None else f"needs the step {missing[0]}"
        raise UnavailableError(
            f"the PostgreSQL database {state}: run agent-memory migrate --database …", code="schema_missing"
        )
    return "0002_create_vectors" in (applied or ())
