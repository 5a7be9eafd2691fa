"""Carrying out operations in PostgreSQL: one statement where one will do, else a pipelined transaction.

A statement that cannot write what it was given says nothing about why. Then it is found out what stands in the way, and
the write is repeated, answered from its receipt, or refused.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Final, cast

from ...errors import UnavailableError
from ...messages import CommitWrite, Delete, Entry, List, ListParents, Operation, PrepareRead, Search, Write
from ..catalog import COLUMNS, STAGED
from ..rules import Current, Receipt, blob_gone, condition_failed, conditions_hold, replay
from .batch import Batch, Context, Missed, Step, in_steps
from .connections import Connection, Session, psycopg
from .errors import no_vectors
from .rows import IS_LIVE, to_row
from .writes import finish, is_simple, kind_of, start

_ATTEMPTS: Final = 20
_PIPELINE_BYTES: Final = 32 * 1024

# A lock is written to the log, so that this transaction too waits for a synchronous standby: the one that made the
# receipt may have been ended, or its server restarted, while it did, and reading alone waits for nobody.
_RECEIPT: Final = (
    "SELECT fingerprint, version, etag, created_us, updated_us, expires_us FROM agent_memory.receipt "
    "WHERE scope = %(scope)s AND write_id = %(id)s FOR KEY SHARE"
)
_CURRENT: Final = (
    f"SELECT {COLUMNS}, {IS_LIVE}, ttl_us FROM agent_memory.entry WHERE scope = %(scope)s AND key = %(key)s"
)
_STAGED: Final = (
    f"SELECT 1 FROM agent_memory.blob WHERE id = %(id)s AND scope = %(scope)s AND key = %(key)s AND state = '{STAGED}'"
)


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
        except (Missed, psycopg.errors.DivisionByZero, psycopg.errors.UniqueViolation):
            # A condition failed, or the receipt of the same write came after the snapshot. Nothing was changed.
            if len(operations) > 1:
                carry_out = _in_order
                continue
            with suppress(Missed):
                return [_answer(session, writes[0], context)]
        except psycopg.DataError as error:
            # JSONB takes less than JSON: no number of a million digits, for one.
            if plain or error.sqlstate is None:
                raise
            plain = True
    raise UnavailableError("PostgreSQL: this key is written too often by others; try again")


# -- why a write was not carried out ---------------------------------------------------------------------------------


def _answer(session: Session, write: Write, context: Context) -> Entry | None:
    """Return what a write that was not carried out is answered with, or raise ConflictError.

    Raises Missed if nothing stands in its way by now.
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
    raise Missed


# -- transactions ----------------------------------------------------------------------------------------------------


def _read(session: Session, operations: Sequence[Operation], context: Context) -> list[Any]:
    """Carry out operations that write nothing, all from one snapshot."""
    batch = Batch(session, operations, context)
    # In whatever order: nothing that one of them reads is changed by another.
    step: Step = {}
    for index, operation in enumerate(operations):
        step.setdefault(operation.scope.path if isinstance(operation, PrepareRead) else index, []).append(index)
    with _snapshot(session.connection) if len(step) > 1 else nullcontext():
        batch.carry_out([step], plain=False)
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
        raise Missed
    return [done[write.key]]


def _together(session: Session, operations: Sequence[Operation], context: Context, plain: bool) -> list[Any]:
    """Carry out operations in as few statements as they need; raise Missed if a write is not possible, who knows why.

    Either way all of them or none.
    """
    batch = Batch(session, operations, context)
    steps = in_steps(operations)
    if len(steps) == 1 and len(steps[0]) == 1 and all(is_simple(cast(Write, one)) for one in operations):
        # One statement is a transaction.
        batch.carry_out(steps, plain)
        return batch.results
    with ExitStack() as stack:
        pipeline = None
        if _fits_pipeline(operations):
            pipeline = stack.enter_context(session.connection.pipeline())
        stack.enter_context(session.connection.transaction())
        batch.lock(steps)
        batch.carry_out(steps, plain)
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
    batch = Batch(session, operations, context)
    with session.connection.transaction():
        for index, operation in enumerate(operations):
            try:
                batch.carry_out(in_steps([operation], index), plain)
            except Missed:
                batch.results[index] = _answer(session, cast(Write, operation), context)
    return batch.results
