"""Typed tools for agents, generated from the models of their memory.

For a document ``Profile`` (its name is ``profile``) and a collection ``Workout`` (its items are called ``workout``):

| tool                                        | does                                                                  |
|---------------------------------------------|-----------------------------------------------------------------------|
| ``read_profile()``                          | all visible fields                                                    |
| ``update_profile(weight_kg=…, …)``          | sets the given fields; one that is not given stays, null clears it    |
| ``add_to_profile(steps=5, goals=["5k"])``   | adds to numbers (also a negative number), to mappings, and to lists   |
|                                             | and sets what they do not hold yet: nothing that runs at the same     |
|                                             | time is lost                                                          |
| ``remove_from_profile(goals=["5k"])``       | removes elements of lists and sets, and keys of mappings              |
| ``forget_profile(fields=["goals"])``        | sets fields back to their defaults, or to null                        |
| ``add_workout(kind="run", …)``              | adds an item, answers with its id; see ``Agent(orders=True)``         |
| ``list_workouts(limit=10, older_than=…)``   | the newest items, with their ids                                      |
| ``search_workouts(text=…, where={…}, …)``   | the newest items with all of these words, and these fields            |
| ``update_workout(item_id, …)``              | as ``update_profile``, of one item                                    |
| ``forget_workout(item_id)``                 | deletes an item                                                       |

A tool that would have no arguments to offer (nothing to add to, nothing to forget) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.prebuilt import ToolRuntime

from agent_memory import AgentMemory, AsyncAgentMemory, InvalidRequestError

from .answers import Answers
from .bindings import (
    EntitySource,
    Models,
    arun_plan,
    check_source,
    collection_specs,
    current_config,
    current_runtime,
    document_specs,
    request_labels,
    resolve_entity,
    run_plan,
)
from .calls import this_call
from .changes import explained
from .faces import Faces
from .marks import Marks, check_call, mark_of, marked
from .operations import Operation, collection_operations, document_operations
from .render import Counter, count_by_characters

ANSWER_TOKENS: Final = 4_000
_ABSENT: Final[Any] = None

_Answer: TypeAlias = tuple[str, dict[str, Marks]]


class MemoryTool(StructuredTool):
    """A StructuredTool that takes arguments of any name, ``self`` too, so that its own code can refuse them."""

    def _run(self, /, *args: Any, config: RunnableConfig, run_manager: Any = None, **sent: Any) -> Any:  # noqa: ARG002
        return cast("Callable[..., Any]", self.func)(*args, config=config, **sent)

    async def _arun(self, /, *args: Any, config: RunnableConfig, run_manager: Any = None, **sent: Any) -> Any:  # noqa: ARG002
        return await cast("Callable[..., Any]", self.coroutine)(*args, config=config, **sent)


def memory_tools(
    memory: AgentMemory | AsyncAgentMemory,
    *,
    entity: EntitySource,
    documents: Models = (),
    collections: Models = (),
    agent: str | None = None,
    only: Iterable[str] | None = None,
    answer_budget: int = ANSWER_TOKENS,
    count_tokens: Counter = count_by_characters,
) -> list[BaseTool]:
    """Return the tools by which an agent works with the memory of the entity that its run serves.

    Args:
        memory: either face; the tools work in sync and in async runs.
        entity: where the run says whose memory it is; see ``EntitySource``. No argument of any tool can name another.
        documents: models of which an entity has one, or a mapping by the names to use.
        collections: models of which an entity has many, or a mapping by the names to use.
        agent: who writes, for the provenance; by default the name given to ``create_agent``.
        only: the names of the tools to keep; by default all.
        answer_budget: tokens of stored values that one answer may have. Items that do not fit come when the agent asks
            for older ones; of a value that is too long alone, fields are left out and named, those with the lowest
            ``Agent(priority=…)`` first.
        count_tokens: counts the tokens of a text; by default a quarter of its characters.

    The tools raise InvalidRequestError where the run names no entity. What a model can correct comes back to it as a
    tool message with ``status="error"``; errors of the store itself (UnavailableError and the like) are raised.

    Raises:
        InvalidRequestError: two tools would have one name, a name in ``only`` is no tool's, a model cannot be used, or
            ``answer_budget`` is below 1.
    """
    faces, source = Faces(memory), check_source(entity)
    if answer_budget < 1:
        raise InvalidRequestError("answer_budget must be at least 1")
    answers = Answers(answer_budget, count_tokens)
    operations = [one for spec in document_specs(faces.probe, documents) for one in document_operations(spec, answers)]
    operations += [
        one for spec in collection_specs(faces.probe, collections) for one in collection_operations(spec, answers)
    ]
    names = [one.name for one in operations]
    for name in names:
        if names.count(name) > 1 or len(name) > 64:
            problem = "is too long for a tool's name" if len(name) > 64 else "would be the name of two tools"
            raise InvalidRequestError(f"{name!r} {problem}: give a model another name, documents={{name: model}}")
    if only is not None:
        if isinstance(only, str):
            raise InvalidRequestError("the tools to keep are a list of names, not one name")
        keep = set(only)
        if unknown := sorted(keep - set(names)):
            raise InvalidRequestError(f"there is no tool named {', '.join(unknown)}; there are {', '.join(names)}")
        operations = [one for one in operations if one.name in keep]
    return [_tool(faces, source, agent, one) for one in operations]


def _tool(faces: Faces, source: EntitySource, agent: str | None, operation: Operation) -> BaseTool:
    def prepare(runtime: Any, config: RunnableConfig | None, sent: Mapping[str, Any]) -> Any:
        # Outside a ToolNode nothing injects a runtime, and what is there under its name came from the model.
        injected = runtime if isinstance(runtime, ToolRuntime) else None
        config = injected.config if injected is not None else config or current_config()
        run = injected or current_runtime()
        kind, id = resolve_entity(source, run, config)
        mark = mark_of(kind, id)
        check_call(injected, operation.name, kind, mark)
        request_id, labels = request_labels(run, config, agent=agent, tool=operation.name)
        which = this_call(injected, sent)
        plan = explained(
            operation.name, operation.spec, lambda values: operation.plan(values, which), operation.arguments, sent
        )
        return kind, id, request_id, labels, plan, marked([operation.name], mark)

    # LangChain tells an injected argument by its exact annotation: None cannot be part of it.
    def call(runtime: ToolRuntime = _ABSENT, config: RunnableConfig = _ABSENT, **sent: Any) -> _Answer:
        kind, id, request_id, labels, plan, marks = prepare(runtime, config, sent)
        with faces.sync.request(request_id, **labels):
            return run_plan(plan, faces.sync.entity(kind, id)), marks

    async def acall(runtime: ToolRuntime = _ABSENT, config: RunnableConfig = _ABSENT, **sent: Any) -> _Answer:
        kind, id, request_id, labels, plan, marks = prepare(runtime, config, sent)
        with faces.aio.request(request_id, **labels):
            return await arun_plan(plan, faces.aio.entity(kind, id)), marks

    return MemoryTool(
        name=operation.name,
        description=operation.description,
        args_schema=operation.arguments.schema,
        func=call,
        coroutine=acall,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )
