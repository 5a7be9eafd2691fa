"""Search in the SQLite catalog: filters on JSON objects, the newest first, and similarity of vectors.

SQLite narrows a filter down (see ``narrowing``); ``filters.matches`` has the last word on every row, so that a
filter means the same in every catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

import apsw

from ...filters import parse
from ...messages import JSON, Search
from ..catalog import LoadBlob, Row, ScoredRow
from ..finding import holds
from .narrowing import narrow
from .rows import IS_JSON, IS_LIVE, IS_OBJECT, PLACE, TimeLimit, all_rows, key_range, read_row, rows_at, to_row
from .vectors import load_vector_functions

_MANY: Final = 1_000
_SAMPLE: Final = 200
_SPARE: Final = 50
_NEWEST_FIRST: Final = "ORDER BY updated_us DESC, key"
_SELECT_PLACE: Final = rows_at("SELECT ? AS place, ? AS within, ? AS at")

_VALUE: Final = "CAST(value AS TEXT)"
"""As text, because bytes may happen to look like SQLite's binary JSON."""

_VALID_VALUE: Final = f"CASE WHEN json_valid({_VALUE}, 2) THEN {_VALUE} END"
"""With 2 also NaN is valid, which other clients may write and ``finding.holds`` reads."""


def search(connection: apsw.Connection, request: Search, now: int, load: LoadBlob, limit: TimeLimit) -> list[ScoredRow]:
    """Return the hits of a search; see ``messages.Search``."""
    return _Search(connection, request, now, load, limit).page()


class _Search:
    """One search, with what each of its statements needs."""

    def __init__(
        self, connection: apsw.Connection, request: Search, now: int, load: LoadBlob, limit: TimeLimit
    ) -> None:
        self._connection = connection
        self._request = request
        self._condition = parse(request.filter)
        self._now = now
        self._load = load
        self._limit = limit
        where, self._bindings = key_range(request.scope, request.prefix)
        self._where = f"{where} AND instr(key, '/') > 0" if request.nested else where

    def page(self) -> list[ScoredRow]:
        """Return the hits that were asked for."""
        first, end = self._request.offset, self._request.offset + self._request.limit
        if self._request.vector is not None:
            return list(islice(self._most_similar(), first, end))
        rows = None if self._condition.terms else self._newest_of_all()
        if rows is None:
            rows = islice(self._newest(), first, end)
        return [ScoredRow(row, None) for row in rows]

    # -- the newest first ----------------------------------------------------------------------------------------------

    def _newest_of_all(self) -> list[Row] | None:
        """Return the rows of a search without a filter; None if some of them may be no objects.

        Looking whether a row is an object takes as long as finding it, so only those that are fetched are looked at.
        """
        offset, limit = self._request.offset, self._request.limit
        newer, sample = self._newer_than_a_sample()
        # Only rowids are sorted: sorting rows with their values takes twice as long.
        places = f"SELECT {PLACE} FROM entry WHERE {self._where}{newer} AND {IS_LIVE} {_NEWEST_FIRST} LIMIT ?"
        bindings = [*self._bindings, *sample, self._now]
        if offset:
            strange = (
                f"SELECT 1 FROM entry WHERE rowid IN (SELECT place FROM ({places})) "
                f"AND (value IS NULL OR ({IS_OBJECT}) IS NOT TRUE) LIMIT 1"
            )
            if all_rows(self._connection, strange, (*bindings, offset)):
                return None
        sql = f"{rows_at(f'{places} OFFSET ?')} {_NEWEST_FIRST}"
        rows = [to_row(row) for row in all_rows(self._connection, sql, (*bindings, limit, offset))]
        return rows if all(map(_is_small_object, rows)) else None

    def _newer_than_a_sample(self) -> tuple[str, list[Any]]:
        """Return a condition that spares most rows of a large range the sorting, and its bindings.

        Of ten rows that are wanted none is older than the tenth newest of a sample: the sample alone has ten that are
        as new.
        """
        if not all_rows(
            self._connection, f"SELECT 1 FROM entry WHERE {self._where} LIMIT 1 OFFSET {_MANY}", self._bindings
        ):
            return "", []
        sample = f"SELECT updated_us FROM entry WHERE {self._where} AND {IS_LIVE} ORDER BY key DESC LIMIT {_SAMPLE}"
        oldest = f"SELECT updated_us FROM ({sample}) ORDER BY updated_us DESC LIMIT 1 OFFSET ?"
        last = self._request.offset + self._request.limit - 1
        return f" AND updated_us >= coalesce(({oldest}), updated_us)", [*self._bindings, self._now, last]

    def _newest(self) -> Iterator[Row]:
        """Iterate over the rows that fulfil the condition, the newest change first, fetching each when it is wanted."""
        for place in self._over_candidates(f"SELECT {PLACE} FROM entry WHERE {{candidates}} {_NEWEST_FIRST}"):
            self._limit.check()
            row = to_row(all_rows(self._connection, _SELECT_PLACE, place)[0])
            if holds(self._condition, row, self._load):
                yield row

    def _over_candidates(self, sql: str, *, before: Sequence[Any] = (), after: Sequence[Any] = ()) -> list[Any]:
        """Run a statement in which ``{candidates}`` stands for the condition of rows that may be hits.

        ``before`` and ``after`` are the bindings of what stands before and after it.
        """
        # A row that a filter holds for is looked at again; without one, the first byte tells.
        kind = IS_JSON if self._condition.terms else IS_OBJECT
        narrowed, values = narrow(self._condition)
        sql = sql.replace("{candidates}", f"{self._where} AND {IS_LIVE} AND {kind} AND {narrowed}")
        bindings = [*before, *self._bindings, self._now, *values, *after]
        try:
            return all_rows(self._connection, sql.replace("{value}", _VALUE), bindings)
        except apsw.SQLError:
            # Some value is no JSON, and looking into it is an error. That is rare: values are tested only now.
            return all_rows(self._connection, sql.replace("{value}", _VALID_VALUE), bindings)

    # -- the most similar first ----------------------------------------------------------------------------------------

    def _most_similar(self) -> Iterator[ScoredRow]:
        """Iterate over the hits, the most similar first, the newest of equals; then over those without a score.

        The best vectors alone are enough for a page as a rule. If they are not, because several stand for one key or
        their keys are no hits, more of them are taken.
        """
        most = 2 * (self._request.offset + self._request.limit) + _SPARE
        seen: set[str] = set()
        while True:
            best, complete = self._best_scores(most)
            self._limit.check()
            for score, group in groupby(best.items(), key=lambda one: one[1]):
                rows = [self._live_object(key) for key, _ in group if key not in seen]
                hits = [row for row in rows if row is not None and holds(self._condition, row, self._load)]
                for row in sorted(hits, key=lambda row: (-row.entry.updated_us, row.entry.key)):
                    seen.add(row.entry.key)
                    yield ScoredRow(row, score)
            if complete:
                break
            most *= 10
        for row in self._newest():
            if row.entry.key not in best:
                yield ScoredRow(row, None)

    def _best_scores(self, most: int) -> tuple[dict[str, float], bool]:
        """Return keys with the score of their best vector, in falling order, and whether these are all there are."""
        load_vector_functions(self._connection)
        vector: Any = self._request.vector
        sql = (
            "SELECT key, 1.0 - vec_distance_cosine(embedding, ?) AS score FROM vector "
            "WHERE {range} AND length(embedding) = ? ORDER BY score DESC LIMIT ?"
        )
        if self._condition.terms:
            # Far fewer distances are to be computed when the filter comes first.
            sql = sql.replace("{range}", "scope = ? AND key IN (SELECT key FROM entry WHERE {candidates})")
            before, after = [vector, self._request.scope.path], [len(vector), most]
            rows = self._over_candidates(sql, before=before, after=after)
        else:
            sql = sql.replace("{range}", self._where)
            rows = all_rows(self._connection, sql, (vector, *self._bindings, len(vector), most))
        # A vector of zeros is similar to nothing: it has no score, and sorts last.
        scored = [(key, score) for key, score in rows if score is not None]
        complete = len(scored) < most
        if not complete:
            # Others with the last score may have been cut off, and would come first if they are newer.
            last = scored[-1][1]
            scored = [one for one in scored if one[1] > last]
        best: dict[str, float] = {}
        for key, score in scored:
            best.setdefault(key, score)
        return best, complete

    def _live_object(self, key: str) -> Row | None:
        row = read_row(self._connection, self._request.scope.path, key, self._now)
        return row if row is not None and _is_object(row) else None


def _is_object(row: Row) -> bool:
    return row.entry.content_type == JSON and (row.data is None or row.data.startswith(b"{"))


def _is_small_object(row: Row) -> bool:
    return row.data is not None and _is_object(row)
