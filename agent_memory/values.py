"""Flows on the value of one key: read, write, with and without conditions; ``updating`` stands on them.

Between the protocol, which moves bytes, and the faces of the API, which run flows. Typed and untyped keys differ in the
codec alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeGuard, TypeVar

from pydantic import BaseModel

from .checks import check_ttl, check_type
from .client import Client, provenance
from .codec import Encoded, typed_codec
from .drivers import Flow
from .errors import ConflictError, DeserializationError, InvalidRequestError, SerializationError
from .flows import call, fetch, read, write
from .keys import check_key, unescape
from .messages import INLINE_LIMIT, JSON, PICKLE, CommitWrite, Delete, Entry, Found, PrepareRead, Scope
from .storable import mismatch
from .untyped import decode_untyped, encode_untyped

if TYPE_CHECKING:
    from typing_extensions import TypeForm as TypeForm
else:
    # Older typing-extensions have none, and who asks for the hints of a signature needs a name that is there.
    TypeForm = type

T = TypeVar("T")


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
        stored = yield from self.stored()
        return default if stored is None else self.decode(*stored)

    def snapshot(self) -> Flow[Snapshot[T] | None]:
        stored = yield from self.stored()
        return None if stored is None else Snapshot(self.decode(*stored), stored[1])

    def raw(self) -> Flow[Snapshot[bytes] | None]:
        stored = yield from self.stored()
        return None if stored is None else Snapshot(*stored)

    def stored(self) -> Flow[tuple[bytes, Entry] | None]:
        """Return the stored bytes with their entry, None if there is nothing."""
        return read(PrepareRead(self.scope, self.key, INLINE_LIMIT), self.client.config.transfer)

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

    # -- conflicts ---------------------------------------------------------------------------------------------------

    def explained(self, error: ConflictError) -> Flow[ConflictError]:
        """Return a conflict on this key that knows what stood in the way."""
        stored = yield from self.found(error)
        error.found = stored
        error.about(repr(self.key))
        return error.with_loader(lambda: None if stored is None else Snapshot(self.decode(*stored), stored[1]))

    def found(self, error: ConflictError) -> Flow[tuple[bytes, Entry] | None]:
        """Return what stood in the way, reading it if it did not come with the error."""
        found = error.found
        if not isinstance(found, Found):
            return None
        if found.data is None and found.blob is None:
            return (yield from self.stored())
        return (yield from fetch(found, PrepareRead(self.scope, self.key, INLINE_LIMIT), self.client.config.transfer))


def is_model(value_type: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(value_type, type) and issubclass(value_type, BaseModel)


def _if_match(expected: Expected) -> str | None:
    """Return the etag that what stands there must have; None where it may be anything, or nothing is to be there."""
    if expected is MISSING or expected is None:
        return None
    check_type(expected, (str, Snapshot, Entry), "expected is a snapshot, an entry or an etag")
    etag = expected if isinstance(expected, str) else expected.etag
    if not etag.strip():
        raise InvalidRequestError("a blank etag is no condition; pass a snapshot, or use set() to overwrite")
    return etag
