"""deepagents on a memory: its files in the store, our middleware in its agents and their sub-agents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import deepagents.backends.store as upstream
import pytest
from deepagents import create_deep_agent
from deepagents.backends import CompositeBackend, StateBackend, StoreBackend
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from agent_memory import AgentMemory
from agent_memory_langchain import AgentMemoryStore, MemoryMiddleware
from tests.support.agents import Athlete, ScriptedModel, Session, results
from tests.unit.test_docs import BLOCKS

ASK: dict[str, Any] = {"messages": [HumanMessage("hello")]}


@dataclass
class Context:
    user_id: str


BOB = Context("bob")


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    with AgentMemory("memory://", application="fitness") as memory:
        yield memory


@pytest.fixture
def files(memory: AgentMemory) -> StoreBackend:
    return StoreBackend(store=AgentMemoryStore(memory), namespace=lambda _: ("user", "bob", "file"))


def remembers(memory: AgentMemory) -> MemoryMiddleware:
    return MemoryMiddleware(memory, documents=[Athlete], collections=[Session], entity=("user", "user_id"))


@pytest.mark.parametrize("face", ["sync", "async"])
def test_the_file_tools_see_every_one_of_many_files(files: StoreBackend, face: str) -> None:
    def call(name: str, *args: Any) -> Any:
        if face == "sync":
            return getattr(files, name)(*args)
        return asyncio.run(getattr(files, f"a{name}")(*args))

    for number in range(230):
        call("write", f"/day{number % 2}/{number}.md", f"100% rest\nrun {number} km")
    found = call("ls", "/day0"), call("glob", "*.md"), call("grep", "100% rest")
    assert (len(found[0].entries), len(found[1].matches), len(found[2].matches)) == (115, 230, 230)
    call("delete", "/day0")
    assert [entry["path"] for entry in call("ls", "/").entries] == ["/day1/"]


def test_a_file_is_an_item_of_the_entity(memory: AgentMemory, files: StoreBackend) -> None:
    files.write("/plans/a.md", "run")
    item = memory.entity("user", "bob").collection(dict[str, Any], name="file").get("/plans/a.md")
    assert item is not None
    assert item["content"] == "run"


def test_an_edit_of_the_documented_backend_keeps_what_another_process_wrote_meanwhile(
    memory: AgentMemory, files: StoreBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {}
    exec(next(block for block in BLOCKS.values() if "class Files" in block), recipe)
    files.write("/plan.md", "one: open\ntwo: open\n")
    replace, others = upstream.perform_string_replacement, ["one: done\ntwo: open\n"]

    def interrupted(*args: Any) -> Any:
        if others:
            files.write("/plan.md", others.pop())
        return replace(*args)

    monkeypatch.setattr(upstream, "perform_string_replacement", interrupted)
    change = {"file_path": "/memories/plan.md", "old_string": "two: open", "new_string": "two: done"}
    backend = CompositeBackend(default=StateBackend(), routes={"/memories/": recipe["Files"](memory)})
    model = ScriptedModel(turns=[[("edit_file", change)]])
    create_deep_agent(model, backend=backend, context_schema=recipe["Context"]).invoke(
        ASK, context=recipe["Context"]("bob")
    )
    stored = files.read("/plan.md").file_data
    assert stored is not None
    assert stored["content"] == "one: done\ntwo: done\n"


def test_files_that_an_agent_is_to_know_stand_beside_the_memory_of_whom_it_serves(
    memory: AgentMemory, files: StoreBackend
) -> None:
    files.write("/AGENTS.md", "Always be kind.")
    model = ScriptedModel()
    agent = create_deep_agent(
        model, middleware=[remembers(memory)], memory=["/AGENTS.md"], backend=files, context_schema=Context
    )
    agent.invoke(ASK, context=BOB)
    assert "Always be kind." in model.system
    assert "<memory>" in model.prompt


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_call_that_waits_in_a_sub_agent_changes_the_memory_of_the_run_once(memory: AgentMemory, face: str) -> None:
    own = remembers(memory)
    below = ScriptedModel(turns=[[("add_session", {"kind": "run"})], [("update_athlete", {"name": "Bob"})]])
    logger: Any = {"name": "logger", "description": "logs", "system_prompt": "", "model": below, "middleware": [own]}
    above = ScriptedModel(turns=[[("task", {"description": "log it", "subagent_type": "logger"})]])
    agent = create_deep_agent(
        above,
        middleware=[own],
        subagents=[logger],
        interrupt_on={"update_athlete": True},
        context_schema=Context,
        checkpointer=InMemorySaver(),
    )

    def run(given: Any) -> Any:
        options: Any = {"config": {"configurable": {"thread_id": "1"}}, "context": BOB}
        return agent.invoke(given, **options) if face == "sync" else asyncio.run(agent.ainvoke(given, **options))

    assert run(ASK)["__interrupt__"]
    done = run(Command(resume={"decisions": [{"type": "approve"}]}))
    assert [answer.text for answer in results(done)] == ["done"]
    bob = memory.entity("user", "bob")
    assert bob.document(Athlete).get() == Athlete(name="Bob")
    assert [item.value.kind for item in bob.collection(Session).list()] == ["run"]
