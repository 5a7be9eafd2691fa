"""How the PostgreSQL catalog reads rows, the time, and what counts as live."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ...errors import IntegrityError, TimedOutError
from ...keys import successor
from ...messages import Entry, Scope
from ..catalog import GARBAGE, Row, is_sound, provenance_of

DATABASE_TIME: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


def now(parameter: str = "%(now)s") -> str:
    """Return the expression of the time in microseconds; tests bind one of their own."""
    return f"coalesce({parameter}::bigint, {DATABASE_TIME})"


def live(parameter: str = "%(now)s") -> str:
    """Return the condition that a row of ``entry`` is neither deleted nor expired."""
    return f"NOT entry.deleted AND (entry.expires_us IS NULL OR entry.expires_us > {now(parameter)})"


def retire(source: str, scope: str, blob_id: str, at: str) -> str:
    """Return the statement that makes garbage of the blobs that the rows of ``source`` have let go of.

    A blob that was staged and committed while the statement waited for its row is not in the statement's snapshot: an
    UPDATE would not find it, but an INSERT meets it.
    """
    return (
        "INSERT INTO agent_memory.blob AS blob (id, scope, key, size, state, at_us) "
        f"SELECT {blob_id}, {scope}, key, 0, '{GARBAGE}', {at} FROM {source} WHERE {blob_id} IS NOT NULL "
        "ON CONFLICT (id) DO UPDATE SET state = excluded.state, at_us = excluded.at_us "
        # A row that is damaged may name the blob of another key, which is still in use.
        "WHERE (blob.scope, blob.key) = (excluded.scope, excluded.key)"
    )


class TimeLimit:
    """How long all searches of a transaction may take together.

    PostgreSQL limits each statement, each piece that a cursor fetches is one, and what is done with the rows is none.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise TimedOutError if the time is over."""
        if time.monotonic() >= self._end:
            raise search_timeout()

    def on(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Iterate over rows while there is time."""
        for row in rows:
            self.check()
            yield row


def search_timeout() -> TimedOutError:
    return TimedOutError("PostgreSQL: the search took too long: narrow its prefix", code="search_timeout")


NOW: Final = now()
IS_LIVE: Final = live()


def to_row(row: Any) -> Row:
    """Return what a row of COLUMNS says."""
    try:
        if is_sound(row):
            facts: Any = (*row[:12], provenance_of(row[12]), False)
            return Row(Entry._make(facts), row[16], row[14], row[15])
    except ValueError:
        pass
    raise IntegrityError(f"the entry of {row[0]!r} is damaged in the database")


def key_range(scope: Scope, prefix: str) -> tuple[str, dict[str, Any]]:
    """Return the condition that a key of ``entry`` starts with ``prefix``, and its bindings."""
    end = successor(prefix)
    where = "entry.scope = %(scope)s AND entry.key >= %(start)s"
    if end is None:
        return where, {"scope": scope.path, "start": prefix}
    return f"{where} AND entry.key < %(end)s", {"scope": scope.path, "start": prefix, "end": end}
