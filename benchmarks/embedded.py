"""An embedded store against LangGraph's SqliteStore and against SQLite itself."""

from __future__ import annotations

import itertools
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import apsw
from langgraph.store.sqlite import SqliteStore
from pydantic import BaseModel

from agent_memory import AgentMemory
from benchmarks.harness import Row, at_most, table, times_us


class Profile(BaseModel):
    """Makes a document of about 500 bytes."""

    name: str
    number: int
    goals: list[str]
    about: str


def profile(number: int) -> Profile:
    return Profile(name="Ada", number=number, goals=["5k", "10k"], about=f"{number:0400d}")


def upsert_connection(path: Path) -> apsw.Connection:
    """Open a bare table at the durability that our store has."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB)")
    return connection


def upsert(connection: apsw.Connection, key: str, value: bytes) -> None:
    connection.execute(
        "INSERT INTO entry VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )


def compare() -> list[Row]:
    """Time get and set; values vary from write to write, because SQLite skips a page that did not change."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        with (
            AgentMemory(folder / "ours.db", application="bench") as memory,
            SqliteStore.from_conn_string(str(folder / "shipped.db")) as shipped,
            SqliteStore.from_conn_string(str(folder / "wal.db")) as wal,
        ):
            shipped.setup()
            wal.setup()
            with closing(sqlite3.connect(folder / "wal.db")) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            raw = upsert_connection(folder / "raw.db")
            document = memory.entity("user", "1").document(Profile)
            document.set(profile(0))
            for store in (shipped, wal):
                store.put(("user", "1"), "profile", profile(0).model_dump())
            reads = times_us({"ours": document.get, "shipped": lambda: shipped.get(("user", "1"), "profile")})

            def put(store: SqliteStore) -> None:
                store.put(("user", "1"), "profile", profile(next(numbers)).model_dump())

            writes = times_us(
                {
                    "ours": lambda: document.set(profile(next(numbers))),
                    "shipped": lambda: put(shipped),
                    "wal": lambda: put(wal),
                    "raw": lambda: upsert(raw, "user/1", json.dumps(profile(next(numbers)).model_dump()).encode()),
                }
            )
            raw.close()
    return [
        at_most("typed get, 500 bytes", reads["ours"], "SqliteStore.get", reads["shipped"], 0.7),
        at_most("typed set, 500 bytes", writes["ours"], "SqliteStore.put as shipped", writes["shipped"], 0.25),
        at_most("typed set, 500 bytes", writes["ours"], "SqliteStore.put, database in WAL", writes["wal"], 1.2),
        at_most("typed set, 500 bytes", writes["ours"], "raw apsw upsert, WAL, synchronous=FULL", writes["raw"], 1.5),
    ]


if __name__ == "__main__":
    print(table("An embedded store", compare()))
