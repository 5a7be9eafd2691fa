"""Tools in nodes that run again: what they added once is there once, and no two calls pass for one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, RetryPolicy, interrupt
from pydantic import BaseModel, Field

from agent_memory import AgentMemory
from agent_memory_langchain import Agent, MemoryMiddleware, memory_tools
from agent_memory_langchain.calls import this_call
from tests.support.agents import ScriptedModel, Session

ASK: dict[str, Any] = {"messages": [HumanMessage("hello")]}
THREAD: Any = {"configurable": {"thread_id": "t", "user_id": "bob"}}

RUN = ("add_session", {"kind": "run"}, "call_1")
SWIM = ("add_session", {"kind": "swim"}, "call_2")
APPROVE = ("approve", {}, "call_3")


class Ride(BaseModel):
    when: Annotated[datetime, Agent(orders=True)] = Field(default_factory=lambda: datetime.now(UTC))
    day: date | None = None


class Visit(BaseModel):
    day: Annotated[date, Agent(orders=True)]


@tool
def approve() -> str:
    """Wait for somebody's approval."""
    return str(interrupt("may I?"))


class Lost(Exception):
    """What a process meets that does not come to save what its node did."""


class LosesOnce(AgentMiddleware[Any, Any, Any]):
    """Fails after the first call of a tool."""

    lost = False

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        answer = handler(request)
        if not self.lost:
            self.lost = True
            raise Lost
        return answer


class AsksTwice(AgentMiddleware[Any, Any, Any]):
    """Makes two calls of a tool out of one."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        handler(request.override(tool_call={**request.tool_call, "args": {"kind": "yoga"}}))
        return handler(request)


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    with AgentMemory("memory://", application="fitness") as memory:
        yield memory


def tools_of(memory: AgentMemory) -> list[Any]:
    return memory_tools(memory, entity=("user", "user_id"), collections=[Session, Ride, Visit])


def kinds(memory: AgentMemory) -> list[str]:
    """List the items, oldest first."""
    return [one.value.kind for one in memory.entity("user", "bob").collection(Session).list()]


def answer(*calls: tuple[str, dict[str, Any], str]) -> AIMessage:
    made: Any = [{"name": name, "args": arguments, "id": id} for name, arguments, id in calls]
    return AIMessage("", tool_calls=made, id=str(uuid.uuid4()))


def graph_of(memory: AgentMemory, *calls: tuple[str, dict[str, Any], str]) -> Any:
    """Return a graph whose one node of tools gets all the calls of a message."""
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda _: {"messages": [answer(*calls)]})  # type: ignore[arg-type]
    builder.add_node("tools", ToolNode([*tools_of(memory), approve]))
    builder.add_edge(START, "model")
    builder.add_edge("model", "tools")
    return builder.compile(checkpointer=InMemorySaver())


def test_a_node_that_runs_again_after_an_interrupt_adds_nothing_twice(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN, SWIM, APPROVE)
    graph.invoke(ASK, THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    assert kinds(memory) == ["run", "swim"]


@pytest.mark.asyncio
async def test_so_it_is_in_async_runs(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN, SWIM, APPROVE)
    await graph.ainvoke(ASK, THREAD)
    await graph.ainvoke(Command(resume="yes"), THREAD)
    assert kinds(memory) == ["run", "swim"]


def test_an_agent_that_was_lost_before_it_saved_adds_nothing_twice(memory: AgentMemory) -> None:
    model = ScriptedModel(turns=[[("add_session", {"kind": "run"}), ("add_session", {"kind": "run"})]])
    own = MemoryMiddleware(memory, entity=("user", "user_id"), collections=[Session])
    agent: Any = create_agent(model, middleware=[LosesOnce(), own], checkpointer=InMemorySaver())
    with pytest.raises(Lost):
        agent.invoke(ASK, THREAD)
    agent.invoke(None, THREAD)
    assert kinds(memory) == ["run", "run"]


def test_a_node_that_is_retried_adds_nothing_twice(memory: AgentMemory) -> None:
    tools, tried = ToolNode(tools_of(memory)), list[int]()

    def node(state: MessagesState) -> Any:
        done = tools.invoke(state)
        tried.append(1)
        if len(tried) == 1:
            raise ConnectionError
        return done

    builder = StateGraph(MessagesState)
    builder.add_node("tools", node, retry_policy=RetryPolicy(initial_interval=0.01))
    builder.add_edge(START, "tools")
    builder.compile().invoke({"messages": [answer(RUN)]}, THREAD)
    assert (len(tried), kinds(memory)) == (2, ["run"])


def test_what_was_changed_in_between_stays_so(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN, APPROVE)
    graph.invoke(ASK, THREAD)
    sessions = memory.entity("user", "bob").collection(Session)
    (added,) = sessions.list()
    sessions.item(added.id).update(note="with Ann")
    end = graph.invoke(Command(resume="yes"), THREAD)
    assert sessions.list()[0].value == Session(kind="run", note="with Ann")
    assert any(message.text == f'Added. item_id: "{added.id}"' for message in end["messages"])


def test_items_that_a_time_orders_are_added_once_too(memory: AgentMemory) -> None:
    calls = [
        ("add_ride", {}, "1"),
        ("add_ride", {"when": "2026-04-17"}, "2"),
        ("add_visit", {"day": "2026-04-17"}, "3"),
    ]
    graph = graph_of(memory, *calls, APPROVE)
    graph.invoke(ASK, THREAD)
    graph.invoke(Command(resume="yes"), THREAD)
    user = memory.entity("user", "bob")
    assert (len(user.collection(Ride).list()), len(user.collection(Visit).list())) == (2, 1)


def test_the_items_of_one_message_stand_in_its_order(memory: AgentMemory) -> None:
    graph_of(memory, *[("add_session", {"kind": str(number)}, f"call_{number}") for number in range(9)]).invoke(
        ASK, THREAD
    )
    assert kinds(memory) == [str(number) for number in range(9)]


class Totals(BaseModel):
    km: float = 0.0
    shoes: list[str] = []


TOTALS = [
    ("add_to_totals", {"km": 5}, "call_1"),
    ("add_to_totals", {"km": 5}, "call_2"),
    ("add_to_totals", {"km": 2, "shoes": ["red"]}, "call_5"),
    ("update_session", {"item_id": "1", "note": "wet"}, "call_4"),
]


def totals_graph(memory: AgentMemory) -> Any:
    memory.entity("user", "bob").collection(Session).add(Session(kind="run"), id="1")
    tools = memory_tools(memory, entity=("user", "user_id"), documents=[Totals], collections=[Session])
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda _: {"messages": [answer(*TOTALS, APPROVE)]})  # type: ignore[arg-type]
    builder.add_node("tools", ToolNode([*tools, approve]))
    builder.add_edge(START, "model")
    builder.add_edge("model", "tools")
    return builder.compile(checkpointer=InMemorySaver())


def test_what_a_node_added_to_a_number_is_not_added_again(memory: AgentMemory) -> None:
    graph, user = totals_graph(memory), memory.entity("user", "bob")
    graph.invoke(ASK, THREAD)
    totals, session = user.document(Totals), user.collection(Session).item("1")
    before = totals.snapshot(), session.snapshot()
    assert totals.get() == Totals(km=12, shoes=["red"])
    session.update(note="dry")
    end = graph.invoke(Command(resume="yes"), THREAD)
    assert totals.snapshot() == before[0]
    assert session.get() == Session(kind="run", note="dry"), "what was said since stays"
    assert end["messages"][-2].text == 'Saved. session: {"note": "dry"}'


def test_what_a_node_saved_and_others_deleted_stays_deleted(memory: AgentMemory) -> None:
    graph, user = totals_graph(memory), memory.entity("user", "bob")
    totals, session = user.document(Totals), user.collection(Session).item("1")
    graph.invoke(ASK, THREAD)
    totals.delete()
    session.delete()
    end = graph.invoke(Command(resume="yes"), THREAD)
    assert totals.get() is None
    assert [one.text for one in end["messages"][-5:-2]] == ["This was saved before; the totals was deleted since."] * 3
    assert end["messages"][-2].text == "This was saved before; the session was deleted since."


# -- calls that look alike ---------------------------------------------------------------------------------------------


def test_a_model_may_use_the_same_id_in_every_turn(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN)
    for _ in range(3):
        graph.invoke(ASK, THREAD)
    assert kinds(memory) == ["run", "run", "run"]


@pytest.mark.parametrize("id", ["call_1", ""])
def test_a_model_may_use_the_same_id_twice_in_a_message_or_none(memory: AgentMemory, id: str) -> None:
    graph_of(memory, ("add_session", {"kind": "run"}, id), ("add_session", {"kind": "run"}, id)).invoke(ASK, THREAD)
    assert kinds(memory) == ["run", "run"]


def test_a_loop_inside_one_node_may_use_the_same_id(memory: AgentMemory) -> None:
    tools = ToolNode(tools_of(memory))

    def node(state: MessagesState) -> Any:
        return {"messages": [tools.invoke([answer(RUN)])[0] for _ in range(2)]}

    builder = StateGraph(MessagesState)
    builder.add_node("loop", node)
    builder.add_edge(START, "loop")
    builder.compile(checkpointer=InMemorySaver()).invoke(ASK, THREAD)
    assert kinds(memory) == ["run", "run"]


def test_two_threads_add_for_themselves(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN)
    for thread in ("one", "two"):
        graph.invoke(ASK, {"configurable": {"thread_id": thread, "user_id": "bob"}})
    assert kinds(memory) == ["run", "run"]


def test_who_goes_back_to_an_old_checkpoint_adds_anew_to_what_is_remembered_now(memory: AgentMemory) -> None:
    graph = graph_of(memory, RUN)
    graph.invoke(ASK, THREAD)
    old = next(one for one in graph.get_state_history(THREAD) if one.next == ("tools",))
    bob: Any = {"user_id": "bob"}  # which no checkpoint keeps
    graph.invoke(None, {"configurable": {**old.config["configurable"], **bob}})
    other = old.values["messages"][-1].model_copy(update={"tool_calls": answer(SWIM).tool_calls})
    fork = graph.update_state(old.config, {"messages": [other]})
    graph.invoke(None, {"configurable": {**fork["configurable"], **bob}})
    assert kinds(memory) == ["run", "run", "swim"]


def test_a_middleware_may_call_a_tool_with_other_arguments(memory: AgentMemory) -> None:
    model = ScriptedModel(turns=[[("add_session", {"kind": "run"})]])
    own = MemoryMiddleware(memory, entity=("user", "user_id"), collections=[Session])
    create_agent(model, middleware=[AsksTwice(), own]).invoke(ASK, THREAD)  # type: ignore[arg-type]
    assert sorted(kinds(memory)) == ["run", "yoga"]


CHECKPOINT = "1f0a2f6e-5c3b-6e10-8000-000000000001"


def running(state: Any, *, checkpoint: str = CHECKPOINT, id: str = "call_1") -> Any:
    """Return the runtime of a tool."""
    task = SimpleNamespace(checkpoint_id=checkpoint, task_id="task")
    return SimpleNamespace(execution_info=task, tool_call_id=id, state=state)


def calling(id: str = "m", call: str = "call_1") -> AIMessage:
    return AIMessage("", id=id, tool_calls=[{"name": "add_session", "args": {}, "id": call}])


@pytest.mark.parametrize(
    "state", [list, lambda found: {"messages": found}, lambda found: SimpleNamespace(messages=found)]
)
def test_the_last_message_with_calls_is_found_whatever_holds_the_messages(state: Any) -> None:
    messages = [calling("before", "call_1"), HumanMessage("more"), calling("now", "call_2")]
    assert this_call(running(state(messages), id="call_2"), {}) is not None
    assert this_call(running(state(messages), id="call_1"), {}) is None


def test_a_call_is_the_same_whatever_the_order_of_its_arguments() -> None:
    run = running([calling()])
    day = date(2026, 1, 2)
    assert this_call(run, {"kind": "run", "day": day}) == this_call(run, {"day": day, "kind": "run"})


@pytest.mark.parametrize(
    "run",
    [
        running([calling()], checkpoint="7"),
        running([calling()], checkpoint="5e5c6b0c-3f3c-4b7e-9d53-6b1f0c8b7a11"),
        running([calling("")]),
        running([calling()], id=""),
        running([]),
    ],
    ids=["no uuid", "no time", "no message id", "no call id", "no message"],
)
def test_a_call_that_another_could_pass_for_is_none(run: Any) -> None:
    assert this_call(run, {}) is None
