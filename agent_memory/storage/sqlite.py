"""The catalog in a SQLite file.

Readers never wait for a writer: they have connections of their own. Statements are fetched to their end, so that none
keeps a snapshot open.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import apsw

from ..errors import UnavailableError
from ..keys import successor
from ..messages import (
    BATCH_INLINE_LIMIT,
    CommitWrite,
    Delete,
    Entry,
    List,
    ListParents,
    Operation,
    PrepareRead,
    Scope,
    Search,
    Write,
)
from . import sqlite_copy, sqlite_sweep
from .catalog import (
    COLUMNS,
    BlobRow,
    Clock,
    LoadBlob,
    Row,
    ScopeRow,
    StoredRow,
    StoredValue,
    Times,
    add_up,
    has_writes,
)
from .sqlite_busy import BUSY_SECONDS
from .sqlite_connections import Connections
from .sqlite_errors import translate
from .sqlite_rows import IS_LIVE, TimeLimit, all_rows, key_range, live_row, to_row
from .sqlite_search import list_parents, search
from .sqlite_writes import carry_out

_PAGE: Final = 500
_SEARCH_SECONDS: Final = 10.0
"""How long searches of one call may take, as PostgreSQL's statements may."""

_SELECT: Final = f"SELECT {COLUMNS} FROM entry WHERE scope = ? AND key = ?"
_SELECT_MANY: Final = (
    f"SELECT {COLUMNS} FROM entry WHERE scope = ? AND key IN (SELECT value FROM json_each(?)) AND {IS_LIVE}"
)


def system_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class _Touches:
    """Keys whose times to live are restarted together: of many readers at once the first does it for all."""

    def __init__(self) -> None:
        self.keys: set[tuple[str, str]] = set()
        self.over = threading.Event()
        self.done = False


class SqliteCatalog:
    """A catalog in one file, which several processes may open at once.

    Args:
        path: the database file; it is made, readable by its owner alone, if it is not there.
        durable: whether a commit reaches the disk before it is acknowledged; False only for volatile stores.
        busy_seconds: how long one attempt to write waits for another write.
        clock: microseconds since 1970.

    Raises:
        UnavailableError: the file cannot be opened or is locked for longer than that.
        IntegrityError: the file is no SQLite database, or a damaged one.
        InvalidRequestError: it is the database of something else.
    """

    def __init__(
        self, path: Path, *, durable: bool = True, busy_seconds: float = BUSY_SECONDS, clock: Clock = system_clock
    ) -> None:
        self._clock = clock
        self._connections = Connections(path, durable=durable, busy_seconds=busy_seconds, clock=clock)
        self._writing = self._connections.writing
        self._transaction = self._writing.transaction
        self._reading = self._connections.reading
        self._joining = threading.Lock()
        self._touches = _Touches()

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def is_file(self) -> bool:
        return True

    # -- reads ---------------------------------------------------------------------------------------------------------

    def read(self, scope: Scope, key: str) -> Row | None:
        # The hottest path of an embedded store: no context managers here.
        connection = self._connections.take()
        try:
            rows = all_rows(connection, _SELECT, (scope.path, key))
        except apsw.Error as error:
            raise translate(error) from None
        finally:
            self._connections.release(connection)
        return live_row(rows[0], self._clock()) if rows else None

    def list(self, request: List) -> list[Row]:
        with self._reading() as connection:
            return self._list(connection, request, self._clock())

    def _list(self, connection: apsw.Connection, request: List, now: int) -> list[Row]:
        edge = {"before" if request.reverse else "after": request.cursor}
        where, bindings = key_range(request.scope, request.prefix, **edge)
        columns = COLUMNS if request.max_inline_size is not None else COLUMNS.replace("value", "NULL")
        order = "DESC" if request.reverse else "ASC"
        sql = f"SELECT {columns} FROM entry WHERE {where} AND {IS_LIVE} ORDER BY key {order} LIMIT ?"
        found: list[Row] = []
        size = 0
        cursor: Any = cast(Any, connection).execute(sql, (*bindings, now, request.limit))
        for values in cursor:
            row = to_row(values)
            size += len(row.data or b"")
            if found and size > BATCH_INLINE_LIMIT:
                cursor.close()
                break
            found.append(row)
        return found

    def list_segments(self, scope: Scope, prefix: str, *, after: str | None, limit: int) -> list[str]:
        # Skip from segment to segment: an entity with a million items costs one look-up, not a million.
        found: list[str] = []
        end = successor(prefix)
        start = prefix if after is None else f"{prefix}{after}0"
        sql = (
            f"SELECT key FROM entry WHERE scope = ? AND key >= ? AND {'key < ? AND' if end else ''} {IS_LIVE} "
            "AND instr(substr(key, ?), '/') > 0 ORDER BY key LIMIT 1"
        )
        bounds = (end,) if end else ()
        with self._reading() as connection:
            while len(found) < limit:
                row = all_rows(connection, sql, (scope.path, start, *bounds, self._clock(), len(prefix) + 1))
                if not row:
                    break
                name = str(row[0][0])[len(prefix) :].partition("/")[0]
                if not found or found[-1] != name:
                    found.append(name)
                # "0" follows "/" in every encoding of text: the smallest key that no longer starts with "name/".
                start = f"{prefix}{name}0"
        return found

    def blob(self, blob_id: str) -> BlobRow | None:
        with self._reading() as connection:
            rows = all_rows(connection, "SELECT * FROM blob WHERE id = ?", (blob_id,))
        return BlobRow(*rows[0]) if rows else None

    def values(self) -> Iterator[StoredValue]:
        place = ("", "")
        while True:
            with self._reading() as connection:
                rows = all_rows(
                    connection,
                    "SELECT scope, key, size, sha256, value, blob_id, chunk_size FROM entry "
                    "WHERE (scope, key) > (?, ?) AND NOT deleted ORDER BY scope, key LIMIT ?",
                    (*place, _PAGE),
                )
            if not rows:
                return
            yield from (StoredValue(*row) for row in rows)
            place = (str(rows[-1][0]), str(rows[-1][1]))

    def blobs(self) -> Iterator[BlobRow]:
        place = ""
        while True:
            with self._reading() as connection:
                rows = all_rows(connection, "SELECT * FROM blob WHERE id > ? ORDER BY id LIMIT ?", (place, _PAGE))
            if not rows:
                return
            yield from (BlobRow(*row) for row in rows)
            place = str(rows[-1][0])

    def ping(self) -> None:
        with self._reading() as connection:
            all_rows(connection, "SELECT 1 FROM entry LIMIT 1")
        self._connections.check_writable()

    # -- writes --------------------------------------------------------------------------------------------------------

    def write(self, write: Write) -> Entry | None:
        return self._transaction(lambda connection: carry_out(connection, self._writing.run, write, self._clock()))

    def apply(self, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        if has_writes(operations):
            return self._transaction(lambda connection: self._apply(connection, operations, load, None, self._clock()))
        with self._reading() as connection:
            all_rows(connection, "BEGIN")
            try:
                now = self._clock()
                return self._apply(connection, operations, load, self._read_many(connection, operations, now), now)
            finally:
                all_rows(connection, "COMMIT")

    def _read_many(
        self, connection: apsw.Connection, operations: Sequence[Operation], now: int
    ) -> dict[str, Row | None]:
        """Return the rows of all reads, which are of one scope: one statement takes a quarter of the time of many."""
        reads = [operation for operation in operations if type(operation) is PrepareRead]
        if not reads:
            return {}
        keys = json.dumps([read.key for read in reads])
        rows = all_rows(connection, _SELECT_MANY, (reads[0].scope.path, keys, now))
        return {row[0]: to_row(row) for row in rows}

    def _apply(
        self, connection: apsw.Connection, operations: Sequence[Operation], load: LoadBlob,
        read: Mapping[str, Row | None] | None, now: int,
    ) -> list[Any]:  # fmt: skip
        """Carry out operations in order, at one time; ``read`` holds the rows of the reads if nothing is written."""
        results: list[Any] = []
        carried = 0
        limit = TimeLimit(BUSY_SECONDS if has_writes(operations) else _SEARCH_SECONDS)
        for operation in operations:
            kind = type(operation)
            result: Any
            if kind is PrepareRead and read is not None:
                result = read.get(cast(PrepareRead, operation).key)
            else:
                result = self._one(connection, operation, load, now, limit)
            if kind is List or kind is ListParents:
                carried = add_up(carried, result)
            elif kind is Search:
                carried = add_up(carried, (hit.row for hit in result))
            results.append(result)
        return results

    def _one(
        self, connection: apsw.Connection, operation: Operation, load: LoadBlob, now: int, limit: TimeLimit
    ) -> Any:
        match operation:
            case CommitWrite() | Delete():
                return carry_out(connection, self._writing.run, operation, now)
            case List():
                return self._list(connection, operation, now)
            case Search():
                with limit.of(connection):
                    return search(connection, operation, now, load, limit)
            case ListParents():
                with limit.of(connection):
                    return list_parents(connection, operation, now, limit)
            case PrepareRead():
                rows = all_rows(connection, _SELECT, (operation.scope.path, operation.key))
                return live_row(rows[0], now) if rows else None

    def touch(self, scope: Scope, keys: Sequence[str]) -> None:
        with self._joining:
            touches = self._touches
            first = not touches.keys
            touches.keys.update((scope.path, key) for key in keys)
        if first:
            self._carry_out(touches)
        elif not touches.over.wait(2 * self._writing.busy_seconds) or not touches.done:
            # The first waits so long for this process's writes, and as long for another's. If it was interrupted before
            # that, nobody carries these out: the next one begins anew.
            self._end_joining(touches)
            raise UnavailableError("the database is busy with other writes of this process")

    def _carry_out(self, touches: _Touches) -> None:
        def restart(connection: apsw.Connection) -> None:
            self._end_joining(touches)
            now = self._clock()
            for place in touches.keys:
                all_rows(
                    connection,
                    "UPDATE entry SET expires_us = ? + ttl_us WHERE scope = ? AND key = ? AND expires_us > ?",
                    (now, *place, now),
                )

        try:
            self._transaction(restart)
            touches.done = True
        finally:
            self._end_joining(touches)
            touches.over.set()

    def _end_joining(self, touches: _Touches) -> None:
        with self._joining:
            if self._touches is touches:
                self._touches = _Touches()

    # -- blobs and sweeping --------------------------------------------------------------------------------------------

    def stage(self, blobs: Sequence[BlobRow]) -> None:
        self._transaction(lambda connection: sqlite_sweep.put_blobs(connection, blobs))

    def renew(self, blob_id: str) -> bool:
        return self._transaction(lambda connection: sqlite_sweep.renew(connection, blob_id, self._clock()))

    def claim_blobs(self, *, staged_before: int, garbage_before: int, limit: int) -> list[BlobRow]:
        return self._transaction(
            lambda connection: sqlite_sweep.claim_blobs(
                connection, self._clock(), staged_before=staged_before, garbage_before=garbage_before, limit=limit
            )
        )

    def dead_blobs(self, *, before: int, limit: int) -> list[BlobRow]:
        with self._reading() as connection:
            return sqlite_sweep.dead_blobs(connection, before=before, limit=limit)

    def forget_blobs(self, ids: Sequence[str]) -> None:
        if ids:
            self._transaction(lambda connection: sqlite_sweep.forget_blobs(connection, ids))

    def expire(self, *, limit: int) -> int:
        return self._transaction(lambda connection: sqlite_sweep.expire(connection, self._clock(), limit=limit))

    def drop_tombstones(self, *, before: int, limit: int) -> int:
        return self._transaction(
            lambda connection: sqlite_sweep.drop_tombstones(connection, before=before, limit=limit)
        )

    def drop_receipts(self, *, before: int, limit: int) -> int:
        return self._transaction(lambda connection: sqlite_sweep.drop_receipts(connection, before=before, limit=limit))

    def drop_requests(self, *, before: int, limit: int) -> int:
        return self._transaction(
            lambda connection: sqlite_sweep.drop_requests(connection, self._clock(), before=before, limit=limit)
        )

    def count(self) -> int:
        with self._reading() as connection:
            return int(all_rows(connection, "SELECT count(*) FROM entry")[0][0])

    def stored(self, *, after: tuple[str, str], limit: int) -> list[StoredRow]:
        with self._reading() as connection:
            return sqlite_copy.stored(connection, after, limit)

    def stored_at(self, places: Collection[tuple[str, str]]) -> list[StoredRow]:
        with self._reading() as connection:
            return sqlite_copy.stored_at(connection, places)

    def take(self, rows: Sequence[StoredRow]) -> None:
        self._transaction(lambda connection: sqlite_copy.take(connection, rows, self._clock()))

    def scopes(self, *, after: str, limit: int) -> list[ScopeRow]:
        with self._reading() as connection:
            return sqlite_copy.scopes(connection, after, limit)

    def scopes_at(self, names: Collection[str]) -> list[ScopeRow]:
        with self._reading() as connection:
            return sqlite_copy.scopes_at(connection, names)

    def take_scopes(self, rows: Sequence[ScopeRow]) -> None:
        self._transaction(lambda connection: sqlite_copy.take_scopes(connection, rows))

    def set_times(self, scope: Scope, times: Sequence[Times]) -> None:
        def set_each(connection: apsw.Connection) -> None:
            for key, created_us, updated_us in times:
                all_rows(
                    connection,
                    "UPDATE entry SET created_us = ?, updated_us = ? WHERE scope = ? AND key = ? AND NOT deleted",
                    (created_us, updated_us, scope.path, key),
                )

        self._transaction(set_each)

    def mend_blob(self, blob: BlobRow) -> None:
        self._transaction(lambda connection: sqlite_sweep.put_blobs(connection, [blob]))

    # -- the file as a whole -------------------------------------------------------------------------------------------

    def secret(self, name: str) -> bytes:
        def make(connection: apsw.Connection) -> bytes:
            all_rows(connection, "INSERT OR IGNORE INTO secret VALUES (?, ?)", (name, secrets.token_bytes(32)))
            return bytes(all_rows(connection, "SELECT value FROM secret WHERE name = ?", (name,))[0][0])

        return self._transaction(make)

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy of the database while others go on reading and writing."""
        with self._reading() as source:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            target = apsw.Connection(str(path))
            try:
                with target.backup("main", source, "main") as backup:
                    # In one step: a copy in several starts over whenever another process writes.
                    backup.step(-1)
                all_rows(target, "PRAGMA journal_mode = DELETE")
            finally:
                target.close()

    def close(self) -> None:
        self._connections.close()
