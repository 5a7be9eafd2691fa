"""A store in PostgreSQL against LangGraph's PostgresStore on the same server: plain data in, plain data out."""

from __future__ import annotations

import hashlib
import itertools
import random
import tempfile
from pathlib import Path
from typing import Any, Final

import pydantic_core
from langgraph.store.base import GetOp, PutOp
from langgraph.store.postgres import PostgresStore

from agent_memory.ids import uuid7
from agent_memory.messages import INLINE_LIMIT, JSON, Batch, CommitWrite, Found, Hit, PrepareRead, Scope, Search
from agent_memory.service import StateService
from agent_memory.storage.blobs import FileBlobs
from agent_memory.storage.postgres.catalog import PostgresCatalog
from agent_memory.storage.postgres.vector_index import create_index
from agent_memory.vectors import pack_vector
from benchmarks.harness import Row, at_most, table, times_us
from tests.support.postgres import PostgresServer

MANY: Final = 100
ITEMS: Final = 10_000
DIMENSIONS: Final = 384

_SCOPE: Final = Scope("default", "bench")


def value(number: int) -> dict[str, Any]:
    """About 500 bytes; what stands in ``text`` is what they embed."""
    return {
        "name": "Ada",
        "number": number,
        "rank": number * 7919 % ITEMS,
        "kind": f"k{number % 50}",
        "goals": ["5k", "10k"],
        "text": f"v{number}",
        "about": f"{number:0400d}",
    }


def write(key: str, number: int, vector: list[float] | None = None) -> CommitWrite:
    data = pydantic_core.to_json(value(number))
    sha256 = hashlib.sha256(data).hexdigest()
    vectors = () if vector is None else (pack_vector(vector),)
    return CommitWrite(_SCOPE, key, uuid7(), data, None, JSON, sha256, vectors=vectors)


def read(key: str) -> PrepareRead:
    return PrepareRead(_SCOPE, key, INLINE_LIMIT)


def loaded(found: list[Found | None]) -> list[Any]:
    return [pydantic_core.from_json(one.data) for one in found if one is not None and one.data is not None]


class Ours:
    """Our service, asked for values."""

    def __init__(self, service: StateService) -> None:
        self._service = service

    def get(self, key: str) -> Any:
        return loaded([self._service.handle(read(key))])[0]

    def put(self, key: str, number: int) -> None:
        self._service.handle(write(key, number))

    def batch_get(self, keys: list[str]) -> list[Any]:
        return loaded(self._service.handle(Batch(_SCOPE, tuple(map(read, keys)))))

    def batch_put(self, keys: list[str], numbers: itertools.count[int]) -> None:
        self._service.handle(Batch(_SCOPE, tuple(write(key, next(numbers)) for key in keys)))

    def fill(self, vectors: list[list[float]]) -> None:
        for start in range(0, len(vectors), 500):
            many = enumerate(vectors[start : start + 500], start)
            self._service.handle(Batch(_SCOPE, tuple(write(f"items/{n:05}", n, vector) for n, vector in many)))

    def search(self, *, filter: dict[str, Any] | None = None, vector: list[float] | None = None) -> list[Any]:
        packed = None if vector is None else pack_vector(vector)
        request = Search(_SCOPE, "items/", filter, vector=packed, max_inline_size=INLINE_LIMIT)
        hits: list[Hit] = self._service.handle(request)
        return loaded([hit.found for hit in hits])


def embedded(text: str, vectors: list[list[float]]) -> list[float]:
    return vectors[int(text[1:]) % len(vectors)]


def compare() -> list[Row]:
    """Time single calls, batches and searches; the searches have 10,000 objects with a vector each before them.

    Their text comparison of numbers finds other objects than ours. Exact vector search is compared with exact, and HNSW
    index with HNSW index.
    """
    chance = random.Random(1)
    vectors = [[chance.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(ITEMS)]
    index: Any = {
        "dims": DIMENSIONS,
        "embed": lambda texts: [embedded(text, vectors) for text in texts],
        "fields": ["text"],
    }
    exact = {**index, "ann_index_config": {"kind": "flat"}}
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as server:
        database = server.database()
        service = StateService(PostgresCatalog(database), FileBlobs(Path(folder) / "blobs"))
        ours = Ours(service)
        ours.fill(vectors)
        with (
            PostgresStore.from_conn_string(server.empty_database(), index=index) as theirs,
            PostgresStore.from_conn_string(server.empty_database(), index=exact) as flat,
        ):
            for store in (theirs, flat):
                store.setup()
                for start in range(0, ITEMS, 500):
                    store.batch(PutOp(("items",), f"{n:05}", value(n)) for n in range(start, start + 500))
            for (name,) in server.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test_%'"):
                server.execute("VACUUM ANALYZE", name)
            rows = _compare(ours, theirs, flat, vectors)
            create_index(database, DIMENSIONS)
            rows.append(_compare_indexes(ours, theirs, vectors))
        service.close()
    return rows


def _compare(ours: Ours, theirs: PostgresStore, flat: PostgresStore, vectors: list[list[float]]) -> list[Row]:
    numbers = itertools.count()
    keys = [f"items/{n:05}" for n in range(ITEMS)]

    def numbered() -> str:
        return keys[next(numbers) * 7919 % ITEMS]

    def many() -> list[str]:
        start = next(numbers) * 7919 % (ITEMS - MANY)
        return keys[start : start + MANY]

    def their_key(key: str) -> str:
        return key.removeprefix("items/")

    reads = times_us(
        {"ours": lambda: ours.get(numbered()), "theirs": lambda: theirs.get(("items",), their_key(numbered()))}
    )
    batches = times_us(
        {
            "ours": lambda: ours.batch_get(many()),
            "theirs": lambda: theirs.batch([GetOp(("items",), their_key(key)) for key in many()]),
        }
    )
    filtered = times_us(
        {
            "ours": lambda: ours.search(filter={"kind": "k7"}),
            "theirs": lambda: theirs.search(("items",), filter={"kind": "k7"}),
        },
        rounds=7,
    )
    ordered = times_us(
        {
            "ours": lambda: ours.search(filter={"rank": {"$gte": 9_990}}),
            "theirs": lambda: theirs.search(("items",), filter={"rank": {"$gte": 9_990}}),
        },
        rounds=7,
    )
    similar = times_us(
        {
            "ours": lambda: ours.search(vector=vectors[next(numbers) % ITEMS]),
            "theirs": lambda: flat.search(("items",), query=f"v{next(numbers)}"),
        },
        rounds=7,
    )
    writes = times_us(
        {
            "ours": lambda: ours.put("users/1", next(numbers)),
            "theirs": lambda: theirs.put(("users",), "1", value(next(numbers)), index=False),
        },
        rounds=25,
    )
    batch_writes = times_us(
        {
            "ours": lambda: ours.batch_put([f"users/{n}" for n in range(MANY)], numbers),
            "theirs": lambda: theirs.batch(
                [PutOp(("users",), str(n), value(next(numbers)), index=False) for n in range(MANY)]
            ),
        }
    )
    exact = "PostgresStore.search(query=), flat"
    return [
        at_most("get", reads["ours"], "PostgresStore.get", reads["theirs"], 0.5),
        at_most("put", writes["ours"], "PostgresStore.put", writes["theirs"], 1.0),
        at_most("batch of 100 gets", batches["ours"], "PostgresStore.batch", batches["theirs"], 0.5),
        at_most("batch of 100 puts", batch_writes["ours"], "PostgresStore.batch", batch_writes["theirs"], 0.5),
        at_most("10,000: text equals", filtered["ours"], "PostgresStore.search(filter=)", filtered["theirs"], 1.0),
        at_most("10,000: number at least", ordered["ours"], "PostgresStore, as text", ordered["theirs"], 1.0),
        at_most("10,000 × 384: similar", similar["ours"], exact, similar["theirs"], 1.0),
    ]


def _compare_indexes(ours: Ours, theirs: PostgresStore, vectors: list[list[float]]) -> Row:
    numbers = itertools.count()
    similar = times_us(
        {
            "ours": lambda: ours.search(vector=vectors[next(numbers) % ITEMS]),
            "theirs": lambda: theirs.search(("items",), query=f"v{next(numbers)}"),
        },
        rounds=7,
    )
    hnsw = "PostgresStore.search(query=), HNSW"
    return at_most("10,000 × 384: similar, HNSW", similar["ours"], hnsw, similar["theirs"], 1.0)


if __name__ == "__main__":
    print(table("A store in PostgreSQL", compare()))
