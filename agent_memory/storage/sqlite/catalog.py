"""The catalog in a SQLite file.

Readers never wait for a writer: they have connections of their own. Statements are fetched to their end, so that none
keeps a snapshot open.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from ...messages import Entry, List, Operation, Scope, Write
from ..catalog import (
    COLUMNS,
    SECRET_BYTES,
    BlobRow,
    Clock,
    LoadBlob,
    Row,
    ScopeRow,
    StoredRow,
    StoredValue,
    Times,
    check_secret,
    has_writes,
    stored_value,
)
from . import copy, sweep
from .apply import SEARCH_SECONDS, apply
from .busy import BUSY_SECONDS
from .connections import Connections
from .errors import FAILURES, translate
from .listing import list_keys, list_segments
from .rows import SELECT_ROW, all_rows, live_row
from .touches import Touches
from .writes import carry_out

_PAGE: Final = 500


def system_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


class SqliteCatalog:
    """A catalog in one file, which several processes may open at once.

    Args:
        path: the database file; it is made, readable by its owner alone, if it is not there.
        durable: whether a commit reaches the disk before it is acknowledged; False only for volatile stores.
        busy_seconds: how long one attempt to write waits for another write.
        search_seconds: how long the searches of one call may take.
        clock: microseconds since 1970.

    Raises:
        UnavailableError: the file cannot be opened or is locked for longer than that.
        IntegrityError: the file is no SQLite database, or a damaged one.
        InvalidRequestError: it is the database of something else.
    """

    def __init__(
        self,
        path: Path,
        *,
        durable: bool = True,
        busy_seconds: float = BUSY_SECONDS,
        search_seconds: float = SEARCH_SECONDS,
        clock: Clock = system_clock,
    ) -> None:
        self._clock = clock
        self._search_seconds = search_seconds
        self._connections = Connections(path, durable=durable, busy_seconds=busy_seconds, clock=clock)
        self._writing = self._connections.writing
        self._transaction = self._writing.transaction
        self._reading = self._connections.reading
        self._touches = Touches(self._writing)

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
            rows = all_rows(connection, SELECT_ROW, (scope.path, key))
        except FAILURES as error:
            raise translate(error) from None
        finally:
            self._connections.release(connection)
        return live_row(rows[0], self._clock()) if rows else None

    def list(self, request: List) -> list[Row]:
        with self._reading() as connection:
            return list_keys(connection, request, self._clock())

    def list_segments(self, scope: Scope, prefix: str, *, after: str | None, limit: int) -> list[str]:
        with self._reading() as connection:
            return list_segments(connection, scope, prefix, after=after, limit=limit, now=self._clock())

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
                    f"SELECT {COLUMNS}, scope FROM entry WHERE (scope, key) > (?, ?) AND NOT deleted "
                    "ORDER BY scope, key LIMIT ?",
                    (*place, _PAGE),
                )
            if not rows:
                return
            yield from map(stored_value, rows)
            place = (rows[-1][-1], rows[-1][0])

    def blobs(self) -> Iterator[BlobRow]:
        place = ""
        while True:
            with self._reading() as connection:
                rows = all_rows(connection, "SELECT * FROM blob WHERE id > ? ORDER BY id LIMIT ?", (place, _PAGE))
            if not rows:
                return
            yield from (BlobRow(*row) for row in rows)
            place = str(rows[-1][0])

    def is_sound(self) -> bool:
        with self._reading() as connection:
            return all_rows(connection, "PRAGMA integrity_check(1)") == [("ok",)]

    def ping(self) -> None:
        with self._reading() as connection:
            all_rows(connection, "SELECT 1 FROM entry LIMIT 1")
        self._connections.check_writable()

    # -- writes --------------------------------------------------------------------------------------------------------

    def write(self, write: Write) -> Entry | None:
        return self._transaction(lambda connection: carry_out(connection, self._writing.run, write, self._clock()))

    def apply(self, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        if has_writes(operations):
            return self._transaction(lambda connection: self._apply(connection, operations, load))
        with self._reading() as connection:
            all_rows(connection, "BEGIN")
            try:
                return self._apply(connection, operations, load)
            finally:
                all_rows(connection, "COMMIT")

    def _apply(self, connection: apsw.Connection, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        return apply(connection, self._writing.run, operations, load, self._clock(), self._search_seconds)

    def touch(self, scope: Scope, keys: Sequence[str]) -> None:
        self._touches.touch(scope.path, keys, self._clock)

    # -- blobs and sweeping --------------------------------------------------------------------------------------------

    def stage(self, blobs: Sequence[BlobRow]) -> None:
        self._transaction(lambda connection: sweep.put_blobs(connection, blobs))

    def renew(self, blob_id: str) -> bool:
        return self._transaction(lambda connection: sweep.renew(connection, blob_id, self._clock()))

    def claim_blobs(self, *, staged_before: int, garbage_before: int, limit: int) -> list[BlobRow]:
        return self._transaction(
            lambda connection: sweep.claim_blobs(
                connection, self._clock(), staged_before=staged_before, garbage_before=garbage_before, limit=limit
            )
        )

    def dead_blobs(self, *, before: int, limit: int) -> list[BlobRow]:
        with self._reading() as connection:
            return sweep.dead_blobs(connection, before=before, limit=limit)

    def forget_blobs(self, ids: Sequence[str]) -> None:
        if ids:
            self._transaction(lambda connection: sweep.forget_blobs(connection, ids))

    def expire(self, *, limit: int) -> int:
        return self._transaction(lambda connection: sweep.expire(connection, self._clock(), limit=limit))

    def drop_tombstones(self, *, before: int, limit: int) -> int:
        return self._transaction(lambda connection: sweep.drop_tombstones(connection, before=before, limit=limit))

    def drop_receipts(self, *, before: int, limit: int) -> int:
        return self._transaction(lambda connection: sweep.drop_receipts(connection, before=before, limit=limit))

    def drop_requests(self, *, before: int, limit: int) -> int:
        return self._transaction(
            lambda connection: sweep.drop_requests(connection, self._clock(), before=before, limit=limit)
        )

    def count(self) -> int:
        with self._reading() as connection:
            return int(all_rows(connection, "SELECT count(*) FROM entry")[0][0])

    def stored(self, *, after: tuple[str, str], limit: int) -> list[StoredRow]:
        with self._reading() as connection:
            return copy.stored(connection, after, limit)

    def stored_at(self, places: Collection[tuple[str, str]]) -> list[StoredRow]:
        with self._reading() as connection:
            return copy.stored_at(connection, places)

    def take(self, rows: Sequence[StoredRow]) -> None:
        self._transaction(lambda connection: copy.take(connection, rows, self._clock()))

    def scopes(self, *, after: str, limit: int) -> list[ScopeRow]:
        with self._reading() as connection:
            return copy.scopes(connection, after, limit)

    def scopes_at(self, names: Collection[str]) -> list[ScopeRow]:
        with self._reading() as connection:
            return copy.scopes_at(connection, names)

    def take_scopes(self, rows: Sequence[ScopeRow]) -> None:
        self._transaction(lambda connection: copy.take_scopes(connection, rows))

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
        self._transaction(lambda connection: sweep.put_blobs(connection, [blob]))

    # -- the file as a whole -------------------------------------------------------------------------------------------

    def secret(self, name: str) -> bytes:
        def make(connection: apsw.Connection) -> bytes:
            all_rows(
                connection, "INSERT OR IGNORE INTO secret VALUES (?, ?)", (name, secrets.token_bytes(SECRET_BYTES))
            )
            return check_secret(all_rows(connection, "SELECT value FROM secret WHERE name = ?", (name,))[0][0])

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
