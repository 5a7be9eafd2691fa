"""The memory that an adapter works on."""

from __future__ import annotations

from agent_memory import AgentMemory, AsyncAgentMemory, InvalidRequestError


class Faces:
    """Both faces of a memory, whichever of them was given."""

    def __init__(self, memory: AgentMemory | AsyncAgentMemory) -> None:
        if not isinstance(memory, AgentMemory | AsyncAgentMemory):
            raise InvalidRequestError(
                f"the memory is an open AgentMemory or AsyncAgentMemory, not {type(memory).__name__}"
            )
        self.sync = memory.sync if isinstance(memory, AsyncAgentMemory) else memory
        self.aio = memory.aio if isinstance(memory, AgentMemory) else memory
        self.probe = self.sync.entity("kind", "id")
        """An entity to ask for names; nothing is read or written through it."""
