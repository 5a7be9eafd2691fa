"""Carrying out operations in PostgreSQL: one statement where one will do, else a pipelined transaction.

The operations of a batch that concern different keys may be carried out in any order. So all writes of one kind become
one statement, which locks its rows in the order of their keys: batches that meet wait for each other, and those that
still deadlock are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ...errors import InvalidRequestError, TimedOutError, UnavailableError
from ...messages import CommitWrite, Delete, Entry, List, ListParents, Operation, PrepareRead, Scope, Search, Write
from ..catalog import COLUMNS, LoadBlob, Row, add_up
from ..rules import Current, Receipt, blob_gone, condition_failed, conditions_hold, replay
from .binding import Array, Vector
from .connections import Connection, Cursor, Session, psycopg
from .listing import list_keys, list_parents
from .rows import LIVE, NOW, to_row
from .search import search
from .writes import Kind, finish, is_simple, kind_of, start

_ATTEMPTS: Final = 20
_PIPELINE_BYTES: Final = 32 * 1024

_READ_MANY: Final = (
    f"SELECT {COLUMNS} FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s::text[]) AND {LIVE}"
)
_RECEIPT: Final = (
    "SELECT fingerprint, version, etag, created_us, updated_us, expires_us FROM agent_memory.receipt "
    "WHERE scope = %(scope)s AND write_id = %(id)s"
)
_CURRENT: Final = f"SELECT {COLUMNS}, {LIVE}, ttl_us FROM agent_memory.entry WHERE scope = %(scope)s AND key = %(key)s"
_LOCK: Final = (
    "SELECT 1 FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s::text[]) "
    "ORDER BY key FOR NO KEY UPDATE"
)
_CLAIM: Final = (
    f"UPDATE agent_memory.blob AS blob SET state = 'live', at_us = {NOW} "
    "FROM unnest(%(ids)s::text[], %(keys)s::text[]) AS wanted (id, key) WHERE blob.id = wanted.id "
    "AND blob.key = wanted.key AND blob.scope = %(scope)s AND blob.state = 'staged' RETURNING blob.key"
)
_STAGED: Final = (
    "SELECT 1 FROM agent_memory.blob WHERE id = %(id)s AND scope = %(scope)s AND key = %(key)s AND state = 'staged'"
)
_KEEP: Final = (
    "INSERT INTO agent_memory.vector (scope, key, version, number, embedding) "
    "SELECT scope, key, version, %(number)s, %(vector)s::{schema}.vector FROM agent_memory.entry "
    "WHERE scope = %(scope)s AND key = %(key)s"
)


class Context(NamedTuple):
    """What operations need besides a session: the time of a test, and the schema of pgvector if there are vectors."""

    now: int | None
    vectors: str | None
    load: LoadBlob


class _Missed(Exception):
    """A write was not carried out; the transaction is rolled back."""


def apply(session: Session, operations: Sequence[Operation], context: Context) -> list[Any]:
    """Carry out operations; see ``Catalog.apply``."""
    writes = [operation for operation in operations if isinstance(operation, CommitWrite | Delete)]
    if not writes:
        return _read(session, operations, context)
    if context.vectors is None and any(isinstance(write, CommitWrite) and write.vectors for write in writes):
        raise no_vectors()
    carry_out = _one if len(operations) == 1 and is_simple(writes[0]) else _together
    plain = False
    for _ in range(_ATTEMPTS):
        try:
            return carry_out(session, operations, context, plain)
        except (_Missed, psycopg.errors.DivisionByZero, psycopg.errors.UniqueViolation):
            # A condition failed, or the receipt of the same write came after the snapshot. Nothing was changed.
            if len(operations) > 1:
                carry_out = _in_order
                continue
            with suppress(_Missed):
                return [_answer(session, writes[0], context)]
        except psycopg.DataError as error:
            # JSONB takes less than JSON: no number of a million digits, for one.
            if plain or error.sqlstate is None:
                raise
            plain = True
    raise UnavailableError("PostgreSQL: this key is written too often by others; try again")


def no_vectors() -> InvalidRequestError:
    return InvalidRequestError(
        "semantic search needs the PostgreSQL extension pgvector: install it on the server, run agent-memory migrate, "
        "and give this user the rights on the new table"
    )


# -- why a write was not carried out ---------------------------------------------------------------------------------


def _answer(session: Session, write: Write, context: Context) -> Entry | None:
    """Return what a write that was not carried out is answered with, or raise ConflictError.

    Raises _Missed if nothing stands in its way by now.
    """
    if known := session.rows(_RECEIPT, {"scope": write.scope.path, "id": write.write_id}):
        return replay(write, Receipt(*known[0]))
    place = {"scope": write.scope.path, "key": write.key}
    row = current = None
    if rows := session.rows(_CURRENT, {**place, "now": context.now}):
        *columns, live, ttl_us = rows[0]
        row = to_row(columns)
        current = Current(row.entry.version, row.entry.etag, live, row.entry.created_us, row.entry.expires_us, ttl_us)
    if not conditions_hold(write, current and current.live_etag):
        raise condition_failed(write, row if current is not None and current.live else None)
    blob = write.blob if isinstance(write, CommitWrite) else None
    if blob is not None and not session.rows(_STAGED, {**place, "id": blob.id}):
        raise blob_gone()
    raise _Missed


# -- transactions ----------------------------------------------------------------------------------------------------

_Take: TypeAlias = Callable[[list[Any]], None]


class _Batch:
    """The operations of one transaction while they are carried out."""

    def __init__(self, session: Session, operations: Sequence[Operation], context: Context) -> None:
        self.session = session
        self.operations = operations
        self.context = context
        self.results: list[Any] = [None] * len(operations)
        self.pending: list[tuple[Cursor, _Take]] = []
        self.carried = 0

    def execute(self, statement: str, values: dict[str, Any], take: _Take | None = None) -> None:
        cursor = self.session.connection.cursor(binary=True)
        cursor.execute(cast(Any, statement), values)
        if take is not None:
            self.expect(cursor, take)

    def expect(self, cursor: Cursor, take: _Take) -> None:
        """Take the rows of a statement: in a pipeline when it is settled, else before anything is built on them."""
        self.pending.append((cursor, take))
        if not self.session.connection.pgconn.pipeline_status:
            self.settle()

    def settle(self) -> None:
        pending, self.pending = self.pending, []
        for cursor, take in pending:
            take(cursor.fetchall())

    # -- the operations of one step: no two of them write the same key

    def read(self, scope: str, indexes: Sequence[int]) -> None:
        reads = {index: cast(PrepareRead, self.operations[index]).key for index in indexes}

        def take(rows: list[Any]) -> None:
            found: dict[str, Row] = {row[0]: to_row(row) for row in rows}
            for index, key in reads.items():
                self.results[index] = found.get(key)

        values = {"scope": scope, "keys": Array("text", list(set(reads.values()))), "now": self.context.now}
        self.execute(_READ_MANY, values, take)

    def write(self, kind: Kind, indexes: Sequence[int], plain: bool) -> None:
        writes = {index: cast(Write, self.operations[index]) for index in indexes}
        blobs = [one for one in writes.values() if isinstance(one, CommitWrite) and one.blob is not None]
        now = self.context.now
        if blobs:
            ids = [one.blob.id for one in blobs if one.blob is not None]

            def claimed(rows: list[Any]) -> None:
                if len(rows) < len(blobs):
                    raise _Missed

            keys = [one.key for one in blobs]
            self.execute(_CLAIM, {"ids": ids, "keys": keys, "scope": kind.scope, "now": now}, claimed)

        def written(rows: list[Any]) -> None:
            done = finish(list(writes.values()), rows)
            if len(done) < len(writes):
                raise _Missed
            for index, write in writes.items():
                self.results[index] = done[write.key]

        cursor = psycopg.RawCursor(self.session.connection)
        vectors = self.context.vectors is not None
        start(cursor, kind, list(writes.values()), now=now, vectors=vectors, plain=plain)
        self.expect(cursor, written)
        for write in writes.values():
            for number, vector in enumerate(write.vectors if isinstance(write, CommitWrite) else ()):
                self.execute(
                    _KEEP.format(schema=self.context.vectors),
                    {"scope": kind.scope, "key": write.key, "number": number, "vector": Vector(vector)},
                )

    def alone(self, index: int) -> None:
        """Carry out what looks at many keys; never in a pipeline, so that everything before it is done."""
        try:
            self._look(index)
        except psycopg.errors.QueryCanceled:
            # Sent again it would take as long.
            raise TimedOutError(
                "PostgreSQL: the search took too long: narrow its prefix", code="search_timeout"
            ) from None

    def _look(self, index: int) -> None:
        operation = self.operations[index]
        if isinstance(operation, List):
            self.results[index] = rows = list_keys(self.session, operation, self.context.now)
            self.carried = add_up(self.carried, rows)
        elif isinstance(operation, ListParents):
            self.results[index] = names = list_parents(self.session, operation, self.context.now)
            self.carried = add_up(self.carried, names)
        elif isinstance(operation, Search):
            if operation.vector is not None and self.context.vectors is None:
                raise no_vectors()
            hits = search(self.session, operation, self.context.now, self.context.load, self.context.vectors)
            self.results[index] = hits
            self.carried = add_up(self.carried, (hit.row for hit in hits))


def _read(session: Session, operations: Sequence[Operation], context: Context) -> list[Any]:
    """Carry out operations that write nothing, all from one snapshot."""
    batch = _Batch(session, operations, context)
    # In whatever order: nothing that one of them reads is changed by another.
    step: _Step = {}
    for index, operation in enumerate(operations):
        step.setdefault(operation.scope.path if isinstance(operation, PrepareRead) else index, []).append(index)
    with _snapshot(session.connection) if len(step) > 1 else nullcontext():
        _carry_out(batch, [step], plain=False)
    return batch.results


@contextmanager
def _snapshot(connection: Connection) -> Generator[None]:
    try:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            yield
    finally:
        # A connection without an answer is closed by now, and takes no settings: that error would hide the first one.
        if not connection.closed:
            connection.isolation_level = connection.read_only = None


def _one(session: Session, operations: Sequence[Operation], context: Context, plain: bool) -> list[Any]:
    """Carry out a single, simple write."""
    write = cast(Write, operations[0])
    start(session.reader, kind_of(write), [write], now=context.now, vectors=context.vectors is not None, plain=plain)
    done = finish([write], session.reader.fetchall())
    if not done:
        raise _Missed
    return [done[write.key]]


def _together(session: Session, operations: Sequence[Operation], context: Context, plain: bool) -> list[Any]:
    """Carry out operations in as few statements as they need; raise _Missed if a write is not possible, who knows why.

    Either way all of them or none.
    """
    batch = _Batch(session, operations, context)
    steps = _steps(operations)
    if len(steps) == 1 and len(steps[0]) == 1 and all(is_simple(cast(Write, one)) for one in operations):
        # One statement is a transaction.
        _carry_out(batch, steps, plain)
        return batch.results
    with ExitStack() as stack:
        pipeline = None
        if _fits_pipeline(operations):
            pipeline = stack.enter_context(session.connection.pipeline())
        stack.enter_context(session.connection.transaction())
        _lock(batch, steps)
        _carry_out(batch, steps, plain)
        if pipeline is not None:
            pipeline.sync()
            batch.settle()
    return batch.results


def _fits_pipeline(operations: Sequence[Operation]) -> bool:
    """Say whether statements may be sent before their predecessors are answered.

    What looks at many keys waits for the answers to what comes before it. And psycopg hangs when a pipeline holds more
    than the socket takes at once (psycopg 3.3, https://github.com/psycopg/psycopg/issues/685).
    """
    if any(isinstance(operation, List | ListParents | Search) for operation in operations):
        return False
    writes = [operation for operation in operations if isinstance(operation, CommitWrite)]
    vectors = sum(len(vector) for write in writes for vector in write.vectors)
    return len(operations) * 512 + vectors + sum(len(write.data or b"") for write in writes) < _PIPELINE_BYTES


def _in_order(session: Session, operations: Sequence[Operation], context: Context, plain: bool) -> list[Any]:
    """Carry out operations one after the other, so that it can be said which write is not possible, and why."""
    batch = _Batch(session, operations, context)
    with session.connection.transaction():
        for index, operation in enumerate(operations):
            try:
                _carry_out(batch, _steps([operation], index), plain)
            except _Missed:
                batch.results[index] = _answer(session, cast(Write, operation), context)
    return batch.results


_Step: TypeAlias = "dict[Kind | str | int, list[int]]"
"""Indexes of operations, by the kind of the writes, the scope of the reads, or the index of what is done alone."""


def _steps(operations: Sequence[Operation], first: int = 0) -> list[_Step]:
    """Sort operations into steps, so that those of the same key, and what looks at many keys, stay in their order.

    ``first`` is the index of the first one.
    """
    steps: list[_Step] = []
    base = 0
    last: dict[tuple[Scope, str], tuple[int, bool]] = {}
    for index, operation in enumerate(operations, first):
        if isinstance(operation, PrepareRead | CommitWrite | Delete):
            place = operation.scope, operation.key
            group = operation.scope.path if isinstance(operation, PrepareRead) else kind_of(operation)
            writes = not isinstance(operation, PrepareRead)
            level, written = last.get(place, (-1, False))
            level = base if level < base else level + (writes or written)
            last[place] = level, writes
        else:
            level, group = len(steps), index
            base = level + 1
        while len(steps) <= level:
            steps.append({})
        steps[level].setdefault(group, []).append(index)
    return steps


def _lock(batch: _Batch, steps: Sequence[_Step]) -> None:
    """Lock the rows in the order of their keys if more than one statement will write them."""
    groups = [(kind, indexes) for step in steps for kind, indexes in step.items() if isinstance(kind, Kind)]
    if len(groups) < 2:
        return
    keys = _by_scope((kind.scope, cast(Write, batch.operations[one]).key) for kind, many in groups for one in many)
    for scope in sorted(keys):
        batch.execute(_LOCK, {"scope": scope, "keys": Array("text", list(set(keys[scope])))})


def _carry_out(batch: _Batch, steps: Sequence[_Step], plain: bool) -> None:
    for step in steps:
        for group, indexes in step.items():
            if isinstance(group, Kind):
                batch.write(group, indexes, plain)
            elif isinstance(group, str):
                batch.read(group, indexes)
            else:
                batch.alone(group)


def _by_scope(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for scope, name in pairs:
        found.setdefault(scope, []).append(name)
    return found
