"""Errors say what went wrong and where, and never repeat a value."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field, create_model, field_validator

from agent_memory import (
    AgentMemoryError,
    ConflictError,
    DeserializationError,
    IntegrityError,
    InvalidRequestError,
    SchemaError,
    SerializationError,
    UnavailableError,
)
from agent_memory.messages import PrepareRead
from agent_memory.operations import Set
from tests.support.faults import Meddling, put_between
from tests.support.models import Profile

MARK = "MARK-7f3a-of-a-value"


class Picky(BaseModel):
    text: str = ""

    @field_validator("text")
    @classmethod
    def refuse(cls, text: str) -> str:
        if MARK in text:
            raise ValueError(f"{text} is refused")
        return text


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError(MARK)

    def __repr__(self) -> str:
        return MARK


def explode(text: str) -> None:
    raise RuntimeError(text)


class Unloadable:
    def __reduce__(self) -> Any:
        return explode, (MARK,)


def altered(memory: Any) -> None:
    def alter(message: Any, reply: Any) -> Any:
        return reply._replace(data=reply.data + b" ") if type(message) is PrepareRead else reply

    memory.app_state.set("key", MARK)
    put_between(memory, lambda inner: Meddling(inner, alter=alter))
    memory.app_state.get("key")


def with_value(value: Any, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what stores a value under the key that a document of the entity ``user/1`` has, and then does ``work``."""

    def both(memory: Any) -> None:
        memory.app_state.set("user/1/doc", value)
        work(memory)

    return both


def document(memory: Any, model: Any = Profile) -> Any:
    return memory.entity("user", "1").document(model, name="doc")


def edit(memory: Any) -> None:
    with document(memory).edit() as draft:
        draft.name = MARK
        document(memory).set(Profile(name=f"{MARK}!"))


def add_twice(memory: Any) -> None:
    items = memory.entity("user", "1").collection(Profile)
    items.add(Profile(name=MARK), id="a")
    items.add(Profile(name=f"{MARK}!"), id="a")


def add_many_twice(memory: Any) -> None:
    items = memory.entity("user", "1").collection(Profile)
    items.add_many({"a": Profile(name=MARK)})
    items.add_many({"a": Profile(name=f"{MARK}!")})


def list_unreadable(memory: Any) -> None:
    memory.app_state.set("user/1/profile/a", {"name": [MARK]})
    memory.entity("user", "1").collection(Profile).list()


THERE = Profile(name=MARK)

PROVOKED: dict[str, tuple[type[AgentMemoryError], Callable[[Any], Any]]] = {
    "set what is not the model": (
        SerializationError,
        lambda memory: document(memory).set(Profile.model_construct(name=[MARK])),
    ),
    "set another type": (SerializationError, lambda memory: document(memory).set(MARK)),
    "set what a validator refuses": (
        SerializationError,
        lambda memory: document(memory, Picky).set(Picky.model_construct(text=MARK)),
    ),
    "set what JSON cannot hold": (
        SerializationError,
        lambda memory: memory.app_state.set("key", {MARK: float("nan")}, as_type=dict[str, float | None]),
    ),
    "set a lone surrogate": (
        SerializationError,
        lambda memory: document(memory).set(Profile(name=f"{MARK}\ud800")),
    ),
    "set what cannot be pickled": (SerializationError, lambda memory: memory.app_state.set("key", Unpicklable())),
    "get a pickle that cannot be loaded": (
        DeserializationError,
        with_value(Unloadable(), lambda memory: memory.app_state.get("user/1/doc")),
    ),
    "get what is not JSON": (DeserializationError, with_value(MARK.encode(), lambda memory: document(memory).get())),
    "get what is not the model": (SchemaError, with_value({"name": [MARK]}, lambda memory: document(memory).get())),
    "get what a validator refuses": (
        SchemaError,
        with_value({"text": MARK}, lambda memory: document(memory, Picky).get()),
    ),
    "get several": (
        SchemaError,
        with_value({"name": [MARK]}, lambda memory: memory.app_state.get_many(["user/1/doc"], as_type=Profile)),
    ),
    "get what was altered": (IntegrityError, altered),
    "list": (SchemaError, list_unreadable),
    "create": (ConflictError, with_value(THERE, lambda memory: document(memory).create(THERE))),
    "create a large one": (
        ConflictError,
        with_value({"name": MARK * 10_000}, lambda memory: document(memory).create(Profile(name=MARK * 9_000))),
    ),
    "replace": (ConflictError, with_value(THERE, lambda memory: document(memory).replace(THERE, expected="other"))),
    "delete": (ConflictError, with_value(THERE, lambda memory: document(memory).delete(expected="other"))),
    "update a field": (SerializationError, lambda memory: document(memory).update(goals=MARK)),
    "update what is not the model": (
        SchemaError,
        with_value({"name": [MARK]}, lambda memory: document(memory).update(weight_kg=1)),
    ),
    "edit": (ConflictError, edit),
    "add": (ConflictError, add_twice),
    "add many": (ConflictError, add_many_twice),
    "batch": (
        ConflictError,
        with_value(THERE, lambda memory: memory.app_state.batch([Set("user/1/doc", MARK, expected=None)])),
    ),
    "time to live": (InvalidRequestError, lambda memory: memory.app_state.set("key", MARK, ttl=-1)),
}


@pytest.mark.parametrize("what", PROVOKED)
def test_no_error_repeats_a_value(memory: Any, what: str) -> None:
    expected, provoke = PROVOKED[what]
    with pytest.raises(expected) as caught:
        provoke(memory)

    assert MARK not in "".join(shown(caught.value))


def shown(error: BaseException) -> list[str]:
    """Return everything that a log could print of an error and the errors that led to it."""
    found = [str(error), repr(error), repr(error.args), *getattr(error, "__notes__", [])]
    if isinstance(error, AgentMemoryError):
        # What a log prints of it, without the source lines of this file.
        found += traceback.TracebackException.from_exception(error, lookup_lines=False).format_exception_only()
    for cause in (error.__cause__, error.__context__):
        if cause is not None:
            found += shown(cause)
    return found


def test_a_conflict_survives_pickling_without_the_value(memory: Any) -> None:
    document(memory).set(THERE)
    with pytest.raises(ConflictError) as caught:
        document(memory).create(THERE)

    data = pickle.dumps(caught.value)
    assert MARK.encode() not in data
    assert pickle.loads(data).code == "condition_failed"
    with pytest.raises(AgentMemoryError, match="left behind"):
        _ = pickle.loads(pickle.dumps(pickle.loads(data))).current


def test_no_error_repeats_a_token(store: Any) -> None:
    token = "t0ken-that-nobody-may-see"
    if not store.url.startswith("http"):
        with pytest.raises(InvalidRequestError) as caught:
            store.open(token=token)
        assert token not in "".join(shown(caught.value))
        return
    memory = store.open(token=token)
    memory.close()
    with pytest.raises(UnavailableError) as closed:
        memory.app_state.get("key")

    assert token not in "".join(shown(closed.value)) + repr(memory)


CALLS: dict[str, Callable[[Any], Any]] = {
    "get": lambda memory: memory.app_state.get("key"),
    "set": lambda memory: memory.app_state.set("key", 1),
    "set a large value": lambda memory: memory.app_state.set("key", b"x" * 200_000),
    "delete": lambda memory: memory.app_state.delete("key"),
    "keys": lambda memory: list(memory.app_state.keys()),
    "get_many": lambda memory: memory.app_state.get_many(["key"]),
    "entities": lambda memory: list(memory.entities("user")),
    "update": lambda memory: document(memory).update(name="x"),
    "list": lambda memory: memory.entity("user", "1").collection(Profile).list(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_memory_is_unavailable(memory: Any, call: str) -> None:
    memory.app_state.set("key", 1)
    memory.close()

    with pytest.raises(UnavailableError) as caught:
        CALLS[call](memory)
    assert caught.value.code == "closed"


def test_closing_twice_is_no_error(memory: Any) -> None:
    memory.close()
    memory.close()


class Renamed(BaseModel):
    full_name: str = Field(alias="fullName")


class Ticket(BaseModel):
    status: str = "new"
    reason: str = ""
    default: int = 0


class Calls(BaseModel):
    minutes: dict[int, int] = {}


class Accident(BaseModel):
    place: str = ""


def failing(call: Callable[[], object]) -> str:
    with pytest.raises(AgentMemoryError) as caught:
        call()
    return str(caught.value)


def test_a_value_of_another_type_is_told_from_a_field_of_one(memory: Any) -> None:
    document = memory.entity("user", "1").document(Profile)
    expected = "'user/1/profile': expected a Profile, not a dict"
    assert failing(lambda: document.set({"name": "Ada"})) == expected
    accident = memory.entity("user", "1").document(Accident)
    assert failing(lambda: accident.set(Ticket())) == "'user/1/accident': expected an Accident, not a Ticket"
    wrong = Profile.model_construct(name="Ada", goals="run")
    assert failing(lambda: document.set(wrong)) == "'user/1/profile': the value is not a Profile: goals: list_type"
    document.set(Profile(name="Ada"))
    renamed = memory.entity("user", "1").document(Renamed)
    assert failing(lambda: renamed.set(Renamed.model_construct(full_name=1))).endswith(
        "not a Renamed: full_name: string_type"
    )
    assert failing(lambda: document.update(lambda profile: profile.name)) == (
        "'user/1/profile': the function returned a str; it is to return a Profile, or None after changing its argument"
    )


def test_a_class_that_was_defined_again_is_told_from_the_one_before(memory: Any) -> None:
    document = memory.entity("user", "1").document(Ticket)
    document.create(Ticket())
    again = create_model("Ticket", status=(str, "new"))
    for call in (lambda: document.set(again()), lambda: document.update(lambda _: again())):
        assert "another class with this name; if it was defined again" in failing(call)


def test_what_is_no_instance_of_the_model_is_told_by_its_class(memory: Any) -> None:
    document = memory.entity("user", "1").document(Profile)
    document.create(Profile(name="Ada"))
    assert failing(lambda: document.set(None)) == "'user/1/profile': expected a Profile, not a NoneType"
    assert failing(lambda: document.update(lambda _: Ticket())) == (
        "'user/1/profile': the function returned a Ticket; it is to return a Profile, "
        "or None after changing its argument"
    )


def test_a_wrong_change_of_fields_names_the_key(memory: Any) -> None:
    document = memory.entity("user", "1").document(Profile)
    document.create(Profile(name="Ada"))
    assert failing(lambda: document.update(goals="run")) == (
        "'user/1/profile': the change is not a valid Profile: goals: list_type"
    )
    calls = memory.entity("user", "1").document(Calls)
    assert failing(lambda: calls.update(minutes={4915112345678: "none"})) == (
        "'user/1/calls': the change is not a valid Calls: minutes.\u2026: int_parsing"
    )


def test_an_error_of_a_key_names_it(memory: Any) -> None:
    state = memory.app_state
    state.set("number", 1)
    assert failing(lambda: state.get("number", as_type=Profile)).startswith("'number': the stored value is not a Prof")
    counts = memory.entity("user", "1").document(int, name="count")
    assert failing(lambda: counts.update(lambda count: count + 1)).startswith("'user/1/count': there is no value")
    counts.create(1)
    assert failing(lambda: counts.create(2)).startswith("'user/1/count': there is a value already")


def test_a_field_named_like_an_option_of_update_is_not_taken_for_it(memory: Any) -> None:
    ticket = memory.entity("ticket", "1").document(Ticket)
    for options in ({"reason": "late"}, {"status": "old", "reason": "late"}, {"default": 1}):
        assert "give a function" in failing(lambda options=options: ticket.update(**options))

    assert ticket.update(lambda ticket: setattr(ticket, "reason", "late"), reason="why").value.reason == "late"


@pytest.mark.parametrize(
    "call",
    [
        lambda document: document.set(Profile(name="Ada"), ttl="5"),
        lambda document: document.replace(Profile(name="Ada"), expected=Profile(name="Ada")),
        lambda document: document.update(Profile(name="Ada")),
        lambda document: document.set(Profile(name="Ada"), reason=1),
        lambda document: document.delete(reason=1),
    ],
    ids=["ttl", "expected", "update", "reason", "reason of a deletion"],
)
def test_an_argument_of_a_wrong_type_is_refused_by_name(memory: Any, call: Callable[[Any], object]) -> None:
    with pytest.raises(InvalidRequestError):
        call(memory.entity("user", "1").document(Profile))
