"""What the tools and the middleware share: whose memory it is, which models it has, and how a plan runs on it.

A plan is a generator that yields steps on an entity and receives their results, so that it is written once for the
sync and the async face. The entity comes from the run, never from what a model says.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import Runtime, get_runtime
from pydantic import BaseModel

from agent_memory import (
    AsyncEntity,
    Entity,
    InvalidRequestError,
    NoRequestContextError,
    RequestContext,
)

from .annotations import check_model, ordering_field
from .namespaces import unescape

R = TypeVar("R")

EntitySource: TypeAlias = tuple[str, str] | Callable[[Any], tuple[str, str]]
"""Where a run's entity comes from: ``("user", "user_id")`` is the user whose id is ``user_id`` of the run's context;
a function gets the ``Runtime`` (``ToolRuntime`` in a tool) and returns kind and id."""

Models: TypeAlias = Sequence[type[BaseModel]] | Mapping[str, type[BaseModel]]
"""Models under their own names, or by the names to use."""

Plan: TypeAlias = Generator[Callable[[Any], Any], Any, R]

_LABEL_BYTES: Final = 200  # Provenance holds 4,096 bytes in all.


class Spec(NamedTuple):
    """A document, or a collection (``many``): its name in the store, its model, and its name in the names of tools.

    ``ordered_by`` is the field whose time sorts the items of a collection, if one does.
    """

    name: str
    model: type[BaseModel]
    label: str
    many: bool
    ordered_by: str | None = None


def document_specs(entity: Entity | AsyncEntity, models: Models) -> list[Spec]:
    """Return the documents of these models; raise what the store raises for a model that it cannot hold."""
    return [_spec(entity.document(check_model(model), name=name).key, model, False) for name, model in _named(models)]


def collection_specs(entity: Entity | AsyncEntity, models: Models) -> list[Spec]:
    """Return the collections of these models; raise what the store raises for a model that it cannot hold."""
    return [
        _spec(entity.collection(check_model(model), name=name).prefix.rstrip("/"), model, True)
        for name, model in _named(models)
    ]


def _named(models: Models) -> list[tuple[str | None, type[BaseModel]]]:
    if isinstance(models, Mapping):
        return list(cast("Mapping[str, type[BaseModel]]", models).items())
    if isinstance(models, type):
        raise InvalidRequestError("documents= and collections= take a list of models, or a mapping by name")
    return [(None, model) for model in models]


def _spec(key: str, model: type[BaseModel], many: bool) -> Spec:
    name = unescape(key.rpartition("/")[2])
    label = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")
    if not label:
        raise InvalidRequestError(f"no tool can be named after {name!r}; give the model a name with letters")
    return Spec(name, model, label, many, ordering_field(model) if many else None)


def plural(label: str) -> str:
    """Return the plural of a collection's label, by the plain rules of English."""
    if label.endswith(("s", "x", "z", "ch", "sh")):
        return f"{label}es"
    if label.endswith("y") and label[-2:-1] not in ("", *"aeiou"):
        return f"{label[:-1]}ies"
    return f"{label}s"


# -- whose memory ----------------------------------------------------------------------------------------------------


def check_source(source: Any) -> EntitySource:
    """Return an entity source; raise InvalidRequestError if it is none."""
    if callable(source):
        return cast("Callable[[Any], tuple[str, str]]", source)
    parts = cast("Sequence[Any]", source) if isinstance(source, (tuple, list)) else ()
    if len(parts) == 2 and all(isinstance(part, str) and part.strip() for part in parts):
        return (parts[0], parts[1])
    raise InvalidRequestError('entity= is ("kind", "name of a context field") or a function of the runtime')


def resolve_entity(source: EntitySource, runtime: Any, config: RunnableConfig | None) -> tuple[str, str]:
    """Return the kind and id of the entity that this run serves; raise InvalidRequestError if it names none.

    A field is looked up in the run's context, as an attribute or a key; only if the context has no such field, in
    ``config["configurable"]``. There is no default: two runs without an id would share a memory.
    """
    named = ""
    if callable(source):
        found: Any = source(runtime)
        if not (isinstance(found, tuple) and len(cast("tuple[Any, ...]", found)) == 2):
            raise InvalidRequestError("the entity function must return a kind and an id")
        kind, id = cast("tuple[Any, Any]", found)
    else:
        kind, field = source
        named = f", {field!r},"
        id = _context_field(getattr(runtime, "context", None), field)
        if id is _ABSENT:
            id = ((config or {}).get("configurable") or {}).get(field, _ABSENT)
        if id is _ABSENT:
            raise InvalidRequestError(
                f"this run names no {kind}: pass context= with {field!r}, or config with configurable {field!r}"
            )
    kind = _text(kind, "the kind of this run's entity")
    return kind, _text(id, f"the id of this run's {kind}{named}")


_ABSENT: Final = object()


def _context_field(context: Any, field: str) -> Any:
    if isinstance(context, Mapping):
        return cast("Mapping[str, Any]", context).get(field, _ABSENT)
    return getattr(context, field, _ABSENT)


def _text(value: Any, what: str) -> str:
    if isinstance(value, (int, uuid.UUID)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequestError(f"{what} is missing, blank or not text")
    return value


# -- running ---------------------------------------------------------------------------------------------------------


def run_plan(plan: Plan[R], entity: Entity) -> R:
    """Run a plan on the sync face."""
    try:
        step = next(plan)
        while True:
            try:
                reply = step(entity)
            except Exception as error:
                step = plan.throw(error)
            else:
                step = plan.send(reply)
    except StopIteration as stop:
        return stop.value


async def arun_plan(plan: Plan[R], entity: AsyncEntity) -> R:
    """Run a plan on the async face."""
    try:
        step = next(plan)
        while True:
            try:
                reply = await step(entity)
            except Exception as error:
                step = plan.throw(error)
            else:
                step = plan.send(reply)
    except StopIteration as stop:
        return stop.value


def current_config() -> RunnableConfig | None:
    """Return the config of the run that is going on here, None outside one."""
    try:
        return get_config()
    except RuntimeError:
        return None


def current_runtime() -> Runtime[Any] | None:
    """Return the runtime of the run that is going on here, None outside one, or where a call brings its own config."""
    try:
        return cast("Runtime[Any] | None", get_runtime())
    except RuntimeError:
        return None


def request_labels(
    runtime: Any, config: RunnableConfig | None, *, agent: str | None, tool: str
) -> tuple[str, dict[str, str]]:
    """Return the request id and the provenance of what a tool call writes.

    A request that the application has open keeps its id, and those of its labels that the call does not say anew; else
    the id is the run's, the thread's, or a new one. A run without ``run_id`` in its config tells tools none: then the
    label holds the traced id of the step they run in.
    """
    config = config or {}
    settings, metadata = config.get("configurable") or {}, config.get("metadata") or {}
    execution = getattr(runtime, "execution_info", None)
    run_id = getattr(execution, "run_id", None) or config.get("run_id") or metadata.get("run_id")
    found = {
        "agent": agent or metadata.get("lc_agent_name"),
        "source": "langchain",
        "thread_id": settings.get("thread_id") or getattr(execution, "thread_id", None),
        "run_id": run_id or getattr(config.get("callbacks"), "parent_run_id", None),
        "tool_call_id": getattr(runtime, "tool_call_id", None),
        "tool": tool,
    }
    labels = {name: _label(one) for name, one in found.items() if one}
    try:
        request_id = RequestContext.get().request_id
    except NoRequestContextError:
        request_id = _label(run_id or labels.get("thread_id") or labels.get("run_id") or uuid.uuid4())
    return request_id, labels


def _label(value: Any) -> str:
    return str(value).replace("\0", "").encode(errors="replace")[:_LABEL_BYTES].decode(errors="ignore")
