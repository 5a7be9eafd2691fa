"""Carrying out operations in PostgreSQL: one statement where one will do, else a pipelined transaction.

The operations of a batch that concern different keys may be carried out in any order. So all writes of one kind become
one statement, which locks its rows in the order of their keys: batches that meet wait for each other, and those that
still deadlock are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple, TypeAlias, cast

import psycopg

from ..errors import ConflictError, InvalidRequestError, UnavailableError
from ..messages import JSON, CommitWrite, Delete, Entry, List, ListParents, PrepareRead, Search, Write
from .catalog import Current, LoadBlob, Operation, Receipt, Row, conditions_hold, fingerprint, replay
from .postgres_connections import Cursor, Session, Vector
from .postgres_rows import COLUMNS, LIVE, NOW, to_row
from .postgres_search import list_keys, list_parents, search
from .postgres_writes import Kind, finish, is_simple, kind_of, start

_ATTEMPTS: Final = 20

_READ_MANY: Final = (
    f"SELECT {COLUMNS} FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s) AND {LIVE}"
)
_RECEIPTS: Final = (
    "SELECT write_id, fingerprint, version, etag, created_us, updated_us, expires_us FROM agent_memory.receipt "
    "WHERE scope = %(scope)s AND write_id = ANY(%(ids)s)"
)
_CURRENT: Final = (
    f"SELECT {COLUMNS}, {LIVE}, ttl_us FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s)"
)
_LOCK: Final = (
    "SELECT 1 FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s) ORDER BY key FOR NO KEY UPDATE"
)
_CLAIM: Final = (
    f"UPDATE agent_memory.blob AS blob SET state = 'live', at_us = {NOW} "
    "FROM unnest(%(ids)s::text[], %(keys)s::text[]) AS wanted (id, key) WHERE blob.id = wanted.id "
    "AND blob.key = wanted.key AND blob.scope = %(scope)s AND blob.state = 'staged' RETURNING blob.key"
)
_STAGED: Final = "SELECT count(*) FROM agent_memory.blob WHERE id = ANY(%(ids)s) AND state = 'staged'"
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
    for write in writes:
        _check_vectors(write, context)
    known: dict[tuple[str, str], Receipt] = {}
    plain = False
    for _ in range(_ATTEMPTS):
        try:
            if len(operations) == 1 and is_simple(writes[0]):
                return [_write_one(session, writes[0], context, plain)]
            return _transaction(session, operations, context, known, plain)
        except (_Missed, psycopg.errors.DivisionByZero, psycopg.errors.UniqueViolation):
            # A condition failed, or the receipt of the same write came after the snapshot. Nothing was changed.
            pass
        except psycopg.DataError as error:
            # JSONB takes less than JSON: no number of a million digits, for one.
            if plain or error.sqlstate is None:
                raise
            plain = True
            continue
        known = _receipts(session, writes)
        if len(operations) == 1 and _id(writes[0]) in known:
            return [replay(writes[0], known[_id(writes[0])])]
        _explain(session, [write for write in writes if _id(write) not in known], context)
    raise UnavailableError("PostgreSQL: this key is written too often by others; try again")


def _write_one(session: Session, write: Write, context: Context, plain: bool) -> Entry | None:
    start(session.cursor, kind_of(write), [write], now=context.now, vectors=context.vectors is not None, plain=plain)
    done = finish([write], session.cursor.fetchall())
    if write.key not in done:
        raise _Missed
    return done[write.key]


def _id(write: Write) -> tuple[str, str]:
    return write.scope.path, write.write_id


def _check_vectors(write: Write, context: Context) -> None:
    if not isinstance(write, CommitWrite) or not write.vectors:
        return
    if write.content_type != JSON:
        raise InvalidRequestError("only a JSON value can have vectors")
    if context.vectors is None:
        raise no_vectors()


def no_vectors() -> InvalidRequestError:
    return InvalidRequestError(
        "semantic search needs the PostgreSQL extension pgvector: install it on the server, "
        "then run agent-memory migrate"
    )


# -- why a write was not carried out ---------------------------------------------------------------------------------


def _receipts(session: Session, writes: Iterable[Write]) -> dict[tuple[str, str], Receipt]:
    found: dict[tuple[str, str], Receipt] = {}
    for scope, ids in _by_scope((write.scope.path, write.write_id) for write in writes).items():
        for write_id, *receipt in session.rows(_RECEIPTS, {"scope": scope, "ids": ids}):
            found[scope, write_id] = Receipt(*receipt)
    return found


def receipt(session: Session, write: Write) -> Receipt | None:
    """Return what is known of an earlier attempt at a write."""
    return _receipts(session, [write]).get(_id(write))


def _explain(session: Session, writes: Sequence[Write], context: Context) -> None:
    """Raise ConflictError if a write is not possible as things stand; else the next attempt may succeed."""
    rows: dict[tuple[str, str], Any] = {}
    for scope, keys in _by_scope((write.scope.path, write.key) for write in writes).items():
        found = session.rows(_CURRENT, {"scope": scope, "keys": keys, "now": context.now})
        rows.update(((scope, row[0]), row) for row in found)
    for write in writes:
        row = rows.get((write.scope.path, write.key))
        current = None if row is None else Current(row[1], row[2], row[17], row[9], row[11], row[18])
        if not conditions_hold(write, current):
            found = to_row(row) if current is not None and current.live else None
            raise ConflictError("the key is not at the version that was expected", found=found)
    ids = [write.blob.id for write in writes if isinstance(write, CommitWrite) and write.blob is not None]
    if ids and session.rows(_STAGED, {"ids": ids})[0][0] < len(ids):
        raise ConflictError("the prepared write has expired; prepare it again", code="blob_gone")


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

    def execute(self, statement: str, values: dict[str, Any], take: _Take | None = None) -> None:
        cursor = self.session.connection.cursor(binary=True)
        cursor.execute(cast(Any, statement), values)
        if take is not None:
            self.pending.append((cursor, take))

    def settle(self) -> None:
        for cursor, take in self.pending:
            take(cursor.fetchall())
        self.pending.clear()

    # -- the operations of one step: no two of them write the same key

    def read(self, scope: str, indexes: Sequence[int]) -> None:
        reads = {index: cast(PrepareRead, self.operations[index]).key for index in indexes}

        def take(rows: list[Any]) -> None:
            found: dict[str, Row] = {row[0]: to_row(row) for row in rows}
            for index, key in reads.items():
                self.results[index] = found.get(key)

        values = {"scope": scope, "keys": list(set(reads.values())), "now": self.context.now}
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

        cursor = self.session.connection.cursor(binary=True)
        vectors = self.context.vectors is not None
        start(cursor, kind, list(writes.values()), now=now, vectors=vectors, plain=plain)
        self.pending.append((cursor, written))
        for write in writes.values():
            for number, vector in enumerate(write.vectors if isinstance(write, CommitWrite) else ()):
                self.execute(
                    _KEEP.format(schema=self.context.vectors),
                    {"scope": kind.scope, "key": write.key, "number": number, "vector": Vector(vector)},
                )

    def alone(self, index: int) -> None:
        """Carry out what looks at many keys: everything before it has to be done."""
        self.settle()
        operation = self.operations[index]
        if isinstance(operation, List):
            self.results[index] = list_keys(self.session, operation, self.context.now)
        elif isinstance(operation, ListParents):
            self.results[index] = list_parents(self.session, operation, self.context.now)
        elif isinstance(operation, Search):
            if operation.vector is not None and self.context.vectors is None:
                raise no_vectors()
            self.results[index] = search(
                self.session, operation, self.context.now, self.context.load, self.context.vectors
            )


def _read(session: Session, operations: Sequence[Operation], context: Context) -> list[Any]:
    """Carry out operations that write nothing, all from one snapshot."""
    batch = _Batch(session, operations, context)
    steps = _steps(operations, set())
    single = len(steps) == 1 and len(steps[0]) == 1
    with ExitStack() as stack:
        if not single:
            connection = session.connection
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            stack.callback(setattr, connection, "isolation_level", None)
            stack.callback(setattr, connection, "read_only", None)
            stack.enter_context(connection.transaction())
        _carry_out(batch, steps, plain=False)
    return batch.results


def _transaction(
    session: Session,
    operations: Sequence[Operation],
    context: Context,
    known: dict[tuple[str, str], Receipt],
    plain: bool,
) -> list[Any]:
    """Carry out operations in a transaction; raise _Missed, having changed nothing, if a write was not possible."""
    batch = _Batch(session, operations, context)
    first: dict[tuple[str, str], int] = {}
    repeated: dict[int, int] = {}
    done: set[int] = set()
    writes: list[Write] = []
    for index, operation in enumerate(operations):
        if not isinstance(operation, CommitWrite | Delete):
            continue
        writes.append(operation)
        if _id(operation) in known:
            batch.results[index] = replay(operation, known[_id(operation)])
            done.add(index)
        elif _id(operation) in first:
            repeated[index] = first[_id(operation)]
            _check_same(operation, cast(Write, operations[repeated[index]]))
            done.add(index)
        else:
            first[_id(operation)] = index
    steps = _steps(operations, done)
    if len(steps) == 1 and len(steps[0]) == 1 and all(map(is_simple, writes)):
        # One statement is a transaction.
        _carry_out(batch, steps, plain)
    else:
        with ExitStack() as stack:
            # What is done alone needs the answers to what comes before it.
            pipeline = None
            if not any(isinstance(operation, List | ListParents | Search) for operation in operations):
                pipeline = stack.enter_context(session.connection.pipeline())
            stack.enter_context(session.connection.transaction())
            _lock(batch, steps)
            _carry_out(batch, steps, plain)
            if pipeline is not None:
                pipeline.sync()
            batch.settle()
    for index, original in repeated.items():
        batch.results[index] = batch.results[original]
    return batch.results


def _check_same(write: Write, first: Write) -> None:
    if fingerprint(write) != fingerprint(first):
        raise ConflictError("this write id was used for a different write", code="write_id_reused")


_Step: TypeAlias = "dict[Kind | str | int, list[int]]"
"""Indexes of operations, by the kind of the writes, the scope of the reads, or the index of what is done alone."""


def _steps(operations: Sequence[Operation], done: set[int]) -> list[_Step]:
    """Sort operations into steps, so that those of the same key, and what looks at many keys, stay in their order."""
    steps: list[_Step] = []
    base = 0
    last: dict[tuple[str, str], tuple[int, bool]] = {}

    def add(level: int, group: Kind | str | int, index: int) -> None:
        while len(steps) <= level:
            steps.append({})
        steps[level].setdefault(group, []).append(index)

    for index, operation in enumerate(operations):
        if index in done:
            continue
        if isinstance(operation, PrepareRead | CommitWrite | Delete):
            place = operation.scope.path, operation.key
            writes = not isinstance(operation, PrepareRead)
            level, written = last.get(place, (base, False))
            level = max(level, base)
            if place in last and (writes or written) and last[place][0] >= base:
                level += 1
            last[place] = level, writes
            add(level, kind_of(operation) if not isinstance(operation, PrepareRead) else operation.scope.path, index)
        else:
            add(len(steps), index, index)
            base = len(steps)
    return steps


def _lock(batch: _Batch, steps: Sequence[_Step]) -> None:
    """Lock the rows in the order of their keys if more than one statement will write them."""
    groups = [(kind, indexes) for step in steps for kind, indexes in step.items() if isinstance(kind, Kind)]
    if len(groups) < 2:
        return
    keys = _by_scope((kind.scope, cast(Write, batch.operations[one]).key) for kind, many in groups for one in many)
    for scope in sorted(keys):
        batch.execute(_LOCK, {"scope": scope, "keys": sorted(set(keys[scope]), key=str.encode)})


def _carry_out(batch: _Batch, steps: Sequence[_Step], plain: bool) -> None:
    for step in steps:
        for group, indexes in step.items():
            if isinstance(group, Kind):
                batch.write(group, indexes, plain)
            elif isinstance(group, str):
                batch.read(group, indexes)
            else:
                batch.alone(group)
    if not batch.session.connection.pgconn.pipeline_status:
        batch.settle()


def _by_scope(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for scope, name in pairs:
        found.setdefault(scope, []).append(name)
    return found
