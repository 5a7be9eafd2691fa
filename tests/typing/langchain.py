"""Only type-checked, never run: the names of agent_memory_langchain, which it imports when they are first used."""

from __future__ import annotations

from typing import assert_type

from langchain_core.tools import BaseTool
from langgraph.store.base import Item

from agent_memory import AgentMemory
from agent_memory_langchain import Agent, AgentMemoryStore, EntitySource, MemoryMiddleware, memory_tools, render_memory


def the_lazy_names_have_their_types(memory: AgentMemory) -> None:
    entity: EntitySource = ("user", "user_id")
    assert_type(memory_tools(memory, entity=entity), list[BaseTool])
    assert_type(render_memory(memory.entity("user", "123")), str)
    assert_type(AgentMemoryStore(memory).get(("user", "123"), "profile"), Item | None)
    assert_type(MemoryMiddleware(memory, entity=entity).name, str)
    assert_type(Agent(orders=True).orders, bool)
