"""langmem on a memory: its tools and its store manager, sync, async and from threads, with a scripted model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langmem import create_manage_memory_tool, create_memory_store_manager, create_search_memory_tool
from pydantic import BaseModel

from agent_memory import AgentMemory
from agent_memory_langchain import AgentMemoryStore
from tests.support.langgraph import INDEX

CONFIG: Any = {"configurable": {"user_id": "ada"}}
NAMESPACE = ("memories", "{user_id}")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[AgentMemory]:
    with AgentMemory(tmp_path / "memory.db", application="langmem") as memory:
        yield memory


@pytest.fixture
def kept(memory: AgentMemory) -> AgentMemoryStore:
    index: Any = {**INDEX, "fields": ["$"]}
    return AgentMemoryStore(memory, index=index)


class Scripted(BaseChatModel):
    """Says that one memory is to be kept: calls the first tool it is given that takes content."""

    calls: list[dict[str, Any]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        message = AIMessage(
            "", tool_calls=[{"name": one["name"], "args": one["args"], "id": uuid.uuid4().hex} for one in self.calls]
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class Fact(BaseModel):
    """A fact about the user."""

    content: str


def test_the_tools_keep_find_change_and_forget(kept: AgentMemoryStore) -> None:
    manage = create_manage_memory_tool(NAMESPACE, store=kept)
    search = create_search_memory_tool(NAMESPACE, store=kept)

    said = manage.invoke({"content": "likes swimming", "action": "create"}, CONFIG)
    identifier = said.rsplit(" ", 1)[1]
    manage.invoke({"content": "has a dog", "action": "create"}, CONFIG)
    found = json.loads(search.invoke({"query": "likes swimming"}, CONFIG))
    assert found[0]["key"] == identifier
    assert {one["value"]["content"] for one in found} == {"likes swimming", "has a dog"}

    manage.invoke({"content": "likes running", "action": "update", "id": identifier}, CONFIG)
    item = kept.get(("memories", "ada"), identifier)
    assert item is not None
    assert item.value["content"] == "likes running"
    manage.invoke({"action": "delete", "id": identifier}, CONFIG)
    assert kept.get(("memories", "ada"), identifier) is None
    assert json.loads(search.invoke({"query": "x"}, {"configurable": {"user_id": "bob"}})) == []


def test_the_tools_work_async_and_from_threads(kept: AgentMemoryStore, portal: BlockingPortal) -> None:
    manage = create_manage_memory_tool(NAMESPACE, store=kept)
    search = create_search_memory_tool(NAMESPACE, store=kept)

    async def use() -> str:
        await manage.ainvoke({"content": "async", "action": "create"}, CONFIG)
        return await search.ainvoke({"query": "async"}, CONFIG)

    assert "async" in portal.call(use)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(manage.invoke, {"content": f"fact {n}", "action": "create"}, CONFIG) for n in range(40)]
        for call in calls:
            call.result()
    assert len(kept.search(("memories", "ada"), limit=100)) == 41


@pytest.mark.parametrize("face", ["sync", "async"])
def test_the_store_manager_keeps_what_the_model_extracts(
    kept: AgentMemoryStore, portal: BlockingPortal, face: str
) -> None:
    model = Scripted(calls=[{"name": "Fact", "args": {"content": f"fact {n}"}} for n in range(3)])
    manager = create_memory_store_manager(
        model, schemas=[Fact], namespace=NAMESPACE, store=kept, enable_inserts=True, enable_deletes=False
    )
    given = {"messages": [{"role": "user", "content": "I have facts"}]}
    if face == "sync":
        manager.invoke(given, CONFIG)
    else:
        portal.call(partial(manager.ainvoke, given, CONFIG))

    items = kept.search(("memories", "ada"), limit=10)
    assert {item.value["content"]["content"] for item in items} == {f"fact {n}" for n in range(3)}
    assert {item.value["kind"] for item in items} == {"Fact"}
