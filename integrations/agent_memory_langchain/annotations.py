"""Agent: what agents may do with a field of a model, and what of a value they may see.

    class Profile(BaseModel):
        weight_kg: float
        goals: Annotated[list[str], Agent(priority=10)] = []
        customer_since: Annotated[date | None, Agent(read_only=True)] = None
        risk_score: Annotated[float, Agent(hidden=True)] = 0.0

    class Workout(BaseModel):
        started: Annotated[datetime, Agent(orders=True)]

A marker anywhere inside a field's annotation counts for the whole field. Where hiding could not be kept, the model is
refused when the tools are made.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import AliasChoices, BaseModel, PlainSerializer, RootModel, WrapSerializer
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict  # typing's knows none of those that Pydantic takes on Python 3.11

from agent_memory import InvalidRequestError

_SERIALIZERS: Final = (PlainSerializer, WrapSerializer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """Limit what agents see and change of a field.

    ``hidden`` keeps it out of prompts, tool schemas, results and error messages, and makes it read-only; ``read_only``
    keeps it out of the tools that write. Fields with a higher ``priority`` (default 0) stay when the token budget of a
    prompt, or of a tool's answer, is too small for all.

    ``orders`` marks the time by which the items of a collection are sorted, a ``datetime`` or ``date``: ``add_<item>``
    makes ids from it (see ``agent_memory.item_id``), so that what happened yesterday stands before today's items
    whenever it is told. A time without a zone counts as UTC. Midnight counts as a day without a time, and items of one
    day stand in the order of their adding. Agents do not change it later: the id stays.
    """

    hidden: bool = False
    read_only: bool = False
    priority: int = 0
    orders: bool = False


def rule(field: FieldInfo) -> Agent:
    """Return what was declared for a field; several markers add up to the strictest."""
    found = [one for one in _metadata(field) if isinstance(one, Agent)]
    return Agent(
        hidden=any(one.hidden for one in found),
        read_only=any(one.read_only for one in found),
        priority=found[0].priority if found else 0,
        orders=any(one.orders for one in found),
    )


def visible_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields that agents see, in the order of their declaration."""
    return {name: field for name, field in model.model_fields.items() if not rule(field).hidden}


def stored_keys(model: type[BaseModel]) -> dict[str, str]:
    """Return the keys that fields have in JSON, by which validators that run before know them."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        read = field.validation_alias
        accepted = read.choices if isinstance(read, AliasChoices) else [read]
        key = field.serialization_alias or name
        keys[name] = key if key in accepted else name
    return keys if len(set(keys.values())) == len(keys) else {}


def writable_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields that agents may write.

    A field whose value holds read-only or hidden fields deeper down is not among them: agents write it whole, and
    would replace what they may not touch.
    """
    return {
        name: field
        for name, field in visible_fields(model).items()
        if not rule(field).read_only and not _has_restrictions(field.annotation, set())
    }


def ordering_field(model: type[BaseModel]) -> str | None:
    """Return the field that sorts the items of a collection, None if none does.

    Raises InvalidRequestError if there are two, or if it is hidden or no time.
    """
    found = [name for name, field in model.model_fields.items() if rule(field).orders]
    if not found:
        return None
    field = model.model_fields[found[0]]
    times = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, date)]
    if len(found) > 1 or not times or rule(field).hidden:
        # An id tells its time to whoever sees it.
        raise InvalidRequestError(f"{model.__name__}: one visible field of type datetime or date can order the items")
    return found[0]


def by_location(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return field names by how an error's location may call them: by name or by one of their aliases."""
    found: dict[str, str] = {}
    for name, field in fields.items():
        read = field.validation_alias
        choices = read.choices if isinstance(read, AliasChoices) else [read]
        found |= {alias: name for alias in (name, field.alias, *choices) if isinstance(alias, str)}
    return found


def hides_something(model: Any) -> bool:
    """Say whether any field of a model, or of the models inside it or another record, is hidden."""
    return any(rule(field).hidden for one in _models_in(model, set()) for field in one.model_fields.values())


def check_model(model: Any) -> type[BaseModel]:
    """Return a model that agents can work with; raise InvalidRequestError for one whose rules could not be kept."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or issubclass(model, RootModel):
        name = getattr(model, "__name__", f"an instance of {type(model).__name__}")
        raise InvalidRequestError(f"agents work with Pydantic models that have fields, and {name} is none")
    for part in _everything_in(model, set()):
        if _is_record(part) and any(isinstance(one, Agent) for hint in _hints(part).values() for one in _parts(hint)):
            raise InvalidRequestError(f"Agent(...) counts on fields of Pydantic models, and {part.__name__} is none")
        if hides_something(part) and _has_serializers(part):
            raise InvalidRequestError(
                f"{part.__name__} has hidden fields, and a serializer of its own that could show them"
            )
    return model


def visible(value: BaseModel) -> dict[str, Any]:
    """Return what agents see of a value: plain JSON data by field name, the same for equal values.

    Neither hidden nor computed nor undeclared fields are in it.
    """
    hidden = _hidden(value)
    data = value.model_dump(mode="json", by_alias=False, round_trip=True, exclude=hidden or None, warnings=False)
    return _stable(value, data)


def looks_like(stored: Any, sent: Any) -> bool:
    """Say whether an element is what an agent sent: the fields that a newer model wrote to it, no agent can send."""
    if stored == sent:
        return True
    if not isinstance(stored, BaseModel) or type(stored) is not type(sent):
        return False
    return bool(_hidden(stored)) and not _hidden(sent) and visible(stored) == visible(sent)


# -- values ----------------------------------------------------------------------------------------------------------


def _hidden(value: Any) -> Any:
    """Return what to exclude from a value's dump: True for all of it, or a mapping by field, key or index."""
    if isinstance(value, RootModel):
        whole = cast("RootModel[Any]", value)
        return rule(type(whole).model_fields["root"]).hidden or _hidden(whole.root)
    if isinstance(value, BaseModel):
        found: dict[Any, Any] = dict.fromkeys(value.model_extra or {}, True)
        for name, field in type(value).model_fields.items():
            inner = True if rule(field).hidden else _hidden(getattr(value, name))
            if inner:
                found[name] = inner
        return found
    if isinstance(value, Mapping):
        pairs = list(cast("Mapping[Any, Any]", value).items())
    elif _is_instance_of_dataclass(value):
        pairs = [(one.name, getattr(value, one.name, None)) for one in dataclasses.fields(value)]
    elif isinstance(value, (list, tuple, deque)):
        pairs = list(enumerate(cast("list[Any]", value)))
    elif isinstance(value, (set, frozenset)):
        # The elements of a set cannot be told apart in its dump: all or nothing.
        return any(_hidden(one) for one in cast("set[Any]", value))
    else:
        return None
    return {key: inner for key, one in pairs if (inner := _hidden(one))}


def _stable(value: Any, data: Any) -> Any:
    """Sort what comes out of sets: their order differs from process to process."""
    if isinstance(value, RootModel):
        return _stable(cast("RootModel[Any]", value).root, data)
    if (isinstance(value, BaseModel) or _is_instance_of_dataclass(value)) and isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        return {name: _stable(getattr(value, name, None), one) for name, one in fields.items()}
    if isinstance(value, (set, frozenset)) and isinstance(data, list):
        return sorted(cast("list[Any]", data), key=lambda one: json.dumps(one, sort_keys=True))
    if isinstance(value, (list, tuple, deque)) and isinstance(data, list):
        old, new = list(cast("list[Any]", value)), cast("list[Any]", data)
        return [_stable(*pair) for pair in zip(old, new, strict=True)] if len(old) == len(new) else new
    if isinstance(value, Mapping) and isinstance(data, dict):
        old, named = list(cast("Mapping[Any, Any]", value).values()), cast("dict[str, Any]", data)
        if len(old) == len(named):
            return {key: _stable(one, inner) for one, (key, inner) in zip(old, named.items(), strict=True)}
    return data


def _is_instance_of_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


# -- types -----------------------------------------------------------------------------------------------------------


def _parts(annotation: Any, aliases: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Iterate over an annotation, everything inside it, and its metadata."""
    yield annotation
    inside = [*get_args(annotation)]
    if origin := get_origin(annotation):
        inside.append(origin)  # a generic record has fields of its own
    if isinstance(annotation, TypeVar):
        inside += [annotation.__bound__, *annotation.__constraints__, getattr(annotation, "__default__", None)]
    elif hasattr(annotation, "__value__"):  # ``type X = …``, which may contain itself
        if annotation in aliases:
            return
        inside.append(annotation.__value__)
        aliases = (*aliases, annotation)
    for part in inside:
        yield from _parts(part, aliases)


def _everything_in(annotation: Any, seen: set[Any]) -> Iterator[Any]:
    """Iterate over the classes that an annotation reaches, through the fields of models and other records too."""
    for part in _parts(annotation):
        if not isinstance(part, type) or part in seen:
            continue
        seen.add(part)
        if issubclass(part, BaseModel) and part is not BaseModel:
            part.model_rebuild(raise_errors=False)  # It may name classes that are defined after it.
        yield part
        if issubclass(part, BaseModel):
            for field in part.model_fields.values():
                yield from _everything_in(field.annotation, seen)
        elif _is_record(part):
            for hint in _hints(part).values():
                yield from _everything_in(hint, seen)


def _models_in(annotation: Any, seen: set[Any]) -> Iterator[type[BaseModel]]:
    return (part for part in _everything_in(annotation, seen) if issubclass(part, BaseModel))


def _has_restrictions(annotation: Any, seen: set[Any]) -> bool:
    rules = (rule(field) for model in _models_in(annotation, seen) for field in model.model_fields.values())
    return any(one.hidden or one.read_only for one in rules)


def _is_record(part: Any) -> bool:
    if not isinstance(part, type):
        return False
    is_named_tuple = issubclass(part, tuple) and hasattr(part, "_fields")
    return dataclasses.is_dataclass(part) or is_typeddict(part) or is_named_tuple


def _hints(record: type[Any]) -> dict[str, Any]:
    """Return the annotations of a record that is no model."""
    try:
        return get_type_hints(record, include_extras=True)
    except NameError as error:
        raise InvalidRequestError(
            f"{record.__name__} names {error.name}, which is not defined at the top of its module: "
            "define it there, or make a model of the record"
        ) from None


def _has_serializers(part: type[Any]) -> bool:
    """Say whether a model or another record is dumped by code of its own, which need not heed what is excluded."""
    decorators = getattr(part, "__pydantic_decorators__", None)
    if decorators is None:
        by_field: set[str] = set()
    elif decorators.model_serializers:
        return True
    else:
        by_field = {name for one in decorators.field_serializers.values() for name in one.info.fields}
    if issubclass(part, BaseModel):
        fields = {name: (one.annotation, list(_metadata(one))) for name, one in part.model_fields.items()}
    elif _is_record(part):
        fields = {name: (hint, list(_parts(hint))) for name, hint in _hints(part).items()}
    else:
        return False
    return any(
        name in by_field or "*" in by_field or any(isinstance(one, _SERIALIZERS) for one in metadata)
        for name, (annotation, metadata) in fields.items()
        if hides_something(annotation)
    )


def _metadata(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    yield from _parts(field.annotation)
