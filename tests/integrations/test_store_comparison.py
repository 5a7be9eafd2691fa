"""What docs/langchain.md says about AgentMemoryStore next to LangGraph's own stores, tried on each of them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import BaseStore, InvalidNamespaceError
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres import PostgresStore
from langgraph.store.sqlite import SqliteStore
from pydantic import BaseModel

from agent_memory import AgentMemory, SerializationError
from agent_memory_langchain import AgentMemoryStore
from tests.support.langgraph import INDEX
from tests.support.postgres import PostgresServer

ADA = ("user", "ada")
NOW = 0.0002
"""Minutes after which something expires."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["agent_memory", "memory", "sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tried(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStore]:
    if kind == "memory":
        yield InMemoryStore()
    elif kind == "agent_memory":
        with AgentMemory("memory://", application="fitness") as memory:
            yield AgentMemoryStore(memory)
    elif kind == "sqlite":
        connection = sqlite3.connect(tmp_path / "store.db", check_same_thread=False, isolation_level=None)
        own = SqliteStore(connection)
        own.setup()
        yield own
        connection.close()
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        address = server.empty_database()
        with PostgresStore.from_conn_string(address) as own:
            own.setup()
            yield own
        server.drop(address)


@pytest.fixture
def indexed(kind: str, request: pytest.FixtureRequest) -> Iterator[BaseStore]:
    index: Any = {**INDEX, "fields": ["text"]}
    if kind == "memory":
        yield InMemoryStore(index=index)
    elif kind == "agent_memory":
        with AgentMemory("memory://", application="fitness") as memory:
            yield AgentMemoryStore(memory, index=index)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        address = server.empty_database()
        with PostgresStore.from_conn_string(address, index=index) as own:
            own.setup()
            yield own
        server.drop(address)


def outcome(call: Any) -> Any:
    """Return what a call returns, or the name of what it raises."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__


def found(store: BaseStore, condition: dict[str, Any]) -> Any:
    return outcome(lambda: sorted(item.key for item in store.search(("user",), filter=condition)))


def test_a_comparison_with_a_field_that_some_items_lack(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 50})
    tried.put(ADA, "yoga", {"minutes": 30})
    expected = {"memory": "TypeError"}
    assert found(tried, {"km": {"$gt": 3}}) == expected.get(kind, ["run"])


def test_an_item_of_eight_bytes(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 5})
    # SqliteStore keeps JSON in BLOBs, and these versions take one that begins so and is so long for their binary JSON.
    mistaken = kind == "sqlite" and (3, 45, 1) <= sqlite3.sqlite_version_info < (3, 50)
    assert found(tried, {"km": 5}) == ([] if mistaken else ["run"])


def test_a_comparison_of_numbers_of_different_lengths(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 10})
    expected: dict[str, Any] = {"postgres": []}  # as texts, "10" comes before "9"
    assert found(tried, {"km": {"$gt": 9}}) == expected.get(kind, ["run"])


def test_alternatives_in_a_filter(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 10})
    tried.put(ADA, "swim", {"km": 1})
    expected = {"agent_memory": ["run", "swim"], "memory": [], "sqlite": "ValueError", "postgres": []}
    assert found(tried, {"$or": [{"km": 10}, {"km": 1}]}) == expected[kind]
    assert found(tried, {"km": {"$in": [10]}}) == (["run"] if kind == "agent_memory" else "ValueError")


def test_a_comparison_of_texts(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"sport": "run"})
    tried.put(ADA, "bike", {"sport": "bike"})
    expected = {"memory": "ValueError"}
    assert found(tried, {"sport": {"$gt": "day"}}) == expected.get(kind, ["run"])


def test_a_number_is_no_truth(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"done": True, "km": 1})
    mixed = ["run"] if kind in ("memory", "sqlite") else []
    assert found(tried, {"done": 1}) == mixed
    assert found(tried, {"km": True}) == mixed


def test_a_part_of_an_object_in_a_filter(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"place": {"city": "Bern", "street": "Aare"}})
    expected = {"sqlite": "ValueError", "postgres": "ValueError"}
    assert found(tried, {"place": {"city": "Bern"}}) == expected.get(kind, ["run"])


def test_an_object_with_more_fields_is_equal(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"place": {"city": "Bern", "street": "Aare"}})
    assert found(tried, {"place": {"$eq": {"city": "Bern"}}}) == (["run"] if kind == "agent_memory" else [])
    assert found(tried, {"place": {"$ne": {"city": "Bern"}}}) == ([] if kind == "agent_memory" else ["run"])


def test_an_operator_inside_an_object(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"place": {"km": 5}})
    expected: dict[str, Any] = {"agent_memory": "InvalidRequestError", "memory": ["run"]}
    assert found(tried, {"place": {"km": {"$gt": 3}}}) == expected.get(kind, "ValueError")


def test_a_field_with_a_dot(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "named", {"place.km": 5})
    tried.put(ADA, "path", {"place": {"km": 5}})
    expected = {"agent_memory": ["named", "path"], "sqlite": ["path"]}
    assert found(tried, {"place.km": 5}) == expected.get(kind, ["named"])


def test_a_field_that_is_missing_next_to_none_and_unequal(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "yoga", {"minutes": 30})
    assert found(tried, {"km": None}) == (["yoga"] if kind in ("memory", "sqlite") else [])
    assert found(tried, {"km": {"$ne": 3}}) == (["yoga"] if kind == "memory" else [])


def test_the_order_of_a_search(tried: BaseStore, kind: str) -> None:
    for label, key in [("ada", "1"), ("bob", "2"), ("ada", "3")]:
        tried.put(("user", label), key, {"km": 5})
        time.sleep(1.1 if kind == "sqlite" else 0.01)
    expected = {"memory": ["1", "3", "2"]}
    assert [item.key for item in tried.search(("user",))] == expected.get(kind, ["3", "2", "1"])


def stored(store: BaseStore, value: Any) -> Any:
    def call() -> Any:
        store.put(ADA, "run", {"km": value})
        return store.get(ADA, "run").value["km"]  # type: ignore[union-attr]

    return outcome(call)


def test_values_that_are_no_json(tried: BaseStore, kind: str) -> None:
    refused = {"agent_memory": "SerializationError", "sqlite": "None", "memory": "nan"}
    assert str(stored(tried, float("nan"))) == refused.get(kind, "InvalidTextRepresentation")
    day, number = date(2026, 1, 2), Decimal("1.5")
    assert stored(tried, day) == {"memory": day, "postgres": "TypeError"}.get(kind, "2026-01-02")
    assert stored(tried, number) == {"memory": number, "agent_memory": "1.5"}.get(kind, "TypeError")


def test_keys_that_are_too_short_or_too_long(tried: BaseStore, kind: str) -> None:
    expected = "InvalidKeyError" if kind == "agent_memory" else None
    assert outcome(lambda: tried.put(ADA, "", {"km": 5})) == expected
    assert outcome(lambda: tried.put(ADA, "k" * 3_000, {"km": 5})) == expected


def test_a_namespace_whose_items_are_deleted(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 5})
    tried.delete(ADA, "run")
    assert tried.list_namespaces() == ([ADA] if kind == "memory" else [])


def test_the_time_of_creation_after_an_update(tried: BaseStore, kind: str) -> None:
    tried.put(ADA, "run", {"km": 5})
    created = tried.get(ADA, "run").created_at  # type: ignore[union-attr]
    time.sleep(1.1 if kind == "sqlite" else 0.01)  # SqliteStore counts seconds
    tried.put(ADA, "run", {"km": 6})
    assert (tried.get(ADA, "run").created_at == created) is (kind in ("agent_memory", "postgres"))  # type: ignore[union-attr]


# What SqliteStore gives to sqlite3, deprecated since Python 3.12.
@pytest.mark.filterwarnings("ignore:The default datetime adapter is deprecated:DeprecationWarning")
def test_an_expired_item(tried: BaseStore, kind: str) -> None:
    put = outcome(lambda: tried.put(ADA, "code", {"code": 1}, ttl=NOW))
    assert put == ("NotImplementedError" if kind == "memory" else None)
    time.sleep(0.1)
    assert (tried.get(ADA, "code") is None) is (kind in ("agent_memory", "memory"))


def test_a_value_that_is_changed_after_the_put(tried: BaseStore, kind: str) -> None:
    value: dict[str, Any] = {"goals": ["5k"]}
    tried.put(ADA, "profile", value)
    value["goals"].append("10k")
    stored = tried.get(ADA, "profile").value  # type: ignore[union-attr]
    assert stored == {"goals": ["5k", "10k"] if kind == "memory" else ["5k"]}


def test_two_writers_who_read_and_put(tried: BaseStore) -> None:
    tried.put(ADA, "counter", {"count": 0})
    first, second = tried.get(ADA, "counter"), tried.get(ADA, "counter")
    for read in (first, second):
        tried.put(ADA, "counter", {"count": read.value["count"] + 1})  # type: ignore[union-attr]
    assert tried.get(ADA, "counter").value == {"count": 1}  # type: ignore[union-attr]


def test_a_search_ends_where_a_label_ends(tried: BaseStore) -> None:
    for label in ("1", "10", "1%", "1_", "1*"):
        tried.put(("user", label), label, {"a": 1})
    tried.put(("user", "1", "note"), "below", {"a": 1})
    assert sorted(item.key for item in tried.search(("user", "1"))) == ["1", "below"]


def test_labels_that_langgraph_refuses(tried: BaseStore) -> None:
    for label in ("ada@example.org", 5):
        with pytest.raises(InvalidNamespaceError):
            tried.put(("user", label), "profile", {"a": 1})  # type: ignore[arg-type]


def test_the_typed_api_updates_what_the_store_shows_and_loses_nothing() -> None:
    class Counter(BaseModel):
        count: int = 0

    with AgentMemory("memory://", application="fitness") as memory:
        store = AgentMemoryStore(memory, schemas={("user", "*"): {"counter": Counter}})
        store.put(ADA, "counter", {"count": 1})
        counter = memory.entity("user", "ada").document(Counter)
        counter.update(lambda c: Counter(count=c.count + 1))
        assert store.get(ADA, "counter").value == {"count": 2}  # type: ignore[union-attr]
        with pytest.raises(SerializationError, match="count: int_parsing"):
            store.put(ADA, "counter", {"count": "many"})


def test_langmems_tools_work_with_it() -> None:
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode
    from langmem import create_manage_memory_tool, create_search_memory_tool

    with AgentMemory("memory://", application="fitness") as memory:
        namespace = ("memories", "{user_id}")
        tools = [create_manage_memory_tool(namespace), create_search_memory_tool(namespace)]
        builder = StateGraph(MessagesState).add_node("tools", ToolNode(tools)).add_edge(START, "tools")
        graph = builder.compile(store=AgentMemoryStore(memory))

        def call(name: str, user: str, **arguments: Any) -> str:
            message = AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "1"}])
            output = graph.invoke({"messages": [message]}, {"configurable": {"user_id": user}})  # type: ignore[call-overload]
            return output["messages"][-1].content

        call("manage_memory", "ada", content="likes the lake", action="create")
        assert "likes the lake" in call("search_memory", "ada", query="lake")
        assert "lake" not in call("search_memory", "bob", query="lake")


# SqliteStore loads an extension for vectors, which not every Python's sqlite3 can.
@pytest.mark.parametrize("kind", ["agent_memory", "memory", "postgres"], indirect=True)
def test_vectors_that_an_item_no_longer_has(indexed: BaseStore, kind: str) -> None:
    for key in ("1", "2"):
        indexed.put(ADA, key, {"text": "hello"})
    indexed.put(ADA, "1", {"text": "hello"}, index=False)
    indexed.put(ADA, "2", {"other": "hello"})
    scored = [item.key for item in indexed.search(ADA, query="hello") if item.score is not None]
    assert sorted(scored) == ([] if kind == "agent_memory" else ["1", "2"])


@pytest.mark.parametrize("kind", ["agent_memory", "memory", "postgres"], indirect=True)
def test_items_without_vectors_in_a_search_with_a_query(indexed: BaseStore, kind: str) -> None:
    indexed.put(ADA, "1", {"other": "hello"})
    indexed.put(ADA, "2", {"text": "hello"})
    assert [item.key for item in indexed.search(ADA, query="hello")] == (["2"] if kind == "postgres" else ["2", "1"])
