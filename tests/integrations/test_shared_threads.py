"""Several users in one thread, a turn each: what is one's own is shown in one's own turns, and no other's ever is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelResponse,
    ModelRetryMiddleware,
)
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from agent_memory import AgentMemory, InvalidRequestError
from agent_memory_langchain import MemoryMiddleware, memory_tools
from agent_memory_langchain.marks import check_call, mark_of, with_marked_calls
from tests.support.agents import Athlete, ScriptedModel, Session

THREAD: Any = {"configurable": {"thread_id": "everybody"}}
READS = [("read_athlete", {}), ("list_sessions", {}), ("search_sessions", {"text": "of"}), ("read_setup", {})]


@dataclass
class Context:
    user_id: str


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    with AgentMemory("memory://", application="fitness") as memory:
        for id in ("ada", "bob"):
            user = memory.entity("user", id)
            user.document(Athlete).set(Athlete(name=f"words of {id}"))
            user.collection(Session).add(Session(kind=f"a run of {id}"))
        memory.entity("place", "gym").document(Session, name="setup").set(Session(kind="a place of everybody"))
        yield memory


def agent_of(
    memory: AgentMemory, model: Any, *around: Any, swapped: bool = False, saver: InMemorySaver | None = None
) -> Any:
    users = MemoryMiddleware(memory, documents=[Athlete], collections=[Session], entity=("user", "user_id"))
    place = MemoryMiddleware(memory, name="place", documents={"setup": Session}, entity=lambda _: ("place", "gym"))
    own: list[Any] = [users, place]
    return create_agent(
        model,
        middleware=[*own, *around] if swapped else [*around, *own],
        context_schema=Context,
        checkpointer=saver or InMemorySaver(),
    )


def say(agent: Any, id: str) -> Any:
    return agent.invoke({"messages": [HumanMessage(f"it is {id}")]}, THREAD, context=Context(id))


def test_what_tools_told_one_user_is_not_shown_to_the_next(memory: AgentMemory) -> None:
    model = ScriptedModel(turns=[READS, "hello Ada", "hello Bob", "hello again"])
    agent = agent_of(memory, model)
    say(agent, "ada")
    assert model.prompt.count("of ada") == 2 + 3  # in the block, and in what the tools answered
    output = say(agent, "bob")
    assert "of ada" not in model.prompt
    assert model.prompt.count("(This was about another user, and is not shown.)") == 3
    assert '{"kind": "a place of everybody"' in model.prompt
    # The thread keeps it, for when it is Ada's turn again.
    assert "of ada" in str(output["messages"])
    say(agent, "ada")
    assert model.prompt.count("of ada") == 2 + 3
    assert "of bob" not in model.prompt


def test_what_tools_refused_one_user_is_not_shown_to_the_next(memory: AgentMemory) -> None:
    # Its words may be about what is stored.
    model = ScriptedModel(
        turns=[[("forget_session", {"item_id": "of ada"}), ("update_setup", {"km": -1})], "hello Ada"]
    )
    agent = agent_of(memory, model)
    say(agent, "ada")
    assert "there is no session with this item_id" in model.prompt
    say(agent, "bob")
    assert "there is no session with this item_id" not in model.prompt
    assert "update_setup was refused" in model.prompt
    say(agent, "ada")
    assert "there is no session with this item_id" in model.prompt


def test_a_tool_under_another_name_shows_no_other_user_either(memory: AgentMemory) -> None:
    tools = memory_tools(memory, entity=("user", "user_id"), documents=[Athlete])
    renamed = [tool.model_copy(update={"name": f"my_{tool.name}"}) for tool in tools]
    shows: Any = MemoryMiddleware(memory, documents=[Athlete], entity=("user", "user_id"), tools=False)
    model = ScriptedModel(turns=[[("my_read_athlete", {})], "hello Ada"])
    agent = create_agent(model, renamed, middleware=[shows], context_schema=Context, checkpointer=InMemorySaver())
    say(agent, "ada")
    say(agent, "bob")
    assert "of ada" not in model.prompt


def test_so_it_is_in_async_runs(memory: AgentMemory) -> None:
    model = ScriptedModel(turns=[READS, "hello Ada"])
    agent = agent_of(memory, model)

    async def both() -> None:
        for id in ("ada", "bob"):
            await agent.ainvoke({"messages": [HumanMessage(f"it is {id}")]}, THREAD, context=Context(id))

    asyncio.run(both())
    assert "of ada" not in model.prompt
    assert "of bob" in model.prompt


class Failing(ScriptedModel):
    """Is shown every prompt, and answers to every other one."""

    def _generate(self, *args: Any, **options: Any) -> Any:
        answer = super()._generate(*args, **options)
        if len(self.shown) % 2:
            raise RuntimeError("try again")
        return answer


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("other", ["retry", "fallback", "editing"])
def test_no_prompt_shows_another_user_whatever_middleware_stands_around(
    memory: AgentMemory, other: str, swapped: bool
) -> None:
    def read_once(messages: list[Any]) -> Any:
        return "hello" if messages[-1].type == "tool" else READS

    model: Any = ScriptedModel(turns=[read_once] * 8)
    models = [model]
    if other == "retry":
        model = Failing(turns=[read_once] * 8)
        models = [model]
        around: Any = ModelRetryMiddleware(max_retries=1, initial_delay=0)
    elif other == "fallback":
        spare, model = model, Failing(turns=[read_once] * 8)
        models = [model, spare]
        around = ModelFallbackMiddleware(spare)
    else:
        around = ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1_000, keep=2)])
    agent = agent_of(memory, model, around, swapped=swapped)
    for id in ("ada", "bob", "ada"):
        say(agent, id)
    prompts = [prompt for one in models for prompt in one.shown]
    assert len(prompts) >= 6
    for prompt in prompts:
        text = "\n".join(message.text for message in prompt)
        says = [message.text for message in prompt if "it is " in message.text]
        mine, others = ("ada", "bob") if says[-1].endswith("ada") else ("bob", "ada")
        assert f"of {mine}" in text
        assert f"of {others}" not in text


EDITED = {"type": "edit", "edited_action": {"name": "update_athlete", "args": {"name": "Edited"}}}


@pytest.mark.parametrize("decision", [{"type": "approve"}, EDITED])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_call_that_waited_changes_nothing_for_whoever_approves_it(
    memory: AgentMemory, decision: Any, swapped: bool
) -> None:
    saver, asks = InMemorySaver(), HumanInTheLoopMiddleware(interrupt_on={"update_athlete": True})
    turn = [("update_athlete", {"name": "Approved"}), ("add_session", {"kind": "swim"}), ("update_setup", {"km": 1})]
    say(agent_of(memory, ScriptedModel(turns=[turn]), asks, swapped=swapped, saver=saver), "ada")
    # Another process, and another user's context.
    agent = agent_of(memory, ScriptedModel(turns=["done"]), asks, swapped=swapped, saver=saver)
    with pytest.raises(InvalidRequestError, match="made for another user"):
        agent.invoke(Command(resume={"decisions": [decision]}), THREAD, context=Context("bob"))
    assert memory.entity("user", "bob").document(Athlete).get() == Athlete(name="words of bob")
    assert len(memory.entity("user", "bob").collection(Session).list()) == 1
    # The call still waits for the one whom it is for.
    agent.invoke(None, THREAD, context=Context("ada"))
    found = memory.entity("user", "ada").document(Athlete).get()
    assert found is not None
    assert found.name in ("Approved", "Edited")
    assert len(memory.entity("user", "ada").collection(Session).list()) == 2
    assert memory.entity("place", "gym").document(Session, name="setup").get() == Session(
        kind="a place of everybody", km=1
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_so_it_is_with_a_call_that_a_reviewer_gave_to_another_tool(memory: AgentMemory, swapped: bool) -> None:
    saver, asks = InMemorySaver(), HumanInTheLoopMiddleware(interrupt_on={"update_setup": True})
    say(
        agent_of(memory, ScriptedModel(turns=[[("update_setup", {"km": 1})]]), asks, swapped=swapped, saver=saver),
        "ada",
    )
    agent = agent_of(memory, ScriptedModel(turns=["done"]), asks, swapped=swapped, saver=saver)
    with pytest.raises(InvalidRequestError, match="made for another user"):
        agent.invoke(Command(resume={"decisions": [EDITED]}), THREAD, context=Context("bob"))
    assert memory.entity("user", "bob").document(Athlete).get() == Athlete(name="words of bob")
    agent.invoke(None, THREAD, context=Context("ada"))
    assert memory.entity("user", "ada").document(Athlete).get() == Athlete(name="Edited")


def test_calls_of_one_id_for_two_entities_are_told_apart(memory: AgentMemory) -> None:
    class SameIds(ScriptedModel):
        def _generate(self, *args: Any, **options: Any) -> Any:
            answer = super()._generate(*args, **options)
            for call in answer.generations[0].message.tool_calls:
                call["id"] = "1"
            return answer

    model = SameIds(turns=[[("update_athlete", {"name": "Ada"}), ("update_setup", {"km": 1})]])
    say(agent_of(memory, model), "ada")
    changed = (
        memory.entity("user", "ada").document(Athlete).get(),
        memory.entity("place", "gym").document(Session, name="setup").get(),
    )
    assert changed == (Athlete(name="Ada"), Session(kind="a place of everybody", km=1))


def test_a_call_is_marked_by_each_memory_beside_what_the_model_says_of_it() -> None:
    ada, team = mark_of("user", "1"), mark_of("team", "1")
    call: Any = {"name": "update_plan", "args": {}, "id": "1"}
    said = AIMessage("", tool_calls=[call], response_metadata={"model_name": "m"})
    response = with_marked_calls(ModelResponse(result=[said]), ["update_athlete"], ada)
    message = with_marked_calls(response, ["update_plan"], team).result[0]
    assert message.response_metadata["model_name"] == "m"

    run: Any = SimpleNamespace(state={"messages": [message]})
    for tool, kind, mark, other in [("update_athlete", "user", ada, team), ("update_plan", "team", team, ada)]:
        check_call(run, tool, kind, mark)
        with pytest.raises(InvalidRequestError, match=f"another {kind}"):
            check_call(run, tool, kind, other)
