"""Flows on the value of one key: read, write with and without conditions, read-modify-write.

Between the protocol, which moves bytes, and the faces of the API, which run flows. Typed and untyped keys differ in the
codec alone.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import random
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeGuard, TypeVar

from pydantic import BaseModel, ValidationError

from .checks import check_ttl, check_type
from .client import Client, provenance
from .codec import Encoded, decode_untyped, encode_untyped, joined, problems_of, typed_codec
from .drivers import Flow, Sleep, Wait
from .errors import (
    ConflictError,
    DeserializationError,
    InvalidRequestError,
    NotFoundError,
    SerializationError,
    UnavailableError,
)
from .flows import call, fetch, read, write
from .keys import check_key, unescape
from .messages import BYTES, INLINE_LIMIT, JSON, PICKLE, CommitWrite, Delete, Entry, Found, PrepareRead, Scope
from .storable import by_stored_keys, mismatch, with_article
from .turns import Turn

if TYPE_CHECKING:
    from typing_extensions import TypeForm as TypeForm
else:
    # Older typing-extensions have none, and who asks for the hints of a signature needs a name that is there.
    TypeForm = type

T = TypeVar("T")

# An update that lost tries again: the first times without a pause (IMPATIENT), and a few times with the value that came
# with the conflict, which costs no call (PATIENT); after that it reads anew. Only other processes can make it lose.
# With longer pauses it would starve; with shorter ones many processes would need more attempts.
_IMPATIENT_ATTEMPTS: Final = 2
_PATIENT_ATTEMPTS: Final = 4
_LONGEST_PAUSE: Final = 0.02


class Missing(Enum):
    """Says that an argument was not given, where None is a value."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


class Untyped:
    """Stands in the place of a value type where any value may be stored."""


class Snapshot(NamedTuple, Generic[T]):
    """A value together with the entry it was read from; ``replace(…, expected=snapshot)`` compares with it."""

    value: T
    entry: Entry

    @property
    def version(self) -> int:
        """The number of the version: +1 with every committed change, never reused."""
        return self.entry.version

    @property
    def etag(self) -> str:
        """What conditions compare: unique per version, opaque."""
        return self.entry.etag

    @property
    def id(self) -> str:
        """The last segment of the key: the id of a collection's item, the name of a document."""
        last = self.entry.key.rpartition("/")[2]
        return unescape(last) or last


Expected: TypeAlias = Snapshot[Any] | Entry | str | Missing | None
"""What must still stand there for a write to happen; None is nothing, MISSING is no condition."""


class Draft(NamedTuple, Generic[T]):
    """A private copy of a value, and what it was made from."""

    value: T
    data: bytes | None
    entry: Entry | None


class Values(Generic[T]):
    """The flows of one key. ``bound`` is provenance that every write carries besides the ambient one."""

    def __init__(
        self, client: Client, scope: Scope, key: str, value_type: Any, bound: Mapping[str, str] | None = None
    ) -> None:
        self.client = client
        self.scope = scope
        self.key = check_key(key)
        self.value_type = value_type
        self.bound = bound
        self._codec = None if value_type is Untyped else typed_codec(value_type)

    # -- values and bytes --------------------------------------------------------------------------------------------

    def encode(self, value: T) -> tuple[Encoded, T]:
        """Return the bytes, and the value as a reader will get it."""
        kind = self.value_type
        try:
            if self._codec is None:
                return encode_untyped(value), value
            # The identity first: for a model, isinstance runs Python code of Pydantic.
            if type(value) is not kind and isinstance(kind, type) and (is_model(kind) or isinstance(value, BaseModel)):
                # Pydantic would write the declared model's fields and drop the others in silence.
                raise SerializationError(mismatch(kind, value))
            return self._codec.encode(value)
        except SerializationError as error:
            raise error.about(repr(self.key)) from None

    def decode(self, data: bytes, entry: Entry) -> T:
        def load_pickle() -> Any:
            return self.client.keyring.load(data, self.scope, entry)

        try:
            if self._codec is None:
                return decode_untyped(data, entry.content_type, load_pickle)
            return self._codec.decode(data, entry.content_type, load_pickle)
        except DeserializationError as error:
            raise error.about(repr(self.key)) from None

    def is_same(self, stored: tuple[bytes, Entry], data: bytes | None) -> bool:
        """Say whether what is stored is the value that these bytes were made from."""
        there, entry = stored
        if there == data or data is None or self._codec is None:
            return there == data
        return entry.content_type == JSON and self._codec.is_same(there, data)

    def commit(
        self, encoded: Encoded, *, expected: Expected, ttl: float | None, reason: str | None, keep_ttl: bool = False,
        write_id: str | None = None,
    ) -> CommitWrite:  # fmt: skip
        """Return the message that writes these bytes: over whatever stands there, or if that is still ``expected``."""
        check_ttl(ttl)  # here too: JSON has no NaN, and a server names its own field
        sha256 = signature = None
        if encoded.content_type == PICKLE:
            sha256 = hashlib.sha256(encoded.data).hexdigest()
            signature = self.client.keyring.sign(self.scope, self.key, PICKLE, sha256)
        return CommitWrite(
            self.scope, self.key, write_id or self.client.write_id(), encoded.data, None, encoded.content_type, sha256,
            signature, encoded.schema_name, None, _if_match(expected), expected is None, ttl, keep_ttl,
            provenance(self.bound, reason), INLINE_LIMIT,
        )  # fmt: skip

    # -- reads -------------------------------------------------------------------------------------------------------

    def get(self, default: Any) -> Flow[Any]:
        stored = yield from read(self._request(), self.client.config.transfer)
        return default if stored is None else self.decode(*stored)

    def snapshot(self) -> Flow[Snapshot[T] | None]:
        stored = yield from read(self._request(), self.client.config.transfer)
        return None if stored is None else Snapshot(self.decode(*stored), stored[1])

    def raw(self) -> Flow[Snapshot[bytes] | None]:
        stored = yield from read(self._request(), self.client.config.transfer)
        return None if stored is None else Snapshot(*stored)

    def _request(self) -> PrepareRead:
        return PrepareRead(self.scope, self.key, INLINE_LIMIT)

    # -- writes ------------------------------------------------------------------------------------------------------

    def write(self, value: T, expected: Expected, ttl: float | None, reason: str | None) -> Flow[Entry]:
        """Write a value: over whatever stands there, or if that is still what is ``expected`` (None: nothing)."""
        commit = self.commit(self.encode(value)[0], expected=expected, ttl=ttl, reason=reason)
        try:
            return (yield from write(commit, self.client.config.transfer))
        except ConflictError as error:
            raise (yield from self.explained(error)) from None

    def deletion(self, expected: Expected, reason: str | None) -> Delete:
        """Return the message that deletes the key."""
        # None, the snapshot of nothing, would pass for no condition.
        check_type(expected, (Missing, str, Snapshot, Entry), "expected is a snapshot, an entry or an etag")
        writer = provenance(self.bound, reason)
        return Delete(self.scope, self.key, self.client.write_id(), _if_match(expected), writer, INLINE_LIMIT)

    def delete(self, expected: Expected, reason: str | None) -> Flow[Entry | None]:
        try:
            return (yield from call(self.deletion(expected, reason)))
        except ConflictError as error:
            raise (yield from self.explained(error)) from None

    # -- read-modify-write -------------------------------------------------------------------------------------------

    def update(
        self, change: Callable[[T], Any], default: Any, reason: str | None, write_id: str | None = None
    ) -> Flow[Snapshot[T]]:
        """Change a private copy and write it on the condition that nothing changed meanwhile; else do it again."""
        if write_id is not None:
            write_id = _of_key(write_id, self.key)
        turn = Turn(self.client.turns, (self.scope, self.key))
        try:
            return (yield from self._update(change, default, reason, write_id, turn))
        except (UnavailableError, ConflictError):
            raise
        except Exception:
            # The change may have been made by an earlier call, and fail on its own result: a limit is reached by now.
            if write_id is None or not (yield from self._has_receipt(write_id)):
                raise
            return (yield from self._made_before())
        finally:
            turn.end()

    def _update(
        self, change: Callable[[T], Any], default: Any, reason: str | None, write_id: str | None, turn: Turn
    ) -> Flow[Snapshot[T]]:
        if turn.is_contended():
            yield from turn.wait()
        stored = yield from read(self._request(), self.client.config.transfer)
        attempt = 0
        while True:
            draft = self._draft(stored, default)
            result: Any = change(draft.value)
            if inspect.isawaitable(result):
                # It may take as long as a model's answer: others go on meanwhile.
                turn.end()
                result = yield Wait(result)
            if result is not None and is_model(self.value_type):
                returned, wanted = type(result).__name__, self.value_type.__name__
                if returned != wanted:
                    raise SerializationError(
                        f"{self.key!r}: the function returned {with_article(returned)}; it is to return "
                        f"{with_article(wanted)}, or None after changing its argument"
                    )
            try:
                made = yield from self._swap(draft, draft.value if result is None else result, reason, write_id)
                # A repeated creation gets its first result from the receipt, even if the value was deleted since.
                return made if write_id is None or draft.entry is not None else (yield from self._made_before())
            except ConflictError as error:
                if error.code == "write_id_reused" and write_id is not None:
                    return (yield from self._made_before())
                if error.code != "condition_failed" or not (yield Sleep(_contention_pause(attempt))):
                    raise (yield from self.explained(error)) from None
                attempt += 1
                if not (yield from turn.wait()) and attempt < _PATIENT_ATTEMPTS:
                    stored = yield from self._found(error)
                else:
                    # While this one waited, others probably wrote over the value that came with the error.
                    stored = yield from read(self._request(), self.client.config.transfer)

    def _has_receipt(self, write_id: str) -> Flow[bool]:
        """Say whether a write with this id was made, by trying another one on a condition that nothing meets."""
        other = self.commit(Encoded(b"", BYTES), expected="none", ttl=None, reason=None, write_id=write_id)
        try:
            yield from call(other)
        except ConflictError as error:
            return error.code == "write_id_reused"
        return False

    def _made_before(self) -> Flow[Snapshot[T]]:
        stored = yield from read(self._request(), self.client.config.transfer)
        if stored is None:
            raise NotFoundError(f"{self.key!r}: this update was made before, and the value was deleted since")
        return Snapshot(self.decode(*stored), stored[1])

    def begin(self, default: Any) -> Flow[Draft[T]]:
        """Return a private copy to edit."""
        stored = yield from read(self._request(), self.client.config.transfer)
        return self._draft(stored, default)

    def finish(self, draft: Draft[T], value: T, reason: str | None) -> Flow[Snapshot[T]]:
        """Write an edited draft if the key did not change since; equal bytes make no new version."""
        try:
            return (yield from self._swap(draft, value, reason))
        except ConflictError as error:
            raise (yield from self.explained(error)) from None

    def _swap(self, draft: Draft[T], value: T, reason: str | None, write_id: str | None = None) -> Flow[Snapshot[T]]:
        encoded, written = self.encode(value)
        if draft.entry is not None and (encoded.data, encoded.content_type) == (draft.data, draft.entry.content_type):
            return Snapshot(written, draft.entry)
        expected = None if draft.entry is None else draft.entry.etag
        commit = self.commit(encoded, expected=expected, ttl=None, reason=reason, keep_ttl=True, write_id=write_id)
        entry = yield from write(commit, self.client.config.transfer, repeats=write_id is not None)
        return Snapshot(written, entry)

    def _draft(self, stored: tuple[bytes, Entry] | None, default: Any) -> Draft[T]:
        if stored is not None:
            return Draft(self.decode(*stored), *stored)
        if default is not MISSING:
            value: Any = default() if callable(default) else copy.deepcopy(default)
        else:
            value = self._initial()
        return Draft(value, None, None)

    def _initial(self) -> Any:
        if is_model(self.value_type):
            try:
                return self.value_type()
            except ValidationError:
                pass
        raise NotFoundError(f"{self.key!r}: there is no value to change, and no default= to start from")

    # -- conflicts ---------------------------------------------------------------------------------------------------

    def explained(self, error: ConflictError) -> Flow[ConflictError]:
        """Return a conflict on this key that knows what stood in the way."""
        stored = yield from self._found(error)
        error.found = stored
        error.about(repr(self.key))
        return error.with_loader(lambda: None if stored is None else Snapshot(self.decode(*stored), stored[1]))

    def _found(self, error: ConflictError) -> Flow[tuple[bytes, Entry] | None]:
        """Return what stood in the way, reading it if it did not come with the error."""
        found = error.found
        if not isinstance(found, Found):
            return None
        if found.data is None and found.blob is None:
            return (yield from read(self._request(), self.client.config.transfer))
        return (yield from fetch(found, self._request(), self.client.config.transfer))


def is_model(value_type: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(value_type, type) and issubclass(value_type, BaseModel)


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
            changed: Any = by_stored_keys(model, {**dict(value), **fields})
            if model.__pydantic_root_model__:
                changed = changed["root"]
            return model.model_validate(changed, by_name=True, by_alias=True)
        except ValidationError as error:
            problems = problems_of(error)
        # Outside the handler: Pydantic's text repeats the value, and must not be this error's context.
        raise SerializationError(f"{key!r}: the change is not a valid {model.__name__}: {joined(problems)}")

    return change


def _if_match(expected: Expected) -> str | None:
    """Return the etag that what stands there must have; None where it may be anything, or nothing is to be there."""
    if expected is MISSING or expected is None:
        return None
    check_type(expected, (str, Snapshot, Entry), "expected is a snapshot, an entry or an etag")
    etag = expected if isinstance(expected, str) else expected.etag
    if not etag.strip():
        raise InvalidRequestError("a blank etag is no condition; pass a snapshot, or use set() to overwrite")
    return etag


def _of_key(write_id: str, key: str) -> str:
    """Return the write id by which one change of several keys is known at this one: plain text, whatever the name."""
    name = f"{write_id}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(name, digest_size=16).hexdigest()


def _contention_pause(attempt: int) -> float:
    if attempt < _IMPATIENT_ATTEMPTS:
        return 0.0
    return random.uniform(0.0, min(_LONGEST_PAUSE, 0.001 * 1.5 ** min(attempt, 16)))
