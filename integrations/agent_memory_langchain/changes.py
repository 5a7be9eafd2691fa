"""What the writing tools do to a value: pure functions of the stored value and the arguments, run by compare-and-set.

Each may run several times, each time on what stands there then, so that calls at the same time add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from agent_memory import (
    ConflictError,
    DeserializationError,
    InvalidKeyError,
    LimitExceededError,
    NotFoundError,
    SerializationError,
)

from .annotations import hides_something, looks_like, stored_keys, visible
from .bindings import Plan, Spec
from .calls import Call
from .reading import problem_of, safe_fields, safe_json
from .schemas import Addition, Arguments, Refused, Sent, of_result, refusal

# Characters. A thread keeps every answer: with a list that grows by one a call they would add up to its square.
_LONGEST_ANSWER: Final = 2_000
_LONGEST_FIELD: Final = 200

Fields: TypeAlias = dict[str, Any]

Change: TypeAlias = Callable[[Fields | None, list[str]], Fields]
"""Gets the fields that are stored, or None, and a list for what is to be said of the change; returns all fields as they
shall be."""


class NothingStored(Exception):
    """There is nothing to take away from: raised by a change, and no error for the model."""


def explained(
    tool: str, spec: Spec, plan: Callable[[Sent], Plan[str]], arguments: Arguments, sent: Mapping[str, Any]
) -> Plan[str]:
    """Run a tool's plan, and say to the model what it, or the application, can do about an error."""
    values = arguments.parse(sent)
    try:
        return (yield from plan(values))
    except DeserializationError as error:
        raise Refused(
            f"{tool}: what is stored cannot be read as a {spec.label} ({problem_of(spec.model, error)}); only the "
            "application can repair it. Nothing was changed."
        ) from None
    except ConflictError:
        raise Refused(f"{tool}: others wrote at the same time. Nothing was changed; call it again.") from None
    except InvalidKeyError:
        if not sent.keys() & {"item_id", "older_than"}:
            raise  # the entity's own id is too long, which is the application's to mend
        raise Refused(f"{tool}: no {spec.label} can have this item_id. Nothing was changed.") from None
    except (SerializationError, LimitExceededError) as error:
        raise refusal(tool, [f"this cannot be stored: {error.code}"]) from None


def write(
    spec: Spec,
    tool: str,
    make: Change,
    sent: Mapping[str, Any],
    call: Call | None,
    *,
    item_id: str | None = None,
) -> Plan[str]:
    """Change a document, or an item, until nobody wrote in between; return the changed fields as they are now.

    A call that ran before is known by its write id, and changes nothing again.
    """
    remarks: list[str] = []

    def change(current: BaseModel | None) -> BaseModel:
        if current is None and item_id is not None:
            raise Refused(f"{tool}: there is no {spec.label} with this item_id. Nothing was changed.")
        remarks.clear()  # of an earlier try
        data = make(None if current is None else _known_fields(current), remarks)
        unknown = None if current is None else current.model_extra
        return validated(spec.model, tool, data, sent, absent=current is None, unknown=unknown)

    def step(entity: Any) -> Any:
        if item_id is None:
            target = entity.document(spec.model, name=spec.name)
        else:
            target = entity.collection(spec.model, name=spec.name).item(item_id)
        # An absent value is the tool's to explain.
        return target.update(change, default=None, write_id=None if call is None else call.id)

    try:
        snapshot = yield step
    except NothingStored:
        return f"There is no {spec.label}: nothing was stored, and nothing had to be forgotten."
    except NotFoundError:
        return f"This was saved before; the {spec.label} was deleted since."
    now = {name: one for name, one in visible(snapshot.value).items() if name in sent}
    text = safe_fields(now)
    if len(text) > _LONGEST_ANSWER:
        text = safe_fields({name: _shortened(one) for name, one in now.items()})
    return "\n".join([f"Saved. {spec.label}: {text}", *remarks])


def _shortened(value: Any) -> Any:
    if not isinstance(value, str | list | dict) or len(safe_json(value)) <= _LONGEST_FIELD:
        return value
    return f"({len(value)} {'characters' if isinstance(value, str) else 'elements'}, not repeated here)"


def _known_fields(value: BaseModel) -> Fields:
    return {name: one for name, one in value.__dict__.items() if name in type(value).model_fields}


def validated(
    model: type[BaseModel], tool: str, data: Fields, sent: Mapping[str, Any], *, absent: bool,
    unknown: Mapping[str, Any] | None = None,
) -> BaseModel:  # fmt: skip
    """Return the model with these fields; raise Refused, without any stored value, if they are not valid together.

    ``unknown`` fields, which newer models wrote, stay; they may have the name of a field that has another key.
    """
    keys = stored_keys(model)
    try:
        changed = {**(unknown or {}), **{keys.get(name, name): value for name, value in data.items()}}
        return model.model_validate(changed, by_name=True, by_alias=True)
    except ValidationError as error:
        private = hides_something(model)
        problems = [of_result(one, model, sent, private=private, absent=absent) for one in error.errors()]
        raise refusal(tool, problems) from None


def set_fields(sent: Fields) -> Change:
    """Return the change that sets fields."""
    return lambda stored, _: {**(stored or {}), **sent}


def add_fields(model: type[BaseModel], kinds: Mapping[str, Addition], sent: Fields) -> Change:
    """Return the change that adds to fields; None and what is not there count as zero, or empty.

    An element that a list holds already is not added again: agents like to say things twice.
    """

    def make(stored: Fields | None, remarks: list[str]) -> Fields:
        data = dict(_initial(model) if stored is None else stored)
        for name, more in sent.items():
            current, kind = data.get(name), kinds[name]
            if kind.kind == "number":
                data[name] = more if current is None else current + more
            elif kind.kind == "mapping":
                data[name] = {**(current or {}), **more}
            else:
                held, known = list(current or ()), []
                for one in more:
                    (known if _holds(held, one) else held).append(one)
                data[name] = kind.build(held)
                if known:
                    there = safe_json([_plain(one) for one in known])
                    remarks.append(f"{name}: already there, and not added again: {there}")
        return data

    return make


def remove_from_fields(kinds: Mapping[str, Addition], tool: str, sent: Fields) -> Change:
    """Return the change that removes elements and keys; raise Refused for one that is not there."""

    def make(stored: Fields | None, _: list[str]) -> Fields:
        data = dict(stored or {})
        missing: list[str] = []
        for name, less in sent.items():
            current = data.get(name) or ()
            missing += [
                f"{name}: it does not contain {safe_json(_plain(one))}" for one in less if not _holds(current, one)
            ]
            if kinds[name].kind == "mapping":
                data[name] = {key: one for key, one in dict(current).items() if key not in less}
            else:
                data[name] = kinds[name].build(
                    [one for one in current if not any(looks_like(one, other) for other in less)]
                )
        if missing:
            raise refusal(tool, missing)
        return data

    return make


def _holds(elements: Iterable[Any], sent: Any) -> bool:
    return any(looks_like(one, sent) for one in elements)


def forget_fields(model: type[BaseModel], names: list[str]) -> Change:
    """Return the change that sets fields back to their defaults, or to None where they have none."""

    def make(stored: Fields | None, _: list[str]) -> Fields:
        if stored is None:
            raise NothingStored
        kept = {name: one for name, one in stored.items() if name not in names}
        return {**kept, **{name: None for name in names if model.model_fields[name].is_required()}}

    return make


def _initial(model: type[BaseModel]) -> Fields:
    try:
        return dict(model())
    except ValidationError:
        pass
    # Some field must be given: the others start from their defaults all the same.
    return {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in model.model_fields.items()
        if not field.is_required() and not field.default_factory_takes_validated_data
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON data: what agents send, and are shown."""
    if isinstance(value, BaseModel):
        return visible(value)
    return to_jsonable_python(value, by_alias=False, bytes_mode="base64", fallback=str)
