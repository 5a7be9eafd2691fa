"""How the SQLite catalog reads rows, and what counts as live."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import apsw

from ...errors import IntegrityError, TimedOutError
from ...keys import successor
from ...messages import Entry, Scope
from ..catalog import COLUMNS, Row, is_sound, provenance_of

_STEPS: Final = 100_000
"""Steps of SQLite between two looks at the clock: about a millisecond."""

_new: Final = cast(Any, tuple).__new__
"""What the constructors of NamedTuples come down to: without their way there a row takes half the time."""

IS_LIVE: Final = "NOT deleted AND (expires_us IS NULL OR expires_us > ?)"
IS_JSON: Final = "content_type = 'application/json'"
IS_OBJECT: Final = f"{IS_JSON} AND (value IS NULL OR substr(value, 1, 1) = x'7b')"
"""That a value is a JSON object, or a large one that may be."""

PLACE: Final = "rowid AS place, scope AS within, key AS at"
"""What an index says of a row."""

SOUND: Final = "key IS at AND scope IS within AND (typeof(value) = 'null' AND blob_id IS NULL) = deleted"
"""That a row is the one that the index stands for, and has a value unless it is deleted: one bit would hide it.

By its type, which stands in front of the row: ``value IS NULL`` would read all of a value.
"""


def rows_at(places: str, columns: str = COLUMNS) -> str:
    """Return the statement that reads the rows to which an index leads; ``places`` is one that selects PLACE.

    SQLite takes a key from the index and the value from the row, and never compares the two: one flipped bit in the
    index would give the value of another key, or of another scope, or none. So the row's own place is read as well.
    """
    return f"SELECT {columns}, {SOUND}, at FROM ({places}) LEFT JOIN entry ON entry.rowid = place"


def live_rows_at(places: str, columns: str = COLUMNS) -> str:
    """Return ``rows_at`` for the rows that are live, and for those that are not where they should be."""
    return f"{rows_at(places, columns)} WHERE (({IS_LIVE}) OR ({SOUND}) IS NOT TRUE)"


AT_KEY: Final = "SELECT rowid AS place, ?1 AS within, ?2 AS at FROM entry WHERE scope = ?1 AND key = ?2"
"""Where a key is, with the key itself: in a damaged index the place that is found may be another's."""

SELECT_ROW: Final = rows_at(AT_KEY)


def all_rows(connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()) -> list[Any]:
    """Run a statement to its end and return its rows."""
    # apsw types a row as a union of everything that SQLite can hold.
    return connection.execute(statement, bindings).fetchall()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class TimeLimit:
    """How long all searches of a transaction may take together; one that writes keeps all other writers waiting."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._end = 0.0

    def check(self) -> None:
        """Raise TimedOutError if the time of the search is over."""
        if time.monotonic() >= self._end:
            raise TimedOutError(
                "the search took too long: narrow its prefix, and do not search while you write", code="search_timeout"
            )

    @contextmanager
    def of(self, connection: apsw.Connection) -> Generator[None]:
        """End the search in the block by a TimedOutError when the time is over."""
        # What is written in between does not count: a large batch may take as long by itself.
        self._end = time.monotonic() + self._left
        self.check()
        connection.set_progress_handler(lambda: time.monotonic() >= self._end, _STEPS)
        try:
            yield
        except apsw.InterruptError:
            self.check()
            raise
        finally:
            connection.set_progress_handler(None)
            self._left = self._end - time.monotonic()


def damaged(key: str) -> IntegrityError:
    return IntegrityError(f"the entry of {key!r} is damaged in the database file")


def to_row(row: Any) -> Row:
    """Return what a row of ``rows_at`` says."""
    provenance, data = row[12], row[16]
    try:
        if row[17] and is_sound(row) and (data is None or type(data) is bytes):
            if provenance is not None:
                provenance = provenance_of(provenance)
            entry = _new(Entry, (*row[:12], provenance, False))
            return _new(Row, (entry, data, row[14], row[15]))
    except ValueError:
        pass
    raise damaged(row[18])


def live_row(row: Any, now: int) -> Row | None:
    """Return what a row of ``rows_at`` says, None if it is deleted or expired."""
    found = to_row(row)
    return None if row[13] or (row[11] is not None and row[11] <= now) else found


def read_row(connection: apsw.Connection, scope: str, key: str, now: int) -> Row | None:
    """Return the row of a key, None if it is absent, deleted or expired."""
    rows = all_rows(connection, SELECT_ROW, (scope, key))
    return live_row(rows[0], now) if rows else None


def key_range(
    scope: Scope, prefix: str, *, start: str | None = None, after: str | None = None, before: str | None = None
) -> tuple[str, list[Any]]:
    """Return the condition that a key starts with ``prefix``, and its bindings.

    Those from ``start`` on, those that follow ``after``, or those ahead of ``before``; none of the three comes before
    the prefix. SQLite begins to read at one bound and tests others on each row: beside the prefix's own, a page would
    cost all pages ahead of it.
    """
    bounds = [(">=", start or prefix) if after is None else (">", after)]
    end = successor(prefix) if before is None else before
    if end is not None:
        bounds.append(("<", end))
    where = "".join(f" AND key {comparison} ?" for comparison, _ in bounds)
    return f"scope = ?{where}", [scope.path, *(bound for _, bound in bounds)]
