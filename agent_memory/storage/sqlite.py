"""The catalog in a SQLite file.

One write connection a process, under a lock, always ``BEGIN IMMEDIATE``; a pool of read connections, so that readers
never wait for a writer. Statements are fetched to their end, so that none keeps a snapshot open.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import apsw

from ..errors import AgentMemoryError, ConflictError, IntegrityError, LimitExceededError, UnavailableError
from ..keys import successor
from ..messages import (
    BATCH_INLINE_LIMIT,
    CommitWrite,
    Delete,
    Entry,
    List,
    ListParents,
    PrepareRead,
    Scope,
    Search,
    Write,
)
from .catalog import (
    DEAD,
    GARBAGE,
    LIVE,
    STAGED,
    BlobRow,
    Clock,
    Current,
    LoadBlob,
    Operation,
    Receipt,
    Row,
    StoredValue,
    conditions_hold,
    etag_of,
    fingerprint,
    next_entry,
    replay,
    swept_requests,
    write_digest,
)
from .migrations.sqlite import MIGRATIONS
from .sqlite_rows import COLUMNS, IS_LIVE, all_rows, key_range, to_row
from .sqlite_search import forget_vectors, keep_vectors, list_parents, search

BUSY_SECONDS: Final = 1.0
"""How long one attempt waits for another process's write; the flow tries again until the call's deadline."""

_IDLE_READERS: Final = 16
_FORK_SECONDS: Final = 10.0
"""How long a fork waits for calls of other threads; after it the child is left to its luck."""

_JOURNAL_BYTES: Final = 64 * 1024 * 1024
_PAGE: Final = 500
_HOUR_US: Final = 3_600_000_000
_WRITES: Final = frozenset({CommitWrite, Delete})

_SELECT: Final = f"SELECT {COLUMNS} FROM entry WHERE scope = ? AND key = ?"
_SELECT_MANY: Final = f"SELECT {COLUMNS} FROM entry WHERE scope = ? AND key IN (SELECT value FROM json_each(?))"
_SELECT_RECEIPT: Final = (
    "SELECT fingerprint, version, created_us, updated_us, expires_us, 0, 0, 0, NULL FROM receipt "
    "WHERE hour = ? AND write = ?"
)
# All that a write has to know in one statement, for it runs within every write: its receipt, of this hour or the one
# before, and the row that it replaces, whose rowid tells it from a receipt.
_SELECT_STANDING: Final = (
    f"{_SELECT_RECEIPT} UNION ALL {_SELECT_RECEIPT} UNION ALL "
    f"SELECT version, etag, {IS_LIVE}, created_us, expires_us, ttl_us, blob_id, vectors, rowid FROM entry "
    "WHERE scope = ? AND key = ?"
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


_catalogs: Final[weakref.WeakSet[SqliteCatalog]] = weakref.WeakSet()
_forking: Final[list[SqliteCatalog]] = []


def _before_fork() -> None:
    for catalog in list(_catalogs):
        catalog.before_fork()
        _forking.append(catalog)


def _after_fork(*, child: bool) -> None:
    while _forking:
        _forking.pop().after_fork(child=child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )


def system_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class _Writing:
    """The one connection that writes: each ``with`` block on it is a transaction, committed or rolled back as a whole.

    Not a generator with ``contextmanager``: every write passes here, with the caches cold from the write before.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.closed = False
        # One cursor for all statements whose rows nobody reads step by step.
        self.run: Callable[..., Any] = cast(Any, connection.cursor()).execute

    def __enter__(self) -> apsw.Connection:
        if not self.lock.acquire(timeout=BUSY_SECONDS):
            raise UnavailableError("the database is busy with other writes of this process")
        try:
            if self.closed:
                raise UnavailableError("this memory is closed", code="closed")
            self.run("BEGIN IMMEDIATE")
        except BaseException as error:
            self._end()
            if isinstance(error, apsw.Error):
                raise _translate(error) from None
            raise
        return self.connection

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.run("COMMIT")
        except apsw.Error as failure:
            raise _translate(failure) from None
        finally:
            self._end()
        if isinstance(error, apsw.Error):
            raise _translate(error) from None

    def _end(self) -> None:
        try:
            # A commit has ended it, and a full disk may have rolled it back already.
            if not self.closed and self.connection.in_transaction:
                self.run("ROLLBACK")
        finally:
            self.lock.release()

    def close(self) -> None:
        with self.lock:
            self.closed = True
            self.connection.close()


class SqliteCatalog:
    """A catalog in one file, which several processes may open at once.

    Args:
        path: the database file; it is made, readable by its owner alone, if it is not there.
        durable: whether a commit reaches the disk before it is acknowledged; False only for volatile stores.
        clock: microseconds since 1970.

    Raises:
        UnavailableError: the file cannot be opened or is locked for longer than a second.
        IntegrityError: the file is no SQLite database, or a damaged one.
    """

    def __init__(self, path: Path, *, durable: bool = True, clock: Clock = system_clock) -> None:
        self._path = path
        self._durable = durable
        self._clock = clock
        self._readers: deque[apsw.Connection] = deque()
        self._opening_reader = threading.Lock()
        self._counting = threading.Lock()
        self._reader_count = 0
        self._closed = False
        with _translated():
            self._writing = _Writing(self._open())
            _retry_busy(self._prepare_file)
        _catalogs.add(self)

    @property
    def clock(self) -> Clock:
        return self._clock

    # -- connections -------------------------------------------------------------------------------------------------

    def _open(self) -> apsw.Connection:
        try:
            # Only ever a new file: closing a descriptor of one that is open here would drop SQLite's locks on it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise UnavailableError(f"cannot open the database {self._path.name!r}: {error.strerror}") from None
        connection = apsw.Connection(str(self._path))
        connection.set_busy_timeout(round(BUSY_SECONDS * 1000))
        all_rows(connection, "PRAGMA trusted_schema = OFF")
        all_rows(connection, f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        all_rows(connection, "PRAGMA fullfsync = ON")
        all_rows(connection, f"PRAGMA journal_size_limit = {_JOURNAL_BYTES}")
        return connection

    def _prepare_file(self) -> None:
        writer = self._writing.connection
        all_rows(writer, "PRAGMA journal_mode = WAL")
        all_rows(writer, "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied_us INTEGER) STRICT")
        # Looked at first without a lock: a store that is up to date opens while others write.
        for name, migrate in MIGRATIONS:
            if name in self._applied(writer):
                continue
            with self._writing as connection:
                if name not in self._applied(connection):
                    migrate(connection)
                    all_rows(connection, "INSERT INTO migration VALUES (?, ?)", (name, self._clock()))

    def _applied(self, connection: apsw.Connection) -> set[str]:
        applied = {str(row[0]) for row in all_rows(connection, "SELECT name FROM migration")}
        newer = sorted(applied.difference(name for name, _ in MIGRATIONS))
        if newer:
            raise UnavailableError(
                f"the database {self._path.name!r} was made by a newer agent-memory (it has {newer[-1]}): "
                "upgrade this one",
                code="newer_schema",
            )
        return applied

    @contextmanager
    def _reading(self) -> Generator[apsw.Connection]:
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._new_reader()
        try:
            with _translated():
                yield connection
        finally:
            self._release(connection)

    def _new_reader(self) -> apsw.Connection:
        with self._opening_reader:
            if self._closed:
                raise UnavailableError("this memory is closed", code="closed")
            with _translated():
                connection = self._open()
                all_rows(connection, "PRAGMA query_only = ON")
                # A reader is hardly ever kept waiting in WAL mode; if it is, the flow waits, not the event loop.
                connection.set_busy_timeout(0)
            with self._counting:
                self._reader_count += 1
            return connection

    def _close_reader(self, connection: apsw.Connection) -> None:
        connection.close()
        with self._counting:
            self._reader_count -= 1

    def _release(self, connection: apsw.Connection) -> None:
        if self._closed or len(self._readers) >= _IDLE_READERS:
            self._close_reader(connection)
        else:
            self._readers.append(connection)

    # -- reads -------------------------------------------------------------------------------------------------------

    def read(self, scope: Scope, key: str) -> Row | None:
        # The hottest path of an embedded store: no context managers here.
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = self._new_reader()
        try:
            rows = all_rows(connection, _SELECT, (scope.path, key))
        except apsw.Error as error:
            raise _translate(error) from None
        finally:
            self._release(connection)
        return self._live(rows[0]) if rows else None

    def _live(self, row: Any) -> Row | None:
        if row[13] or (row[11] is not None and row[11] <= self._clock()):
            return None
        return to_row(row)

    def list(self, request: List) -> list[Row]:
        with self._reading() as connection:
            return self._list(connection, request)

    def _list(self, connection: apsw.Connection, request: List) -> list[Row]:
        where, bindings = key_range(request.scope, request.prefix)
        if request.cursor is not None:
            where += f" AND key {'<' if request.reverse else '>'} ?"
            bindings.append(request.cursor)
        columns = COLUMNS if request.max_inline_size is not None else COLUMNS.replace("value", "NULL")
        order = "DESC" if request.reverse else "ASC"
        sql = f"SELECT {columns} FROM entry WHERE {where} AND {IS_LIVE} ORDER BY key {order} LIMIT ?"
        found: list[Row] = []
        size = 0
        cursor: Any = cast(Any, connection).execute(sql, (*bindings, self._clock(), request.limit))
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

    def receipt(self, write: Write) -> Entry | None:
        hour, digest = self._clock() // _HOUR_US, write_digest(write)
        name = _receipt_name(write, digest)
        with self._reading() as connection:
            rows = all_rows(connection, f"{_SELECT_RECEIPT} UNION ALL {_SELECT_RECEIPT}", (hour, name, hour - 1, name))
        return replay(write, _receipt_of(rows[0], digest)) if rows else None

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

    # -- writes ------------------------------------------------------------------------------------------------------

    def apply(self, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        if any(map(_WRITES.__contains__, map(type, operations))):
            with self._writing as connection:
                return [self._apply(connection, operation, load) for operation in operations]
        with self._reading() as connection:
            all_rows(connection, "BEGIN")
            try:
                rows = self._read_many(connection, operations)
                return [
                    rows.get(operation.key)
                    if type(operation) is PrepareRead
                    else self._apply(connection, operation, load)
                    for operation in operations
                ]
            finally:
                all_rows(connection, "COMMIT")

    def _read_many(self, connection: apsw.Connection, operations: Sequence[Operation]) -> dict[str, Row | None]:
        """Return the rows of all reads, which are of one scope: one statement takes a quarter of the time of many."""
        reads = [operation for operation in operations if type(operation) is PrepareRead]
        if not reads:
            return {}
        keys = json.dumps([read.key for read in reads])
        rows = all_rows(connection, _SELECT_MANY, (reads[0].scope.path, keys))
        return {row[0]: self._live(row) for row in rows}

    def _apply(self, connection: apsw.Connection, operation: Operation, load: LoadBlob) -> Any:
        match operation:
            case CommitWrite() | Delete():
                return self._write(connection, operation)
            case List():
                return self._list(connection, operation)
            case Search():
                return search(connection, operation, self._clock(), load)
            case ListParents():
                return list_parents(connection, operation, self._clock())
            case PrepareRead():
                rows = all_rows(connection, _SELECT, (operation.scope.path, operation.key))
                return self._live(rows[0]) if rows else None

    def touch(self, scope: Scope, keys: Sequence[str]) -> None:
        now = self._clock()
        with self._writing as connection:
            for key in keys:
                all_rows(
                    connection,
                    "UPDATE entry SET expires_us = ? + ttl_us WHERE scope = ? AND key = ? AND expires_us > ?",
                    (now, scope.path, key, now),
                )

    def _write(self, connection: apsw.Connection, write: Write) -> Entry | None:
        scope, key, now = write.scope.path, write.key, self._clock()
        digest = write_digest(write)
        hour, name = now // _HOUR_US, _receipt_name(write, digest)
        run = self._writing.run
        rows = run(_SELECT_STANDING, (hour, name, hour - 1, name, now, scope, key)).fetchall()
        found = rows[0] if rows else None
        rowid = found and found[8]
        if found and rowid is None:
            return replay(write, _receipt_of(found, digest))
        current = Current._make(found[:6]) if found else None
        if not conditions_hold(write, current):
            rows = all_rows(connection, _SELECT, (scope, key))
            raise ConflictError(
                "the key is not at the version that was expected", found=self._live(rows[0]) if rows else None
            )
        entry = None
        if isinstance(write, CommitWrite) or (current is not None and current.live):
            entry, ttl_us = next_entry(write, current, 0 if current else self._floor(connection, scope), now, digest)
            if found:
                _retire(connection, scope, key, found[6], found[7], now)
            self._put(connection, write, entry, ttl_us, rowid)
        intent = bytes.fromhex(fingerprint(write))
        times = (entry.version, entry.created_us, entry.updated_us, entry.expires_us) if entry else (None, 0, 0, None)
        run(_INSERT_RECEIPT, (hour, name, intent, *times))
        if write.scope.request_id is not None:
            all_rows(
                connection,
                "INSERT INTO scope (scope, last_write_us) VALUES (?, ?) "
                "ON CONFLICT (scope) DO UPDATE SET last_write_us = excluded.last_write_us",
                (scope, now),
            )
        return entry

    def _put(
        self, connection: apsw.Connection, write: Write, entry: Entry, ttl_us: int | None, rowid: int | None
    ) -> None:
        """Write an entry over the row that stands there, which leaves its index alone, or as a new row."""
        data: bytes | None = None
        blob_id: str | None = None
        chunk_size: int | None = None
        vectors = 0
        if isinstance(write, CommitWrite):
            data, vectors = write.data, len(write.vectors)
            keep_vectors(connection, write)
            if write.blob is not None:
                blob_id = write.blob.id
                chunk_size = _claim(connection, write, blob_id, entry.updated_us)
        written = (
            *entry[1:12], ttl_us, json.dumps(dict(entry.provenance)) if entry.provenance else None,
            int(entry.deleted), vectors, blob_id, chunk_size, data,
        )  # fmt: skip
        if rowid is None:
            self._writing.run(_INSERT, (*written, write.scope.path, entry.key))
        else:
            self._writing.run(_UPDATE, (*written, rowid))

    def _floor(self, connection: apsw.Connection, scope: str) -> int:
        rows = all_rows(
            connection, "SELECT max(version_floor) FROM scope WHERE scope IN (?, ?)", (scope, swept_requests(scope))
        )
        return int(rows[0][0] or 0)

    # -- blobs and sweeping ------------------------------------------------------------------------------------------

    def stage(self, blob: BlobRow) -> None:
        with self._writing as connection:
            all_rows(connection, "INSERT INTO blob VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(blob))

    def renew(self, blob_id: str) -> bool:
        with self._writing as connection:
            rows = all_rows(
                connection,
                "UPDATE blob SET at_us = ? WHERE id = ? AND state = ? RETURNING id",
                (self._clock(), blob_id, STAGED),
            )
        return bool(rows)

    def claim_blobs(self, *, staged_before: int, garbage_before: int, limit: int) -> list[BlobRow]:
        with self._writing as connection:
            rows = all_rows(
                connection,
                "UPDATE blob SET state = ?, at_us = ? WHERE id IN (SELECT id FROM blob WHERE "
                "(state = ? AND at_us < ?) OR (state = ? AND at_us < ?) LIMIT ?) RETURNING *",
                (DEAD, self._clock(), STAGED, staged_before, GARBAGE, garbage_before, limit),
            )
        return [BlobRow(*row) for row in rows]

    def dead_blobs(self, *, before: int, limit: int) -> list[BlobRow]:
        with self._reading() as connection:
            rows = all_rows(
                connection, "SELECT * FROM blob WHERE state = ? AND at_us < ? LIMIT ?", (DEAD, before, limit)
            )
        return [BlobRow(*row) for row in rows]

    def forget_blobs(self, ids: Sequence[str]) -> None:
        if ids:
            with self._writing as connection:
                for one in ids:
                    all_rows(connection, "DELETE FROM blob WHERE id = ? AND state = 'dead'", (one,))

    def expire(self, *, limit: int) -> int:
        now = self._clock()
        with self._writing as connection:
            rows = all_rows(
                connection,
                "SELECT scope, key, blob_id, vectors FROM entry WHERE expires_us IS NOT NULL AND expires_us <= ? "
                "LIMIT ?",
                (now, limit),
            )
            for scope, key, blob_id, vectors in rows:
                all_rows(
                    connection,
                    "UPDATE entry SET deleted = 1, updated_us = ?, size = 0, expires_us = NULL, ttl_us = NULL, "
                    "signature = NULL, provenance = NULL, vectors = 0, blob_id = NULL, chunk_size = NULL, value = NULL "
                    "WHERE scope = ? AND key = ?",
                    (now, scope, key),
                )
                _retire(connection, scope, key, blob_id, vectors, now)
        return len(rows)

    def drop_tombstones(self, *, before: int, limit: int) -> int:
        with self._writing as connection:
            rows = all_rows(
                connection,
                "SELECT scope, key, version FROM entry WHERE deleted AND updated_us < ? LIMIT ?",
                (before, limit),
            )
            for scope, key, version in rows:
                _raise_floor(connection, scope, version)
                all_rows(connection, "DELETE FROM entry WHERE scope = ? AND key = ?", (scope, key))
        return len(rows)

    def drop_receipts(self, *, before: int, limit: int) -> int:
        hour = before // _HOUR_US
        with self._writing as connection:
            rows = all_rows(
                connection,
                "DELETE FROM receipt WHERE (hour, write) IN (SELECT hour, write FROM receipt WHERE hour < ? LIMIT ?) "
                "RETURNING hour",
                (hour, limit),
            )
        return len(rows)

    def drop_requests(self, *, before: int, limit: int) -> int:
        now, handled = self._clock(), 0
        with self._writing as connection:
            scopes = all_rows(
                connection,
                "SELECT scope FROM scope WHERE last_write_us IS NOT NULL AND last_write_us < ? LIMIT ?",
                (before, limit),
            )
            for (scope,) in scopes:
                room = limit - handled
                if room <= 0:
                    break
                rows = all_rows(
                    connection,
                    "DELETE FROM entry WHERE rowid IN (SELECT rowid FROM entry WHERE scope = ? LIMIT ?) "
                    "RETURNING key, blob_id, vectors, version",
                    (scope, room),
                )
                for key, blob_id, vectors, version in rows:
                    _retire(connection, scope, key, blob_id, vectors, now)
                    _raise_floor(connection, swept_requests(scope), version)
                if len(rows) < room:
                    _raise_floor(connection, swept_requests(scope), self._floor(connection, scope))
                    all_rows(connection, "DELETE FROM scope WHERE scope = ?", (scope,))
                handled += len(rows) + 1
        return handled

    def mend_blob(self, blob: BlobRow) -> None:
        with self._writing as connection:
            all_rows(connection, "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(blob))

    def secret(self, name: str) -> bytes:
        with self._writing as connection:
            all_rows(connection, "INSERT OR IGNORE INTO secret VALUES (?, ?)", (name, secrets.token_bytes(32)))
            rows = all_rows(connection, "SELECT value FROM secret WHERE name = ?", (name,))
        return bytes(rows[0][0])

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

    # -- fork --------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no thread be inside SQLite while the process forks: the child gets its locks as they stand then."""
        deadline = time.monotonic() + _FORK_SECONDS
        locks = (self._writing.lock, self._opening_reader)
        self._held = [lock for lock in locks if lock.acquire(timeout=max(0.0, deadline - time.monotonic()))]
        self._idle = list[apsw.Connection]()
        while len(self._idle) < self._reader_count and time.monotonic() < deadline:
            try:
                self._idle.append(self._readers.pop())
            except IndexError:
                time.sleep(0.0005)

    def after_fork(self, *, child: bool) -> None:
        """In the parent go on; in the child close what it inherited.

        SQLite remembers in memory which locks the process has on the file; the child has none of them, and would
        believe that it has. Closing forgets them and touches nothing of the parent's: locks belong to a process.
        """
        quiet = len(self._held) == 2 and len(self._idle) == self._reader_count
        if child and quiet:
            for connection in (*self._idle, self._writing.connection):
                connection.close()
            self._reader_count = 0
            self._closed = self._writing.closed = True
        else:
            self._readers.extend(self._idle)
        self._idle = []
        for lock in self._held:
            lock.release()

    def close(self) -> None:
        self._closed = True
        self._writing.close()
        while self._readers:
            self._close_reader(self._readers.pop())


# -- rows ------------------------------------------------------------------------------------------------------------


def _receipt_name(write: Write, digest: bytes) -> bytes:
    """Return what a receipt is found by. A uuid7's first 13 characters are its time: new receipts lie side by side."""
    return write.write_id[:13].encode("utf-8", "surrogatepass") + digest


def _receipt_of(row: Any, digest: bytes) -> Receipt:
    intent, version, created_us, updated_us, expires_us, *_ = row
    etag = "" if version is None else etag_of(digest, version)
    return Receipt(intent.hex(), version, etag, created_us, updated_us, expires_us)


def _claim(connection: apsw.Connection, write: CommitWrite, blob_id: str, now: int) -> int | None:
    """Make a staged blob the value of its key and return its chunk size; whoever claims it first has it."""
    claimed = all_rows(
        connection,
        "UPDATE blob SET state = ?, at_us = ? WHERE id = ? AND scope = ? AND key = ? AND state = ? "
        "RETURNING chunk_size",
        (LIVE, now, blob_id, write.scope.path, write.key, STAGED),
    )
    if not claimed:
        raise ConflictError("the prepared write has expired; prepare it again", code="blob_gone")
    return claimed[0][0]


def _raise_floor(connection: apsw.Connection, scope: str, version: int) -> None:
    all_rows(
        connection,
        "INSERT INTO scope (scope, version_floor) VALUES (?, ?) ON CONFLICT (scope) "
        "DO UPDATE SET version_floor = max(version_floor, excluded.version_floor)",
        (scope, version),
    )


def _retire(connection: apsw.Connection, scope: str, key: str, blob_id: str | None, vectors: int, now: int) -> None:
    """Let go of what a row's old value had: its blob becomes garbage, its vectors are forgotten."""
    if blob_id is not None:
        all_rows(connection, "UPDATE blob SET state = ?, at_us = ? WHERE id = ?", (GARBAGE, now, blob_id))
    if vectors:
        forget_vectors(connection, scope, key)


# -- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except apsw.Error as error:
        raise _translate(error) from None


def _translate(error: apsw.Error) -> AgentMemoryError:
    """Name what went wrong without SQLite's own text, which may repeat a value."""
    match error:
        case apsw.BusyError() | apsw.LockedError():
            return UnavailableError("the database is busy with another process's write")
        case apsw.FullError():
            return UnavailableError("the disk is full; nothing was changed", code="disk_full")
        case apsw.IOError():
            return UnavailableError("the disk failed; nothing was changed", code="disk_failed")
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError():
            return UnavailableError("the database cannot be opened for writing; check the file and its folder")
        case apsw.NotADBError() | apsw.CorruptError():
            return IntegrityError("the database file is damaged, or no SQLite database; restore it from a backup")
        case apsw.TooBigError():
            return LimitExceededError("the value is too large for the catalog")
        case apsw.ConnectionClosedError():
            return UnavailableError("this memory is closed", code="closed")
        case _:
            return UnavailableError(f"the database failed: {type(error).__name__}")


def _retry_busy(function: Callable[[], None]) -> None:
    """Opening meets Busy without SQLite's own waiting when another process switches the file to WAL or recovers it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with _translated():
                return function()
        except UnavailableError as error:
            if error.code != "unavailable" or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
