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

import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.prebuilt import ToolRuntime
from pydantic import BaseModel, Field

from agent_memory import AgentMemory, AsyncAgentMemory, ConflictError, InvalidRequestError, item_id

from .answers import Answers
from .bindings import (
    EntitySource,
    Models,
    Plan,
    Spec,
    arun_plan,
    check_source,
    collection_specs,
    current_config,
    current_runtime,
    document_specs,
    plural,
    request_labels,
    resolve_entity,
    run_plan,
)
from .calls import Call, this_call
from .changes import (
    Change,
    Fields,
    add_fields,
    explained,
    forget_fields,
    remove_from_fields,
    set_fields,
    validated,
    write,
)
from .faces import Faces
from .marks import Marks, check_call, mark_of, marked
from .reading import read_document, read_items, safe_json
from .render import Counter, count_by_characters
from .schemas import Arguments, Definition, Refused, additions, forgettable, refusal, settable
from .searching import search_arguments, search_items

LIST_LIMIT: Final = 50
ANSWER_TOKENS: Final = 4_000
_ABSENT: Final[Any] = None

_Answer: TypeAlias = tuple[str, dict[str, Marks]]


class MemoryTool(StructuredTool):
    """A StructuredTool that takes arguments of any name, ``self`` too, so that its own code can refuse them."""

    def _run(self, /, *args: Any, config: RunnableConfig, run_manager: Any = None, **sent: Any) -> Any:  # noqa: ARG002
        return cast("Callable[..., Any]", self.func)(*args, config=config, **sent)

    async def _arun(self, /, *args: Any, config: RunnableConfig, run_manager: Any = None, **sent: Any) -> Any:  # noqa: ARG002
        return await cast("Callable[..., Any]", self.coroutine)(*args, config=config, **sent)


class Operation(NamedTuple):
    """One tool before LangChain sees it.

    ``plan`` gets the parsed arguments, and which call it is if that can be told; it yields the steps of the answer.
    """

    name: str
    description: str
    spec: Spec
    arguments: Arguments
    plan: Callable[[Fields, Call | None], Plan[str]]


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
    operations = [one for spec in document_specs(faces.probe, documents) for one in _document_operations(spec, answers)]
    operations += [
        one for spec in collection_specs(faces.probe, collections) for one in _collection_operations(spec, answers)
    ]
    names = [one.name for one in operations]
    for name in names:
        if names.count(name) > 1 or len(name) > 64:
            raise InvalidRequestError(f"{name!r} is too long for a tool's name, or the name of two; rename a model")
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


# -- documents and items ---------------------------------------------------------------------------------------------


def _document_operations(spec: Spec, answers: Answers) -> list[Operation]:
    name = f"read_{spec.label}"

    def read(_: Fields, __: Call | None) -> Plan[str]:
        return answers.document(spec, (yield from read_document(spec)))

    reading = Operation(name, f"Read the whole {spec.label} as it is stored now.", spec, Arguments(name, {}), read)
    return [reading, *_change_operations(spec)]


def _change_operations(spec: Spec) -> list[Operation]:
    """Return the tools that change fields, of the document or of one item."""
    label, model, is_item = spec.label, spec.model, spec.many
    own: dict[str, Any] = {"item_id": (str, Field(description=f"which {label}"))} if is_item else {}
    fields, kinds, optional = settable(model), {} if is_item else additions(model), forgettable(model)
    fields = {name: one for name, one in fields.items() if name != spec.ordered_by}
    removable = {name: one for name, one in kinds.items() if one.removed is not None}
    operations: list[Operation] = []

    def offer(verb: str, description: str, definitions: Mapping[str, Definition], make: _Maker, **more: Any) -> None:
        name = verb.format(label)
        arguments = Arguments(name, definitions, own={**own, **more}, config=model.model_config)

        def plan(sent: Fields, call: Call | None) -> Plan[str]:
            item_id = sent.pop("item_id") if is_item else None
            named = dict.fromkeys(sent.get("fields", ())) if more else sent
            if not named:
                raise Refused(f"{name}: send at least one field. Nothing was changed.")
            return write(spec, name, make(name, sent), named, call, item_id=item_id)

        operations.append(Operation(name, description, spec, arguments, plan))

    if fields:
        offer(
            "update_{}",
            f"Change fields of {'one' if is_item else 'the'} {label}. Send only what changes: a field that is not sent "
            "stays as it is, null clears one that may be null. Lists and objects are replaced whole"
            + (f"; add_to_{label} adds to them." if kinds else ".")
            + (f" To change {spec.ordered_by}, forget the {label} and add it anew." if spec.ordered_by else ""),
            fields,
            lambda _, sent: set_fields(sent),
        )
    if kinds:
        offer(
            "add_to_{}",
            f"Add to the {label}: a number is added to the stored number (a negative one subtracts), elements that a "
            "list does not hold yet are appended, entries are put into a mapping. Safe while others add at the same "
            "time.",
            {name: (one.added, _about(model, name)) for name, one in kinds.items()},
            lambda _, sent: add_fields(model, kinds, sent),
        )
    if removable:
        offer(
            "remove_from_{}",
            f"Remove elements from lists of the {label}, and keys from its mappings.",
            {name: (one.removed, _about(model, name)) for name, one in removable.items()},
            lambda name, sent: remove_from_fields(kinds, name, sent),
        )
    if optional and not is_item:
        choice = list[Literal[tuple(optional)]]
        offer(
            "forget_{}",
            f"Forget fields of the {label}: they go back to their defaults, or to null.",
            {},
            lambda _, sent: forget_fields(model, sent["fields"]),
            fields=(choice, Field(min_length=1)),
        )
    return operations


_Maker = Callable[[str, dict[str, Any]], Change]


def _about(model: Any, name: str) -> Any:
    return Field(description=model.model_fields[name].description)


# -- collections -----------------------------------------------------------------------------------------------------


def _collection_operations(spec: Spec, answers: Answers) -> list[Operation]:
    label, many = spec.label, plural(spec.label)

    def list_(sent: Fields, _: Call | None) -> Plan[str]:
        rows = yield from read_items(spec, sent["limit"] + 1, sent["older_than"])
        shown = rows[: sent["limit"]]
        return answers.items(spec, many, shown, rest=shown[-1].id if len(rows) > len(shown) else None)

    def search(sent: Fields, _: Call | None) -> Plan[str]:
        return answers.items(spec, many, *(yield from search_items(spec, sent)))

    def forget(sent: Fields, _: Call | None) -> Plan[str]:
        item_id = sent["item_id"]
        entry = yield lambda entity: entity.collection(spec.model, name=spec.name).delete(item_id)
        if entry is None:
            raise Refused(f"forget_{label}: there is no {label} with this item_id. Nothing was changed.")
        return f"Deleted the {label} {safe_json(item_id)}."

    limit = (Annotated[int, Field(ge=1, le=LIST_LIMIT)], 10)
    older = (str | None, Field(None, description="an item_id: only what is older than it"))
    paging: dict[str, Any] = {"limit": limit, "older_than": older}
    list_arguments = Arguments(f"list_{many}", {}, own=paging)
    which = {"item_id": (str, Field(description=f"which {label}"))}
    return [
        *_add_operation(spec),
        Operation(f"list_{many}", f"List the newest {many}, with their item_ids.", spec, list_arguments, list_),
        Operation(
            f"search_{many}", f"Search the {many}, the newest first.", spec, search_arguments(spec, paging), search
        ),
        *_change_operations(spec),
        Operation(f"forget_{label}", f"Delete one {label}.", spec, Arguments(f"forget_{label}", {}, own=which), forget),
    ]


def _add_operation(spec: Spec) -> list[Operation]:
    name, fields = f"add_{spec.label}", settable(spec.model)
    if any(field.is_required() and key not in fields for key, field in spec.model.model_fields.items()):
        return []  # Only the application can make such an item.
    required = {key: one for key, one in fields.items() if one[1].is_required()}
    optional = {key: one for key, one in fields.items() if key not in required}
    arguments = Arguments(name, optional, required=required, config=spec.model.model_config)

    def add(sent: Fields, call: Call | None) -> Plan[str]:
        value = validated(spec.model, name, sent, sent, absent=True)
        id = _new_id(spec, name, value, sent, call)
        try:
            added = yield lambda entity: entity.collection(spec.model, name=spec.name).add(value, id=id)
        except ConflictError as error:
            if call is None or error.code != "condition_failed":
                raise
            # Nobody else makes this id: the call ran before, and its item was changed since or got other defaults.
            added = id
        return f"Added. item_id: {safe_json(added)}"

    return [Operation(name, f"Add a {spec.label}.", spec, arguments, add)]


def _new_id(spec: Spec, tool: str, value: BaseModel, sent: Fields, call: Call | None) -> str | None:
    """Return the id of an item, at the time that orders it or else of its call; None for any, at the time of adding."""
    at = None if spec.ordered_by is None else getattr(value, spec.ordered_by)
    if call and spec.ordered_by not in sent and _is_made_anew(spec):
        at = None  # a clock was asked, and would be again when the call runs again
    if at is None:
        return None if call is None else call.id
    if not isinstance(at, datetime):
        at = datetime.combine(cast(date, at), time.min)
    zone = at.tzinfo or UTC
    if at.time() == time.min:
        # A day without a time of day: what is told of it later comes later.
        told = datetime.now(zone) if call is None else call.at.astimezone(zone)
        at = datetime.combine(at, told.time())
    try:
        return item_id(at.replace(tzinfo=zone), str(uuid.uuid4()) if call is None else call.name)
    except InvalidRequestError:
        raise refusal(tool, [f"{spec.ordered_by}: a time before 1970 cannot be stored"]) from None


def _is_made_anew(spec: Spec) -> bool:
    return spec.ordered_by is not None and spec.model.model_fields[spec.ordered_by].default_factory is not None
