"""Search in the SQLite catalog: filters on JSON objects, the newest first, and similarity of vectors.

SQLite narrows a filter down with bound JSON paths and values; ``filters.matches`` has the last word on every row, so
that a filter means the same in every catalog.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import apsw
import pydantic_core

from ..errors import InvalidRequestError
from ..filters import AllOf, AnyOf, Comparison, Condition, matches, parse
from ..messages import JSON, CommitWrite, ListParents, Search
from .catalog import LoadBlob, Row, ScoredRow
from .sqlite_rows import COLUMNS, IS_LIVE, all_rows, key_range, to_row

_SQL_OPERATORS: Final = {"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_IS_OBJECT: Final = (
    "NOT deleted AND content_type = 'application/json' AND (value IS NULL OR substr(value, 1, 1) = x'7b')"
)


def search(connection: apsw.Connection, request: Search, now: int, load: LoadBlob) -> list[ScoredRow]:
    """Return the hits of a search; see ``messages.Search``."""
    condition = parse(request.filter)
    found: list[ScoredRow] = []
    skip = request.offset
    for scored in _candidates(connection, request, condition, now):
        if not _holds(condition, scored.row, load):
            continue
        if skip:
            skip -= 1
            continue
        found.append(scored)
        if len(found) == request.limit:
            break
    return found


def _candidates(connection: apsw.Connection, request: Search, condition: AllOf, now: int) -> Iterator[ScoredRow]:
    where, bindings = key_range(request.scope, request.prefix)
    narrow, narrow_bindings = _narrow(condition)
    if request.vector is None:
        sql = (
            f"SELECT {COLUMNS}, NULL FROM entry WHERE {where} AND {IS_LIVE} AND {_IS_OBJECT} AND {narrow} "
            "ORDER BY updated_us DESC, key"
        )
        values = (*bindings, now, *narrow_bindings)
    else:
        _load_vector_functions(connection)
        sql = (
            "WITH best AS MATERIALIZED ("
            "SELECT key AS vector_key, max(1.0 - vec_distance_cosine(embedding, ?)) AS score "
            f"FROM vector WHERE {where} AND length(embedding) = ? GROUP BY key) "
            f"SELECT {COLUMNS}, score FROM entry LEFT JOIN best ON vector_key = key "
            f"WHERE {where} AND {IS_LIVE} AND {_IS_OBJECT} AND {narrow} "
            "ORDER BY score IS NULL, score DESC, updated_us DESC, key"
        )
        values = (request.vector, *bindings, len(request.vector), *bindings, now, *narrow_bindings)
    if not condition.terms:
        # Without a filter every candidate is a hit: SQLite need not sort more of them than are wanted.
        sql += " LIMIT ?"
        values = (*values, request.limit + request.offset)
    cursor: Any = cast(Any, connection).execute(sql, values)
    try:
        for row in cursor:
            yield ScoredRow(to_row(row[:-1]), row[-1])
    finally:
        cursor.close()


def _holds(condition: AllOf, row: Row, load: LoadBlob) -> bool:
    if row.data is not None and not condition.terms:
        return True
    try:
        value = pydantic_core.from_json(row.data if row.data is not None else load(row))
    except ValueError:
        # One unreadable row never fails a search; reading it by key says what is wrong with it.
        return False
    return isinstance(value, dict) and matches(condition, cast("dict[str, Any]", value))


def _narrow(condition: Condition) -> tuple[str, list[Any]]:
    """Return an SQL condition that holds at least wherever ``condition`` does, and its bindings."""
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
    # A quote cannot be escaped in a path of SQLite's, and only plain values compare there as they do here.
    if comparison is None or '"' in field or not isinstance(operand, str | int | float):
        return "TRUE", []
    if isinstance(operand, int) and abs(operand) >= 2**53:
        return "TRUE", []
    paths = ['$."' + field + '"']
    if "." in field:
        paths.append("$" + "".join(f'."{part}"' for part in field.split(".")))
    tests = " OR ".join(f"json_extract(value, ?) {comparison} ?" for _ in paths)
    # CASE, because AND need not be carried out from left to right, and looking into what is no JSON is an error.
    return f"(value IS NULL OR CASE WHEN json_valid(value, 1) THEN {tests} END)", [
        one for path in paths for one in (path, operand)
    ]


def list_parents(connection: apsw.Connection, request: ListParents, now: int) -> list[str]:
    """Return distinct parents after the cursor, in byte order, at most ``limit``."""
    where, bindings = key_range(request.scope, request.prefix)
    # Trimming from the right every character that is no slash leaves the key up to its last one.
    sql = (
        "SELECT DISTINCT rtrim(key, replace(key, '/', '')) AS parent FROM entry "
        f"WHERE {where} AND {IS_LIVE} AND {_IS_OBJECT} AND instr(key, '/') > 0 AND parent > ? ORDER BY parent LIMIT ?"
    )
    cursor = "" if request.cursor is None else request.cursor
    return [str(row[0]) for row in all_rows(connection, sql, (*bindings, now, cursor, request.limit))]


# -- vectors ---------------------------------------------------------------------------------------------------------


def keep_vectors(connection: apsw.Connection, write: CommitWrite) -> None:
    """Remember the vectors that stand for a value."""
    if write.vectors and write.content_type != JSON:
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
