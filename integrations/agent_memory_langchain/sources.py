"""Reading the items of LangGraph stores.

A SqliteStore's file and a PostgresStore's database are read directly: with the remaining time to live and the vectors,
which LangGraph's own methods do not give. Any other store is read by those methods.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from langgraph.store.base import BaseStore

from agent_memory import AgentMemoryError, InvalidRequestError, UnavailableError

from .item_schemas import as_json

_ROOTS: Final = 100


class SourceItem(NamedTuple):
    """One item of a source; ``expires_at`` is None if it never does or the source does not say.

    ``problem`` says why the rest of it could not be read.
    """

    namespace: tuple[str, ...]
    key: str
    value: Any
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    vectors: Sequence[Sequence[float]] = ()
    problem: str | None = None


Items: TypeAlias = Generator[SourceItem, None, None]


def items_of(source: str | Path | BaseStore) -> Items:
    """Iterate over the items of a file, a database or an open store; see ``import_langgraph`` for what is raised."""
    if isinstance(source, BaseStore):
        return _items_of_store(source)
    text = str(source)
    if text.startswith(("postgresql://", "postgres://")):
        return _items_of_postgres(text)
    if "://" in text:
        # The rest of it may hold a password.
        raise InvalidRequestError("items are imported from a file or postgresql://, from no other address")
    if not Path(text).is_file():
        raise FileNotFoundError(f"there is no file {text!r} to import from")
    return _items_of_sqlite(Path(text))


def _items_of_store(store: BaseStore) -> Items:
    """Read a store by its methods: what stands under each root label at once, because paging may skip and repeat."""
    offset = 0
    while roots := store.list_namespaces(max_depth=1, limit=_ROOTS, offset=offset):
        offset += len(roots)
        for root in roots:
            limit = 1_000
            while len(found := store.search(root, limit=limit, refresh_ttl=False)) == limit:
                limit *= 4
            for item in sorted(found, key=lambda item: item.updated_at):
                created, updated = _aware(item.created_at), _aware(item.updated_at)
                yield SourceItem(tuple(item.namespace), item.key, as_json(item.value), created, updated)


_COLUMNS: Final = "prefix, key, value, created_at, updated_at"
_ORDER: Final = "ORDER BY updated_at, prefix, key"
_VECTORS: Final = (
    "(SELECT array_agg(embedding::text ORDER BY field_name) FROM store_vectors AS vector "
    "WHERE vector.prefix = store.prefix AND vector.key = store.key AND embedding IS NOT NULL)"
)


def _items_of_sqlite(path: Path) -> Items:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "store" not in tables:
                raise InvalidRequestError(f"{path.name!r} holds no LangGraph store")
            columns = {row[1] for row in connection.execute("PRAGMA table_info(store)")}
            # Stores of older releases have no time to live.
            shown = f"{_COLUMNS}, {'expires_at' if 'expires_at' in columns else 'NULL'}"
            for row in connection.execute(f"SELECT {shown} FROM store {_ORDER}"):
                embeddings: list[Any] = []
                if "store_vectors" in tables:
                    embeddings = connection.execute(
                        "SELECT embedding FROM store_vectors WHERE prefix = ? AND key = ? ORDER BY field_name", row[:2]
                    ).fetchall()
                yield _sqlite_item(row, [blob for (blob,) in embeddings if blob])
    except sqlite3.Error as error:
        raise _sqlite_error(error, path.name) from None


def _sqlite_item(row: Any, vectors: Sequence[bytes]) -> SourceItem:
    prefix, key, value, created, updated, expires = row
    namespace = tuple(prefix.split("."))
    try:
        return SourceItem(
            namespace, key, _json(value), _sqlite_time(created), _sqlite_time(updated),
            None if expires is None else _sqlite_time(expires),
            [struct.unpack(f"<{len(blob) // 4}f", blob) for blob in vectors],
        )  # fmt: skip
    except (ValueError, TypeError, struct.error):
        # Their texts repeat the value.
        now = datetime.now(UTC)
        return SourceItem(namespace, key, None, now, now, problem="a time or a vector of it cannot be read")


def _sqlite_error(error: sqlite3.Error, name: str) -> AgentMemoryError:
    """Return what an error of SQLite means, without its text, which may hold a value."""
    # Errors of the module itself have no code.
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return UnavailableError(f"{name!r} is locked by another program")
        case sqlite3.SQLITE_NOTADB:
            return InvalidRequestError(f"{name!r} is no SQLite database")
        case sqlite3.SQLITE_CORRUPT:
            return InvalidRequestError(f"{name!r} is damaged: not every item can be read")
        case _:
            return UnavailableError(f"{name!r} cannot be read: {type(error).__name__}")


def _items_of_postgres(dsn: str) -> Items:
    try:
        import psycopg
    except ImportError:
        raise ImportError(
            "importing from a PostgresStore needs psycopg: pip install 'agent-memory[postgres]'"
        ) from None
    try:
        with psycopg.connect(dsn) as connection:
            connection.read_only = True
            names = [connection.execute("SELECT to_regclass(%s)", (n,)).fetchone() for n in ("store", "store_vectors")]
            has_store, has_vectors = (row is not None and row[0] is not None for row in names)
            if not has_store:
                raise InvalidRequestError("the database holds no LangGraph store")
            # Stores of older releases have no time to live.
            columns = connection.execute("SELECT * FROM store LIMIT 0").description or ()
            expires = "expires_at" if any(column.name == "expires_at" for column in columns) else "NULL"
            vectors = _VECTORS if has_vectors else "NULL"
            # A cursor on the server's side: the rows come in portions, with their vectors, all of one snapshot.
            with connection.cursor("agent_memory_import") as rows:
                found = rows.execute(f"SELECT {_COLUMNS}, {expires}, {vectors} FROM store {_ORDER}")  # pyright: ignore[reportArgumentType]
                for prefix, key, value, created, updated, expires_at, texts in found:
                    yield SourceItem(
                        tuple(prefix.split(".")), key, value, _aware(created), _aware(updated),
                        None if expires_at is None else _aware(expires_at), list(map(json.loads, texts or ())),
                    )  # fmt: skip
    except psycopg.Error as error:
        # Its own text may repeat the address.
        raise UnavailableError(f"the database to import from cannot be read: {type(error).__name__}") from None


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _sqlite_time(text: Any) -> datetime:
    """Return a time that SQLite's CURRENT_TIMESTAMP or Python wrote: UTC unless it says otherwise."""
    return _aware(datetime.fromisoformat(str(text)))


def _aware(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.utcoffset() is None else time
