"""Search in the SQLite catalog: filters on JSON objects, the newest first, and similarity of vectors.

SQLite narrows a filter down with bound JSON paths and values; ``filters.matches`` has the last word on every row, so
that a filter means the same in every catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, islice
from typing import Any, Final, cast

import apsw

from ..errors import InvalidRequestError
from ..filters import AllOf, AnyOf, Comparison, Condition, parse
from ..messages import JSON, CommitWrite, ListParents, Search
from .catalog import COLUMNS, LoadBlob, Row, ScoredRow, chosen_parents, holds, shown_name
from .sqlite_rows import IS_LIVE, TimeLimit, all_rows, key_range, to_row

_SQL_OPERATORS: Final = {"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_MANY: Final = 1_000
_SAMPLE: Final = 200
_NEWEST_FIRST: Final = "ORDER BY updated_us DESC, key"
_GLOB_SIGNS: Final = re.compile(r"[*?\[]")
_LONGEST_PATTERN: Final = 1_000
_IS_JSON: Final = "content_type = 'application/json'"
_IS_OBJECT: Final = f"{_IS_JSON} AND (value IS NULL OR substr(value, 1, 1) = x'7b')"


def search(connection: apsw.Connection, request: Search, now: int, load: LoadBlob, limit: TimeLimit) -> list[ScoredRow]:
    """Return the hits of a search; see ``messages.Search``."""
    condition = parse(request.filter)
    if request.vector is None and not condition.terms:
        page = _newest_page(connection, request, now)
        if page is not None:
            return [ScoredRow(row, None) for row in page]
    if request.vector is None:
        hits = (ScoredRow(row, None) for row in _newest(connection, request, condition, now, load, limit))
    else:
        hits = _most_similar(connection, request, condition, now, load, limit)
    return list(islice(hits, request.offset, request.offset + request.limit))


def _newest_page(connection: apsw.Connection, request: Search, now: int) -> list[Row] | None:
    """Return the rows of a search for everything; None if there may be some among them that are no objects.

    Looking whether a row is an object takes as long as finding it, so only those that are fetched are looked at.
    """
    where, bindings = _place(request)
    newer, sample = _newer_than_a_sample(connection, request, now)
    # Only rowids are sorted: sorting rows with their values takes twice as long.
    places = f"SELECT rowid AS place FROM entry WHERE {where}{newer} AND {IS_LIVE} {_NEWEST_FIRST} LIMIT ?"
    bindings += [*sample, now]
    if request.offset:
        strange = (
            f"SELECT 1 FROM entry WHERE rowid IN ({places}) AND (value IS NULL OR ({_IS_OBJECT}) IS NOT TRUE) LIMIT 1"
        )
        if all_rows(connection, strange, (*bindings, request.offset)):
            return None
    sql = f"SELECT {COLUMNS} FROM ({places} OFFSET ?) CROSS JOIN entry ON entry.rowid = place {_NEWEST_FIRST}"
    rows = [to_row(row) for row in all_rows(connection, sql, (*bindings, request.limit, request.offset))]
    return rows if all(map(_is_small_object, rows)) else None


def _is_small_object(row: Row) -> bool:
    return row.data is not None and row.entry.content_type == JSON and row.data.startswith(b"{")


def _newer_than_a_sample(connection: apsw.Connection, request: Search, now: int) -> tuple[str, list[Any]]:
    """Return a condition that spares most rows of a large range the sorting, and its bindings.

    Whatever rows one takes, the tenth newest of all is not older than the tenth newest of these.
    """
    where, bindings = _place(request)
    if not all_rows(connection, f"SELECT 1 FROM entry WHERE {where} LIMIT 1 OFFSET {_MANY}", bindings):
        return "", []
    sample = f"SELECT updated_us FROM entry WHERE {where} AND {IS_LIVE} ORDER BY key DESC LIMIT {_SAMPLE}"
    oldest = f"SELECT updated_us FROM ({sample}) ORDER BY updated_us DESC LIMIT 1 OFFSET ?"
    return f" AND updated_us >= coalesce(({oldest}), updated_us)", [*bindings, now, request.offset + request.limit - 1]


def _newest(
    connection: apsw.Connection, request: Search, condition: AllOf, now: int, load: LoadBlob, limit: TimeLimit
) -> Iterator[Row]:
    """Iterate over the rows that fulfil the condition, the newest change first; they are fetched as they are wanted."""
    sql = f"SELECT rowid FROM entry WHERE {{}} {_NEWEST_FIRST}"
    for (rowid,) in _over_candidates(connection, sql, request, condition, now):
        limit.check()
        row = _row_at(connection, rowid)
        if holds(condition, row, load):
            yield row


def _place(request: Search) -> tuple[str, list[Any]]:
    """Return the condition that a key is one of those searched, and its bindings."""
    where, bindings = key_range(request.scope, request.prefix)
    return (f"{where} AND instr(key, '/') > 0" if request.nested else where), bindings


def _row_at(connection: apsw.Connection, rowid: int) -> Row:
    return to_row(all_rows(connection, f"SELECT {COLUMNS} FROM entry WHERE rowid = ?", (rowid,))[0])


def _over_candidates(
    connection: apsw.Connection, sql: str, request: Search, condition: AllOf, now: int, *,
    before: Sequence[Any] = (), after: Sequence[Any] = (),
) -> list[Any]:  # fmt: skip
    """Run a statement in which ``{}`` stands for the condition of rows that may be hits."""
    where, bindings = _place(request)
    # A row that a filter holds for is looked at again; without one, the first byte tells.
    where = f"{where} AND {IS_LIVE} AND {_IS_JSON if condition.terms else _IS_OBJECT}"
    mentions, texts = _mentions(condition)
    narrow, values = _narrow(condition)
    narrow = f"{mentions} AND {narrow}"
    bindings = [*before, *bindings, now, *texts, *values, *after]
    try:
        return all_rows(connection, sql.replace("{}", f"{where} AND {narrow.replace('{}', _VALUE)}"), bindings)
    except apsw.SQLError:
        # Looking into what is no JSON is an error. Hardly any row is none, so it is only looked out for when it is met.
        return all_rows(connection, sql.replace("{}", f"{where} AND {narrow.replace('{}', _VALID_VALUE)}"), bindings)


_VALUE: Final = "CAST(value AS TEXT)"
"""As text, because bytes may happen to look like SQLite's binary JSON."""

_VALID_VALUE: Final = f"CASE WHEN json_valid({_VALUE}) THEN {_VALUE} END"


def _most_similar(
    connection: apsw.Connection, request: Search, condition: AllOf, now: int, load: LoadBlob, limit: TimeLimit
) -> Iterator[ScoredRow]:
    """Iterate over the hits, the most similar first, the newest of equals; then over those without a score.

    The best vectors alone are enough for a page as a rule. If they are not, because several stand for one key or their
    keys are no hits, more of them are taken.
    """
    most = 2 * (request.offset + request.limit) + _SPARE
    seen: set[str] = set()
    while True:
        best, complete = _best_scores(connection, request, condition, now, most)
        limit.check()
        for score, group in groupby(best.items(), key=lambda one: one[1]):
            rows = [_live_object(connection, request, key, now) for key, _ in group if key not in seen]
            hits = [row for row in rows if row is not None and holds(condition, row, load)]
            for row in sorted(hits, key=lambda row: (-row.entry.updated_us, row.entry.key)):
                seen.add(row.entry.key)
                yield ScoredRow(row, score)
        if complete:
            break
        most *= 10
    for row in _newest(connection, request, condition, now, load, limit):
        if row.entry.key not in best:
            yield ScoredRow(row, None)


_SPARE: Final = 50


def _best_scores(
    connection: apsw.Connection, request: Search, condition: AllOf, now: int, most: int
) -> tuple[dict[str, float], bool]:
    """Return keys with the score of their best vector, in falling order, and whether these are all there are."""
    _load_vector_functions(connection)
    vector: Any = request.vector
    sql = (
        "SELECT key, 1.0 - vec_distance_cosine(embedding, ?) AS score FROM vector "
        "WHERE {} AND length(embedding) = ? ORDER BY score DESC LIMIT ?"
    )
    if condition.terms:
        # Far fewer distances are to be computed when the filter comes first.
        sql = sql.replace("{}", "scope = ? AND key IN (SELECT key FROM entry WHERE {})")
        before, after = [vector, request.scope.path], [len(vector), most]
        rows = _over_candidates(connection, sql, request, condition, now, before=before, after=after)
    else:
        where, bindings = _place(request)
        rows = all_rows(connection, sql.replace("{}", where), (vector, *bindings, len(vector), most))
    # A vector of zeros is similar to nothing: it has no score, and sorts last.
    scored = [(key, score) for key, score in rows if score is not None]
    complete = len(scored) < most
    if not complete:
        # What has the last score may have equals that were cut off, which come first if they are newer.
        last = scored[-1][1]
        scored = [one for one in scored if one[1] > last]
    best: dict[str, float] = {}
    for key, score in scored:
        best.setdefault(key, score)
    return best, complete


def _live_object(connection: apsw.Connection, request: Search, key: str, now: int) -> Row | None:
    rows = all_rows(
        connection,
        f"SELECT {COLUMNS} FROM entry WHERE scope = ? AND key = ? AND {IS_LIVE} AND {_IS_OBJECT}",
        (request.scope.path, key, now),
    )
    return to_row(rows[0]) if rows else None


def _mentions(condition: Condition) -> tuple[str, list[Any]]:
    """Return an SQL condition that holds at least where the texts that ``condition`` asks for occur, and its bindings.

    JSON holds a text as it is, or with a backslash in it. Looking for either takes a third of the time that looking
    into the JSON takes. ``{}`` stands for the value as text.
    """
    match condition:
        case AllOf(terms):
            return _joined([part for part in map(_mentions, terms) if part[0] != "TRUE"], " AND ")
        case AnyOf(terms):
            return _any_mentioned([_mentions(term) for term in terms])
        case Comparison(_, "$eq", str() as operand) if _same_in_sql("", operand) and len(operand) <= _LONGEST_PATTERN:
            pattern = "*" + _GLOB_SIGNS.sub(r"[\g<0>]", operand) + "*"
            return r"(value IS NULL OR {} GLOB ? OR {} GLOB '*\*')", [pattern]
        case Comparison(field, "$in", operand):
            return _any_mentioned([_mentions(Comparison(field, "$eq", one)) for one in operand])
        case _:
            return "TRUE", []


def _any_mentioned(parts: list[tuple[str, list[Any]]]) -> tuple[str, list[Any]]:
    return _joined(parts, " OR ") if parts and all(part != "TRUE" for part, _ in parts) else ("TRUE", [])


def _narrow(condition: Condition) -> tuple[str, list[Any]]:
    """Return an SQL condition that holds at least wherever ``condition`` does, and its bindings.

    ``{}`` stands in it for the value as JSON text.
    """
    match condition:
        case AllOf(terms):
            parts = [_narrow(term) for term in terms]
            return _joined(parts, " AND ")
        case AnyOf(terms):
            parts = [_narrow(term) for term in terms]
            return _joined(parts, " OR ") if parts else ("FALSE", [])
        case Comparison(field, operator, operand):
            return _narrow_comparison(field, operator, operand)


def _joined(parts: list[tuple[str, list[Any]]], word: str) -> tuple[str, list[Any]]:
    sql = word.join(part for part, _ in parts)
    return (f"({sql})" if sql else "TRUE"), [one for _, bindings in parts for one in bindings]


def _narrow_comparison(field: str, operator: str, operand: Any) -> tuple[str, list[Any]]:
    comparison = _SQL_OPERATORS.get(operator)
    if comparison is None or not _same_in_sql(field, operand):
        return "TRUE", []
    paths = ['$."' + field + '"']
    if "." in field:
        paths.append("$" + "".join(f'."{part}"' for part in field.split(".")))
    tests = " OR ".join(f"json_extract({{}}, ?) {comparison} ?" for _ in paths)
    return f"(value IS NULL OR {tests})", [one for path in paths for one in (path, operand)]


def _same_in_sql(field: str, operand: Any) -> bool:
    """Say whether SQLite finds the field and compares with the operand as ``filters`` does."""
    if not field.isprintable() or '"' in field or "\\" in field:
        return False
    match operand:
        case str():
            # Text ends at a NUL in SQLite, and lone surrogates cannot be bound.
            return ("\0" not in operand and operand.isascii()) or operand.isprintable()
        case int():
            return abs(operand) < 2**53
        case float():
            # A larger integer is a rounded number to SQLite.
            return abs(operand) < 2**63
        case _:
            return False


def list_parents(connection: apsw.Connection, request: ListParents, now: int, limit: TimeLimit) -> list[str]:
    """Return a page of names; see ``messages.ListParents``."""
    return chosen_parents(request, _parents(connection, request, now, limit))


def _parents(connection: apsw.Connection, request: ListParents, now: int, limit: TimeLimit) -> Iterator[str]:
    """Iterate over the parents after the cursor, in byte order, of one name the first; each is looked for when wanted.

    From a key that is found the way leads to the first one in another parent: what each of these enters is what comes
    next in the order of names.
    """
    last = request.cursor or ""
    parent = _parent_of(last)
    place = max(request.prefix, last)
    while (key := _first_elsewhere(connection, request, place, parent)) is not None:
        # No statement of these takes long, but there may be many.
        limit.check()
        place, parent = key, _parent_of(key)
        for name in accumulate(f"{segment}/" for segment in parent.split("/")[:-1]):
            if last.startswith(name) or not _holds_objects(connection, request, name, now):
                continue
            yield name
            shown = shown_name(request, name)
            if shown is not None and shown.count("/") == request.depth:
                # All others below it would have the same name.
                place, parent = _end_of(shown), ""
                last = shown
                break
        else:
            last = parent


def _first_elsewhere(connection: apsw.Connection, request: ListParents, place: str, parent: str) -> str | None:
    """Return the first key from ``place`` on that has a parent, and another one."""
    where, bindings = key_range(request.scope, request.prefix, start=place)
    rows = all_rows(
        connection,
        f"SELECT key FROM entry WHERE {where} AND instr(key, '/') > 0 "
        "AND (instr(substr(key, ?), '/') > 0 OR key >= ?) ORDER BY key LIMIT 1",
        (*bindings, len(parent) + 1, _end_of(parent)),
    )
    return str(rows[0][0]) if rows else None


def _end_of(parent: str) -> str:
    # "0" follows "/" in every encoding of text: the smallest key that no longer starts with the parent.
    return f"{parent[:-1]}0"


def _parent_of(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _holds_objects(connection: apsw.Connection, request: ListParents, parent: str, now: int) -> bool:
    """Say whether some of a parent's own keys, among those listed, are live objects."""
    where, bindings = key_range(request.scope, max(parent, request.prefix))
    return bool(
        all_rows(
            connection,
            f"SELECT 1 FROM entry WHERE {where} AND instr(substr(key, ?), '/') = 0 AND {IS_LIVE} AND {_IS_OBJECT} "
            "LIMIT 1",
            (*bindings, len(parent) + 1, now),
        )
    )


# -- vectors ---------------------------------------------------------------------------------------------------------


def keep_vectors(connection: apsw.Connection, write: CommitWrite) -> None:
    """Remember the vectors that stand for a value."""
    if write.content_type != JSON:
        raise InvalidRequestError("only a JSON value can have vectors")
    for number, embedding in enumerate(write.vectors):
        all_rows(connection, "INSERT INTO vector VALUES (?, ?, ?, ?)", (write.scope.path, write.key, number, embedding))


def forget_vectors(connection: apsw.Connection, scope: str, key: str) -> None:
    """Forget the vectors of a key: a value that is overwritten, deleted or expired is found no more."""
    all_rows(connection, "DELETE FROM vector WHERE scope = ? AND key = ?", (scope, key))


def _load_vector_functions(connection: apsw.Connection) -> None:
    known = all_rows(connection, "SELECT 1 FROM pragma_function_list WHERE name = 'vec_distance_cosine' LIMIT 1")
    if known:
        return
    try:
        import sqlite_vec  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ImportError("semantic search needs sqlite-vec: pip install 'agent-memory[vectors]'") from None
    connection.enable_load_extension(True)
    connection.load_extension(cast(Any, sqlite_vec).loadable_path())
    connection.enable_load_extension(False)
