"""The operations of one transaction: sorted into steps, and each step sent in as few statements as it needs.

The operations of a batch that concern different keys may be carried out in any order. So all writes of one kind become
one statement, which locks its rows in the order of their keys: batches that meet wait for each other, and those that
still deadlock are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ...messages import CommitWrite, Delete, List, ListParents, Operation, PrepareRead, Scope, Search, Write
from ..catalog import COLUMNS, LIVE, STAGED, LoadBlob, Row
from ..finding import add_up
from .binding import Array, Vector
from .connections import Cursor, Session, psycopg
from .errors import no_vectors
from .listing import list_keys, list_parents
from .rows import IS_LIVE, NOW, TimeLimit, search_timeout, to_row
from .search import search
from .writes import Kind, finish, kind_of, start

_READ_MANY: Final = (
    f"SELECT {COLUMNS} FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s::text[]) AND {IS_LIVE}"
)
_LOCK: Final = (
    "SELECT 1 FROM agent_memory.entry WHERE scope = %(scope)s AND key = ANY(%(keys)s::text[]) "
    "ORDER BY key FOR NO KEY UPDATE"
)
_CLAIM: Final = (
    f"UPDATE agent_memory.blob AS blob SET state = '{LIVE}', at_us = {NOW} "
    "FROM unnest(%(ids)s::text[], %(keys)s::text[]) AS wanted (id, key) WHERE blob.id = wanted.id "
    f"AND blob.key = wanted.key AND blob.scope = %(scope)s AND blob.state = '{STAGED}' RETURNING blob.key"
)
_KEEP: Final = (
    "INSERT INTO agent_memory.vector (scope, key, version, number, embedding) "
    "SELECT scope, key, version, %(number)s, %(vector)s::{schema}.vector FROM agent_memory.entry "
    "WHERE scope = %(scope)s AND key = %(key)s"
)


class Context(NamedTuple):
    """What operations need besides a session: the time of a test, the schema of pgvector if there are vectors, and how
    many seconds searches may take."""

    now: int | None
    vectors: str | None
    load: LoadBlob
    search_seconds: float


class Missed(Exception):
    """A write was not carried out; the transaction is rolled back."""


Step: TypeAlias = "dict[Kind | str | int, list[int]]"
"""Indexes of operations, by the kind of the writes, the scope of the reads, or the index of what is done alone."""


def in_steps(operations: Sequence[Operation], first: int = 0) -> list[Step]:
    """Sort operations into steps, so that those of the same key, and what looks at many keys, stay in their order.

    ``first`` is the index of the first one.
    """
    steps: list[Step] = []
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


_Take: TypeAlias = Callable[[list[Any]], None]


class Batch:
    """The operations of one transaction while they are carried out."""

    def __init__(self, session: Session, operations: Sequence[Operation], context: Context) -> None:
        self.session = session
        self.operations = operations
        self.context = context
        self.results: list[Any] = [None] * len(operations)
        self.pending: list[tuple[Cursor, _Take]] = []
        self.carried = 0
        self.limit: TimeLimit | None = None

    def lock(self, steps: Sequence[Step]) -> None:
        """Lock the rows in the order of their keys if more than one statement will write them."""
        groups = [(kind, indexes) for step in steps for kind, indexes in step.items() if isinstance(kind, Kind)]
        if len(groups) < 2:
            return
        keys = _by_scope((kind.scope, cast(Write, self.operations[one]).key) for kind, many in groups for one in many)
        for scope in sorted(keys):
            self.execute(_LOCK, {"scope": scope, "keys": Array("text", list(set(keys[scope])))})

    def carry_out(self, steps: Sequence[Step], plain: bool) -> None:
        for step in steps:
            for group, indexes in step.items():
                if isinstance(group, Kind):
                    self.write(group, indexes, plain)
                elif isinstance(group, str):
                    self.read(group, indexes)
                else:
                    self.alone(group)

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
                    raise Missed

            keys = [one.key for one in blobs]
            self.execute(_CLAIM, {"ids": ids, "keys": keys, "scope": kind.scope, "now": now}, claimed)

        def written(rows: list[Any]) -> None:
            done = finish(list(writes.values()), rows)
            if len(done) < len(writes):
                raise Missed
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
            raise search_timeout() from None

    def _look(self, index: int) -> None:
        operation = self.operations[index]
        if isinstance(operation, List):
            self.results[index] = rows = list_keys(self.session, operation, self.context.now)
            self.carried = add_up(self.carried, rows)
        elif isinstance(operation, ListParents):
            self.results[index] = names = list_parents(self.session, operation, self.context.now, self._search_time())
            self.carried = add_up(self.carried, names)
        elif isinstance(operation, Search):
            if operation.vector is not None and self.context.vectors is None:
                raise no_vectors()
            now, vectors, load, _ = self.context
            hits = search(self.session, operation, now, load, vectors, self._search_time())
            self.results[index] = hits
            self.carried = add_up(self.carried, (hit.row for hit in hits))

    def _search_time(self) -> TimeLimit:
        """Return how long searches may take, which begins with the first; raise TimedOutError if that is over."""
        self.limit = self.limit or TimeLimit(self.context.search_seconds)
        self.limit.check()
        return self.limit


def _by_scope(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for scope, name in pairs:
        found.setdefault(scope, []).append(name)
    return found
