"""Keeping the write-ahead log of a SQLite file short.

SQLite moves what the log holds into the database once it has a thousand pages, but begins it anew only in a moment in
which no reader needs it: readers that overlap all the time keep it growing. (Measured: six, by 3 MB a second.)
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import apsw

_PAGES: Final = 1_000
"""From so many on it is tried after each commit without waiting, as SQLite does by itself."""

_LONG_PAGES: Final = 4_000
"""From 16 MiB on, readers are waited for while nobody writes; where one stays too long, again at twice as much."""


class Checkpoints:
    """A hook of the connection that writes: called after each of its commits with the length of the log in pages."""

    def __init__(self) -> None:
        self._patient_from = _LONG_PAGES

    def __call__(self, connection: apsw.Connection, _: str, pages: int) -> int:
        # Whatever comes of it, the commit is done, and the next one tries again.
        with suppress(apsw.Error):
            if pages < _LONG_PAGES:
                self._patient_from = _LONG_PAGES
            if pages >= self._patient_from:
                self._patient_from = 2 * pages
                # New readers take what is in the database by then, so that it waits for one read at most.
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            elif pages >= _PAGES:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK
