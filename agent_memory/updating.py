"""Read-modify-write: a private copy of a value is changed, and written if nobody wrote in between.

Flows on top of those of ``Values``: changes that are made again until they are written, and edits that cannot be.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from .codec import Encoded, problems_of, typed_codec
from .drivers import Flow, Sleep, Wait
from .errors import ConflictError, InvalidRequestError, NotFoundError, SerializationError, UnavailableError
from .flows import call, write
from .messages import BYTES, Entry
from .storable import by_stored_keys, with_article
from .turns import Turn
from .values import MISSING, Snapshot, Values, is_model

T = TypeVar("T")

# An update that lost tries again: the first times without a pause (IMPATIENT), and a few times with the value that came
# with the conflict, which costs no call (PATIENT); after that it reads anew. Only other processes can make it lose.
# With longer pauses it would starve; with shorter ones many processes would need more attempts.
_IMPATIENT_ATTEMPTS: Final = 2
_PATIENT_ATTEMPTS: Final = 4
_LONGEST_PAUSE: Final = 0.02


class Draft(NamedTuple, Generic[T]):
    """A private copy of a value, and what it was made from."""

    value: T
    data: bytes | None
    entry: Entry | None


def update(
    values: Values[T], change: Callable[[T], Any], default: Any, reason: str | None, write_id: str | None = None
) -> Flow[Snapshot[T]]:
    """Change a private copy and write it on the condition that nothing changed meanwhile; else do it again."""
    if write_id is not None:
        write_id = _of_key(write_id, values.key)
    turn = Turn(values.client.turns, (values.scope, values.key))
    try:
        return (yield from _update(values, change, default, reason, write_id, turn))
    except (UnavailableError, ConflictError):
        raise
    except Exception:
        # The change may have been made by an earlier call, and fail on its own result: a limit is reached by now.
        if write_id is None or not (yield from _has_receipt(values, write_id)):
            raise
        return (yield from _made_before(values))
    finally:
        turn.end()


def _update(
    values: Values[T], change: Callable[[T], Any], default: Any, reason: str | None, write_id: str | None, turn: Turn
) -> Flow[Snapshot[T]]:
    if turn.is_contended():
        yield from turn.wait()
    stored = yield from values.stored()
    attempt = 0
    while True:
        draft = _draft(values, stored, default)
        result: Any = change(draft.value)
        if inspect.isawaitable(result):
            # It may take as long as a model's answer: others go on meanwhile.
            turn.end()
            result = yield Wait(result)
        if result is not None and is_model(values.value_type):
            returned, wanted = type(result).__name__, values.value_type.__name__
            if returned != wanted:
                raise SerializationError(
                    f"{values.key!r}: the function returned {with_article(returned)}; it is to return "
                    f"{with_article(wanted)}, or None after changing its argument"
                )
        try:
            made = yield from _swap(values, draft, draft.value if result is None else result, reason, write_id)
            # A repeated creation gets its first result from the receipt, even if the value was deleted since.
            return made if write_id is None or draft.entry is not None else (yield from _made_before(values))
        except ConflictError as error:
            if error.code == "write_id_reused" and write_id is not None:
                return (yield from _made_before(values))
            if error.code != "condition_failed":
                raise (yield from values.explained(error)) from None
            if not (yield Sleep(_contention_pause(attempt))):
                error.about(f"each of {attempt + 1} attempts met another write, or the function writes this key itself")
                raise (yield from values.explained(error)) from None
            attempt += 1
            if not (yield from turn.wait()) and attempt < _PATIENT_ATTEMPTS:
                stored = yield from values.found(error)
            else:
                # While this one waited, others probably wrote over the value that came with the error.
                stored = yield from values.stored()


def _has_receipt(values: Values[T], write_id: str) -> Flow[bool]:
    """Say whether a write with this id was made, by trying another one on a condition that nothing meets."""
    other = values.commit(Encoded(b"", BYTES), expected="none", ttl=None, reason=None, write_id=write_id)
    try:
        yield from call(other)
    except ConflictError as error:
        return error.code == "write_id_reused"
    return False


def _made_before(values: Values[T]) -> Flow[Snapshot[T]]:
    stored = yield from values.stored()
    if stored is None:
        raise NotFoundError(f"{values.key!r}: this update was made before, and the value was deleted since")
    return Snapshot(values.decode(*stored), stored[1])


def begin(values: Values[T], default: Any) -> Flow[Draft[T]]:
    """Return a private copy to edit."""
    stored = yield from values.stored()
    return _draft(values, stored, default)


def finish(values: Values[T], draft: Draft[T], value: T, reason: str | None) -> Flow[Snapshot[T]]:
    """Write an edited draft if the key did not change since; equal bytes make no new version."""
    try:
        return (yield from _swap(values, draft, value, reason))
    except ConflictError as error:
        raise (yield from values.explained(error)) from None


def _swap(
    values: Values[T], draft: Draft[T], value: T, reason: str | None, write_id: str | None = None
) -> Flow[Snapshot[T]]:
    encoded, written = values.encode(value)
    if draft.entry is not None and (encoded.data, encoded.content_type) == (draft.data, draft.entry.content_type):
        return Snapshot(written, draft.entry)
    expected = None if draft.entry is None else draft.entry.etag
    commit = values.commit(encoded, expected=expected, ttl=None, reason=reason, keep_ttl=True, write_id=write_id)
    entry = yield from write(commit, values.client.config.transfer, repeats=write_id is not None)
    return Snapshot(written, entry)


def _draft(values: Values[T], stored: tuple[bytes, Entry] | None, default: Any) -> Draft[T]:
    if stored is not None:
        return Draft(values.decode(*stored), *stored)
    if default is not MISSING:
        value: Any = default() if callable(default) else copy.deepcopy(default)
    else:
        value = _initial(values)
    return Draft(value, None, None)


def _initial(values: Values[T]) -> Any:
    if is_model(values.value_type):
        try:
            return values.value_type()
        except ValidationError:
            pass
    raise NotFoundError(f"{values.key!r}: there is no value to change, and no default= to start from")


def has_field(value_type: Any, name: str) -> bool:
    """Say whether a type is a model with a field of this name."""
    return is_model(value_type) and name in value_type.model_fields


def with_fields(key: str, value_type: Any, fields: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return the change that sets some fields of a model and validates the result."""
    if not is_model(value_type):
        raise InvalidRequestError("only a Pydantic model can be updated by field; give a function instead")
    model = value_type
    unknown = sorted(set(fields) - set(model.model_fields))
    if unknown and model.model_config.get("extra") != "allow":
        raise InvalidRequestError(f"{model.__name__} has no field {', '.join(unknown)}")

    def change(value: Any) -> Any:
        try:
            # An unknown field may have the name of a known one, which is stored under another key.
            known = {name: one for name, one in value.__dict__.items() if name in model.model_fields}
            changed: dict[str, Any] = {**(value.model_extra or {}), **by_stored_keys(model, {**known, **fields})}
            if model.__pydantic_root_model__:
                changed = changed["root"]
            return model.model_validate(changed, by_name=True, by_alias=True)
        except ValidationError as error:
            problems = problems_of(error)
        # Outside the handler: Pydantic's text repeats the value, and must not be this error's context.
        shown = typed_codec(model).joined(problems, in_python=True)
        raise SerializationError(f"{key!r}: the change is not a valid {model.__name__}: {shown}")

    return change


def _of_key(write_id: str, key: str) -> str:
    """Return the write id by which one change of several keys is known at this one: plain text, whatever the name."""
    name = f"{write_id}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, digest_size=16).hexdigest()


def _contention_pause(attempt: int) -> float:
    if attempt < _IMPATIENT_ATTEMPTS:
        return 0.0
    return random.uniform(0.0, min(_LONGEST_PAUSE, 0.001 * 1.5 ** min(attempt, 16)))
