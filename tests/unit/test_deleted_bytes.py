"""What was deleted or overwritten is not in the database file any more, though nothing has taken its room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent_memory import AgentMemory
from agent_memory.ids import uuid7
from agent_memory.messages import CommitWrite, Delete, Scope
from agent_memory.storage.sqlite.catalog import SqliteCatalog
from agent_memory.vectors import pack_vector

MARK = "what-nobody-may-find"
KEYS = tuple(f"k{number}" for number in range(20))


def delete(memory: AgentMemory, key: str) -> None:
    memory.app_state.delete(key)


def write_less(memory: AgentMemory, key: str) -> None:
    memory.app_state.set(key, "short")


def write_more(memory: AgentMemory, key: str) -> None:
    memory.app_state.set(key, "x" * 64_000)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "memory.db"
    yield path
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "a log would hold what was deleted"


@pytest.mark.parametrize("size", [20, 3_000, 60_000], ids=["a part of a page", "most of a page", "many pages"])
@pytest.mark.parametrize("change", [delete, write_less, write_more])
def test_no_byte_of_a_value_stays_in_the_file(
    database: Path, size: int, change: Callable[[AgentMemory, str], None]
) -> None:
    with AgentMemory(database, application="app") as memory:
        for key in KEYS:
            memory.app_state.set(f"beside {key}", "y" * 500)
            memory.app_state.set(key, (MARK * size)[:size])
    assert MARK.encode() in database.read_bytes()
    with AgentMemory(database, application="app") as memory:
        for key in KEYS:
            change(memory, key)
    assert MARK.encode() not in database.read_bytes()


def test_no_vector_stays_in_the_file(database: Path) -> None:
    scope, vector = Scope("default", "app"), pack_vector([0.1, 0.7, 0.3])
    with closing(SqliteCatalog(database)) as catalog:
        for key in KEYS:
            catalog.write(CommitWrite(scope, key, uuid7(), b"{}", None, vectors=(vector,)))
    assert vector in database.read_bytes()
    with closing(SqliteCatalog(database)) as catalog:
        for key in KEYS:
            catalog.write(Delete(scope, key, uuid7()))
    assert vector not in database.read_bytes()
