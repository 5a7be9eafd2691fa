"""agent_memory for LangChain and LangGraph: memory for agents, typed tools, and what goes into a prompt."""

from .annotations import Agent
from .bindings import EntitySource, Models
from .kv import AgentMemoryByteStore, AgentMemoryKVStore
from .middleware import MemoryMiddleware
from .render import arender_memory, count_by_characters, render_memory
from .store import AgentMemoryStore
from .tools import memory_tools

__all__ = [
    "Agent",
    "AgentMemoryByteStore",
    "AgentMemoryKVStore",
    "AgentMemoryStore",
    "EntitySource",
    "MemoryMiddleware",
    "Models",
    "arender_memory",
    "count_by_characters",
    "memory_tools",
    "render_memory",
]
