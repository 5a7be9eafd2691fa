"""Keeping the write-ahead log of a SQLite file short.

SQLite moves what the log holds into the database once it has a thousand pages, but begins it anew only in a moment in
which no reader needs it: readers that overlap all the time keep it growing. (Measured: six, by 3 MB a second.)
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import apsw

from .busy import waiting

_EVERY_ROWS: Final = 64
"""A hook of SQLite's, called after each commit, would take 2 µs of it. Values in the catalog add 4 MiB in between, and
what one batch holds."""

_LONG_BYTES: Final = 16 * 1024 * 1024

_BYTES_A_SECOND: Final = 160 * 1024 * 1024
"""For a log so long a checkpoint waits a second, while no process writes. Each process finds out for itself that a
reader stays: at a second each, six of them held all writers up for six in a row."""


class Checkpoints:
    """Looks at the length of a database's log from time to time, after a commit and before the next one.

    ``busy_seconds`` is how long the connection waits otherwise.
    """

    def __init__(self, database: Path, busy_seconds: float) -> None:
        self._busy_seconds = busy_seconds
        # SQLite follows symbolic links before it names the log.
        self._log = f"{os.path.realpath(database)}-wal"
        self._rows = 0
        self._patient_from = _LONG_BYTES

    def after_commit(self, connection: apsw.Connection) -> None:
        """Wait for readers where the log is long; where one stays for too long, again at twice the length."""
        rows = connection.total_changes()
        if rows < self._rows + _EVERY_ROWS:
            return
        self._rows = rows
        # Whatever comes of it, the commit is done, and a later one tries again.
        with suppress(apsw.Error, OSError):
            length = os.stat(self._log).st_size
            if length < _LONG_BYTES:
                self._patient_from = _LONG_BYTES
            elif length >= self._patient_from:
                self._patient_from = 2 * length
                connection.set_busy_handler(waiting(min(length / _BYTES_A_SECOND, self._busy_seconds)))
                try:
                    # New readers take what is in the database by then, so that it waits for one read at most.
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                finally:
                    connection.set_busy_handler(waiting(self._busy_seconds))
