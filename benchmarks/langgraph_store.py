"""AgentMemoryStore against LangGraph's SqliteStore, as shipped and with its database switched to WAL.

Where Python's sqlite3 cannot load extensions, SqliteStore's vector search runs its statements through apsw instead.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import apsw
from langgraph.store.base import BaseStore, GetOp, PutOp
from langgraph.store.sqlite import SqliteStore

from agent_memory import AgentMemory
from agent_memory_langchain import AgentMemoryStore
from benchmarks.harness import Row, at_most, table, times_us

MANY: Final = 100
ITEMS: Final = 10_000
DIMENSIONS: Final = 384
_LOADED_AT_ONCE: Final = 500

_SHIPPED: Final = "SqliteStore as shipped"
_WAL: Final = "SqliteStore in WAL"


def embed(texts: Any) -> list[list[float]]:
    """Return a vector of each text that depends on nothing but the text."""
    return [
        [source.gauss(0, 1) for _ in range(DIMENSIONS)]
        for source in (random.Random(hashlib.sha256(text.encode()).digest()) for text in texts)
    ]


def value(number: int) -> dict[str, Any]:
    """Return about 200 bytes that no other number has; 1 in 100 is of each kind."""
    return {"number": number, "kind": f"kind {number % 100}", "km": number % 50 / 2, "about": f"{number:0140d}"}


class ApswConnection:
    """The part of a sqlite3.Connection that SqliteStore uses, by apsw."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path))
        self.enable_load_extension = self._connection.enable_load_extension
        self.load_extension = self._connection.load_extension
        self.close = self._connection.close
        self.execute = self.executescript = self._connection.execute
        self.cursor = self._connection.cursor

    def create_function(self, name: str, arguments: int, function: Callable[..., Any], *, deterministic: bool) -> None:
        self._connection.create_scalar_function(name, function, arguments, deterministic=deterministic)


def open_peer(path: Path, index: Any, *, wal: bool) -> SqliteStore:
    """Open a SqliteStore as its ``from_conn_string`` does."""
    if index is None or hasattr(sqlite3.Connection, "enable_load_extension"):
        connection: Any = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    else:
        connection = ApswConnection(path)
    if wal:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    store = SqliteStore(connection, index=index)
    store.setup()
    return store


def compare() -> list[Row]:
    """Time what agents do; values vary from write to write, because SQLite skips a page that did not change."""
    rows: list[Row] = []
    for measure, index in ((_small, None), (_searches, None), (_similar, {"dims": DIMENSIONS, "embed": embed})):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
            memory = stack.enter_context(AgentMemory(folder / "ours.db", application="bench"))
            fields: Any = index and {**index, "fields": ["about"], "text_fields": ["about"]}
            stores: dict[str, BaseStore] = {"ours": AgentMemoryStore(memory, index=fields)}
            for name in (_SHIPPED, _WAL):
                peer = open_peer(folder / f"{len(name)}.db", fields, wal=name == _WAL)
                stack.callback(peer.conn.close)
                stores[name] = peer
            rows += measure(stores)
    return rows


def _small(stores: dict[str, BaseStore]) -> list[Row]:
    """Single items and batches in a namespace of a hundred."""
    numbers = itertools.count()
    for store in stores.values():
        store.batch([PutOp(("user", "1"), f"item {n}", value(n), index=False) for n in range(MANY)])

    def put(store: BaseStore) -> None:
        number = next(numbers)
        store.put(("user", "1"), f"item {number % MANY}", value(number), index=False)

    def put_many(store: BaseStore) -> None:
        number = next(numbers)
        store.batch([PutOp(("user", "1"), f"item {n}", value(number * MANY + n), index=False) for n in range(MANY)])

    gets = [GetOp(("user", "1"), f"item {n}") for n in range(MANY)]
    return [
        *_rows("get", stores, lambda store: store.get(("user", "1"), "item 7"), 1, 1),
        *_rows("put", stores, put, 1 / 3, 1),
        *_rows(f"batch of {MANY} gets", stores, lambda store: store.batch(gets), 1, 1),
        *_rows(f"batch of {MANY} puts", stores, put_many, 1, 1),
        *_rows("list 10 newest of 100", stores, lambda store: store.search(("user", "1"), limit=10), 1, 1),
    ]


def _searches(stores: dict[str, BaseStore]) -> list[Row]:
    """Searches in a namespace of ten thousand items."""
    _load(stores)

    def filtered(store: BaseStore) -> None:
        found = store.search(("library",), filter={"kind": "kind 7", "km": {"$gte": 3}}, limit=10)
        assert len(found) == 10

    return [
        *_rows(f"filtered search, {ITEMS:,} items", stores, filtered, 1, 1),
        *_rows(f"list 10 newest of {ITEMS:,}", stores, lambda store: store.search(("library",), limit=10), 1, 1),
    ]


def _similar(stores: dict[str, BaseStore]) -> list[Row]:
    """Semantic search among ten thousand items with a vector each."""
    _load(stores)

    def similar(store: BaseStore) -> None:
        assert store.search(("library",), query=value(4_321)["about"], limit=10)[0].value["number"] == 4_321

    return _rows(f"vector search, {ITEMS:,} × {DIMENSIONS}", stores, similar, 1, 1)


def _load(stores: dict[str, BaseStore]) -> None:
    for store in stores.values():
        for start in range(0, ITEMS, _LOADED_AT_ONCE):
            store.batch([PutOp(("library",), f"{n}", value(n)) for n in range(start, start + _LOADED_AT_ONCE)])


def _rows(
    what: str, stores: dict[str, BaseStore], call: Callable[[BaseStore], object], shipped: float, wal: float
) -> list[Row]:
    def bound(store: BaseStore) -> Callable[[], object]:
        return lambda: call(store)

    times = times_us({name: bound(store) for name, store in stores.items()}, rounds=9)
    return [
        at_most(what, times["ours"], peer, times[peer], limit) for peer, limit in ((_SHIPPED, shipped), (_WAL, wal))
    ]


if __name__ == "__main__":
    print(table("A LangGraph store, embedded", compare()))
