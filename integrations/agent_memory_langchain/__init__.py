"""agent_memory for LangChain and LangGraph: memory for agents, typed tools, and what goes into a prompt.

Models that only carry ``Agent(...)`` do not load LangChain: the other names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .annotations import Agent

if TYPE_CHECKING:
    from .bindings import EntitySource, Models
    from .importing import ImportReport, import_langgraph
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
    "ImportReport",
    "MemoryMiddleware",
    "Models",
    "arender_memory",
    "count_by_characters",
    "import_langgraph",
    "memory_tools",
    "render_memory",
]

_MODULES = {
    "AgentMemoryByteStore": ".kv",
    "AgentMemoryKVStore": ".kv",
    "AgentMemoryStore": ".store",
    "EntitySource": ".bindings",
    "ImportReport": ".importing",
    "MemoryMiddleware": ".middleware",
    "Models": ".bindings",
    "arender_memory": ".render",
    "count_by_characters": ".render",
    "import_langgraph": ".importing",
    "memory_tools": ".tools",
    "render_memory": ".render",
}


_NEEDED = ("langchain", "langchain_core", "langgraph")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(_MODULES[name], __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        raise ImportError(f"{name} needs {error.name}: pip install 'agent-memory[langchain]'") from None
    globals()[name] = found  # the next time it is found without this
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
