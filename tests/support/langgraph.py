"""LangGraph's store on a memory, with either face; embeddings that mean nothing but are always the same."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from agent_memory_langchain import AgentMemoryStore

from .blocking import unwrap
from .stores import Store

DIMENSIONS: Final = 16


def embed(texts: Sequence[str]) -> list[list[float]]:
    """Return a vector of each text: letters it shares with another make them similar."""
    found: list[list[float]] = []
    for text in texts:
        vector = [0.0] * DIMENSIONS
        for letter in text:
            source = random.Random(hashlib.sha256(letter.encode()).digest())
            vector = [part + source.gauss(0, 1) for part in vector]
        found.append(vector)
    return found


INDEX: Final[dict[str, Any]] = {"dims": DIMENSIONS, "embed": embed, "fields": ["text"]}


class Faced:
    """Calls the sync methods of a store, or their async twins on the event loop of the store's portal."""

    def __init__(self, memory: Any, store: Store, **options: Any) -> None:
        self.store = AgentMemoryStore(unwrap(memory), **options)
        self.memory = memory
        self._sync = store.face == "sync"
        self._portal = store.portal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self._sync:
            return getattr(self.store, name)
        method = getattr(self.store, f"a{name}")
        return lambda *args, **kwargs: self._portal.call(partial(method, *args, **kwargs))
