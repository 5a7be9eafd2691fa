"""What each tool does, before LangChain sees it: its name, its arguments and the steps of its answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from pydantic import BaseModel, Field

from agent_memory import ConflictError, InvalidRequestError, item_id

from .answers import Answers
from .bindings import Plan, Spec, plural
from .calls import Call
from .changes import (
    Change,
    Fields,
    add_fields,
    forget_fields,
    remove_from_fields,
    set_fields,
    validated,
    write,
)
from .reading import read_document, read_items, safe_json
from .schemas import Arguments, Definition, Refused, Sent, additions, forgettable, refusal, settable
from .searching import search_arguments, search_items

LIST_LIMIT: Final = 50


class Operation(NamedTuple):
    """One tool.

    ``plan`` gets the parsed arguments, and which call it is if that can be told; it yields the steps of the answer.
    """

    name: str
    description: str
    spec: Spec
    arguments: Arguments
    plan: Callable[[Sent, Call | None], Plan[str]]


# -- documents and items ---------------------------------------------------------------------------------------------


def document_operations(spec: Spec, answers: Answers) -> list[Operation]:
    """Return the tools of a document."""
    name = f"read_{spec.label}"

    def read(_: Sent, __: Call | None) -> Plan[str]:
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

        def plan(sent: Sent, call: Call | None) -> Plan[str]:
            named = dict.fromkeys(sent.own["fields"]) if more else sent.fields
            if not named:
                raise Refused(f"{name}: send at least one field. Nothing was changed.")
            return write(spec, name, make(name, named), named, call, item_id=sent.own.get("item_id"))

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
            lambda _, named: forget_fields(model, list(named)),
            fields=(choice, Field(min_length=1)),
        )
    return operations


_Maker = Callable[[str, dict[str, Any]], Change]


def _about(model: Any, name: str) -> Any:
    return Field(description=model.model_fields[name].description)


# -- collections -----------------------------------------------------------------------------------------------------


def collection_operations(spec: Spec, answers: Answers) -> list[Operation]:
    """Return the tools of a collection."""
    label, many = spec.label, plural(spec.label)

    def list_(sent: Sent, _: Call | None) -> Plan[str]:
        limit = sent.own["limit"]
        rows = yield from read_items(spec, limit + 1, sent.own["older_than"])
        shown = rows[:limit]
        return answers.items(spec, many, shown, rest=shown[-1].id if len(rows) > len(shown) else None)

    def search(sent: Sent, _: Call | None) -> Plan[str]:
        return answers.items(spec, many, *(yield from search_items(spec, sent.own)))

    def forget(sent: Sent, _: Call | None) -> Plan[str]:
        item_id = sent.own["item_id"]
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

    def add(sent: Sent, call: Call | None) -> Plan[str]:
        value = validated(spec.model, name, sent.fields, sent.fields, absent=True)
        id = _new_id(spec, name, value, sent.fields, call)
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
