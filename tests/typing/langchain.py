"""Only type-checked, never run: the names of agent_memory_langchain, which it imports when they are first used."""

from __future__ import annotations

from typing import Any, assert_type

from langchain_core.documents import Document
from langchain_core.stores import BaseStore, ByteStore
from langchain_core.tools import BaseTool
from langgraph.store.base import Item

from agent_memory import AgentMemory
from agent_memory_langchain import (
    Agent,
    AgentMemoryByteStore,
    AgentMemoryKVStore,
    AgentMemoryStore,
    EntitySource,
    MemoryMiddleware,
    memory_tools,
    render_memory,
)


def the_lazy_names_have_their_types(memory: AgentMemory) -> None:
    entity: EntitySource = ("user", "user_id")
    assert_type(memory_tools(memory, entity=entity), list[BaseTool])
    assert_type(render_memory(memory.entity("user", "123")), str)
    assert_type(AgentMemoryStore(memory).get(("user", "123"), "profile"), Item | None)
    assert_type(MemoryMiddleware(memory, entity=entity).name, str)
    assert_type(Agent(orders=True).orders, bool)


def a_key_value_store_has_the_values_that_it_is_told(memory: AgentMemory) -> None:
    store = AgentMemoryKVStore(memory)
    assert_type(store, AgentMemoryKVStore[Any])
    store.mset([("a", 1), ("b", "two")])

    documents = AgentMemoryKVStore(memory, "documents", as_type=Document)
    assert_type(documents.mget(["a"]), list[Document | None])
    documents.mset([("a", "no document")])  # pyright: ignore[reportArgumentType]
    assert_type(AgentMemoryKVStore(memory, as_type=list[int] | None), AgentMemoryKVStore[list[int] | None])

    told: AgentMemoryKVStore[str] = AgentMemoryKVStore(memory)
    assert_type(told.mget(["a"]), list[str | None])
    either: BaseStore[str, Document] = documents
    either.mdelete(["a"])
    only_bytes: ByteStore = AgentMemoryByteStore(memory)
    assert_type(only_bytes.mget(["a"]), list[bytes | None])
