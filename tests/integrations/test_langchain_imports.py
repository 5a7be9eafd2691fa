"""The names of the integration, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import agent_memory_langchain
from agent_memory import InvalidRequestError
from agent_memory_langchain import annotations, middleware, store


def loaded_by(statement: str) -> set[str]:
    """Return the packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_model_with_agent_markers_does_not_load_langchain() -> None:
    loaded = loaded_by("from agent_memory_langchain import Agent\nimport examples.fitness_tracker.models")
    assert "pydantic" in loaded
    assert not {"langchain", "langchain_core", "langgraph", "langsmith"} & loaded


def test_the_other_names_load_it() -> None:
    assert "langgraph" in loaded_by("from agent_memory_langchain import AgentMemoryStore")


def test_every_name_is_there() -> None:
    for name in agent_memory_langchain.__all__:
        assert getattr(agent_memory_langchain, name) is not None
    assert set(agent_memory_langchain.__all__) <= set(dir(agent_memory_langchain))
    assert agent_memory_langchain.Agent is annotations.Agent
    assert agent_memory_langchain.MemoryMiddleware is middleware.MemoryMiddleware
    assert agent_memory_langchain.AgentMemoryStore is store.AgentMemoryStore


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = agent_memory_langchain.Nothing
    with pytest.raises(ImportError):
        exec("from agent_memory_langchain import Nothing")


@pytest.mark.parametrize(
    "adapter",
    [
        agent_memory_langchain.AgentMemoryStore,
        agent_memory_langchain.AgentMemoryKVStore,
        lambda memory: agent_memory_langchain.MemoryMiddleware(memory, entity=("user", "user_id")),
    ],
)
def test_an_adapter_says_what_it_takes(adapter: Any) -> None:
    with pytest.raises(InvalidRequestError, match="an open AgentMemory or AsyncAgentMemory, not str"):
        adapter("fitness.db")
