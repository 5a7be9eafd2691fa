"""Application state and request state: values by key. Typed keys are documents with a key of one's own choosing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast, overload

from . import messages
from .checks import check_type
from .client import Client
from .codec import typed_codec
from .documents import AsyncDocument, Document
from .drivers import Flow
from .errors import ConflictError, DeserializationError, InvalidRequestError
from .filters import parse
from .flows import alone, arrived, batch, call, delete_all, fetch
from .keys import check_key, check_prefix
from .messages import INLINE_LIMIT, PAGE_LIMIT, Entry, List, Page, PrepareRead, Scope
from .operations import Delete, Get, Hit, Parents, Pattern, Search, Set
from .untyped import decode_untyped
from .values import MISSING, Missing, Snapshot, TypeForm, Untyped, Values
from .vectors import pack_vector

T = TypeVar("T")
D = TypeVar("D")
Operation: TypeAlias = Get | Set | Delete | Search | Parents


class _StateFlows:
    """What both faces of a state do, as flows."""

    # With slots, `ctx.state.draft = 1` is an error and not lost.
    __slots__ = ("_bound", "_client", "_scope")

    def __init__(self, client: Client, scope: Scope, bound: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._scope = scope
        self._bound = bound

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._scope.path!r})"

    def _values(self, key: str, value_type: Any) -> Values[Any]:
        return Values(self._client, self._scope, key, Untyped if value_type is None else value_type, self._bound)

    def _get_many(self, keys: Sequence[str], value_type: Any) -> Flow[dict[str, Any]]:
        if isinstance(keys, str):
            raise InvalidRequestError("keys is a list of keys, not one key")  # each letter would be one
        values = [self._values(key, value_type) for key in keys]
        reads = [PrepareRead(self._scope, one.key, INLINE_LIMIT) for one in values]
        if not reads:
            return {}
        stored = yield from batch(self._scope, reads, self._client.config.transfer)
        return {one.key: one.decode(*found) for one, found in zip(values, stored, strict=True) if found is not None}

    def _batch(self, operations: Sequence[Operation]) -> Flow[list[Any]]:
        if isinstance(operations, Operation):
            raise InvalidRequestError("a batch is a list of operations, not one")  # each of its fields would be one
        if not operations:
            return []
        # Made once per key: the same ids and bytes are sent however often the batch is.
        requests = [self._message(operation) for operation in operations]
        try:
            if len(requests) == 1:
                replies = [(yield from alone(requests[0], self._client.config.transfer))]
            else:
                replies = yield from batch(self._scope, requests, self._client.config.transfer)
        except ConflictError as error:
            raise (yield from self._explained(error)) from None
        for index, (operation, reply) in enumerate(zip(operations, replies, strict=True)):
            if reply is None:
                continue
            if isinstance(operation, Get):
                data, entry = reply
                replies[index] = Snapshot(self._decoded(operation.as_type, data, entry), entry)
            elif isinstance(operation, Search):
                replies[index] = yield from self._hits(reply)
            elif isinstance(operation, Parents):
                replies[index] = reply.segments
        return replies

    def _message(self, operation: Operation) -> Any:
        if isinstance(operation, Get):
            key, value_type, refresh_ttl = operation
            if value_type is not None:
                typed_codec(value_type)  # a type that cannot be stored is refused before anything is sent
            return PrepareRead(self._scope, check_key(key), INLINE_LIMIT, None, refresh_ttl)
        match operation:
            case Set(key, value, value_type, expected, ttl, reason, vectors):
                values = self._values(key, value_type)
                commit = values.commit(values.encode(value)[0], expected=expected, ttl=ttl, reason=reason)
                return commit._replace(vectors=tuple(map(pack_vector, vectors))) if len(vectors) else commit
            case Delete(key, expected, reason):
                return self._values(key, None).deletion(expected, reason)
            case Search(prefix, condition, limit, offset, vector, refresh_ttl, nested):
                parse(condition)  # what JSON would change on its way to a server is refused here
                packed = None if vector is None else pack_vector(vector)
                return messages.Search(
                    self._scope, check_prefix(prefix), condition, limit, offset, packed, INLINE_LIMIT, refresh_ttl,
                    nested,
                )  # fmt: skip
            case Parents(prefix, after, limit, patterns, depth, offset):
                for pattern in patterns:
                    check_type(pattern, Pattern, "a pattern is a Pattern")
                return messages.ListParents(
                    self._scope, check_prefix(prefix), after, limit, tuple(patterns), depth, offset
                )
        raise InvalidRequestError(
            f"an operation is one of agent_memory.operations, not {type(cast(object, operation)).__name__}"
        )

    def _hits(self, found: Sequence[messages.Hit]) -> Flow[list[Hit[Any]]]:
        hits: list[Hit[Any]] = []
        for one, score in found:
            stored = arrived(one)
            if stored is None:
                request = PrepareRead(self._scope, one.entry.key, INLINE_LIMIT)
                stored = yield from fetch(one, request, self._client.config.transfer)
            if stored is not None:
                try:
                    hits.append(Hit(self._decoded(None, *stored), stored[1], score))
                except DeserializationError:
                    # One unreadable row never fails a search; reading it by key says what is wrong with it.
                    continue
        return hits

    def _decoded(self, value_type: Any, data: bytes, entry: Entry) -> Any:
        if value_type is None:
            return decode_untyped(data, entry.content_type, lambda: self._client.keyring.load(data, self._scope, entry))
        return self._values(entry.key, value_type).decode(data, entry)

    def _explained(self, error: ConflictError) -> Flow[ConflictError]:
        if error.key is not None:
            return (yield from self._values(error.key, None).explained(error))
        return error.with_loader(lambda: None)

    def _search(self, operation: Search) -> Flow[list[Hit[Any]]]:
        results = yield from self._batch([operation])
        return results[0]

    def _page(self, prefix: str, cursor: str | None) -> Flow[tuple[list[str], str | None]]:
        page: Page = yield from call(List(self._scope, check_prefix(prefix), cursor, PAGE_LIMIT))
        return [found.entry.key for found in page.found], page.cursor


class State(_StateFlows):
    """The keys of one scope. Thread-safe. Without a condition, the last committed writer wins."""

    __slots__ = ()

    @overload
    def get(self, key: str, *, default: D) -> Any | D: ...
    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, *, as_type: TypeForm[T]) -> T | None: ...
    @overload
    def get(self, key: str, *, as_type: TypeForm[T], default: D) -> T | D: ...
    def get(self, key: str, *, as_type: Any = None, default: Any = None) -> Any:
        """Return the value of a key, ``default`` if there is none.

        With ``as_type`` it is validated as that type. Raises DeserializationError, or SchemaError, for a value that
        cannot be read; a default never replaces one that is there.
        """
        return self._client.run(self._values(key, as_type).get(default))

    @overload
    def get_many(self, keys: Sequence[str]) -> dict[str, Any]: ...
    @overload
    def get_many(self, keys: Sequence[str], *, as_type: TypeForm[T]) -> dict[str, T]: ...
    def get_many(self, keys: Sequence[str], *, as_type: Any = None) -> dict[str, Any]:
        """Return the values of those keys that are there, from one moment, in one round trip; at most 1,000 keys."""
        return self._client.run(self._get_many(keys, as_type))

    def batch(self, operations: Sequence[Operation]) -> list[Any]:
        """Carry out operations (see ``agent_memory.operations``) in order, all or none, in one round trip.

        At most 1,000. What each gives stands in its docstring. Raises ConflictError, having changed nothing, if any
        condition fails.
        """
        return self._client.run(self._batch(operations))

    def search(
        self, prefix: str = "", *, filter: Mapping[str, Any] | None = None, limit: int = 10, offset: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Hit[Any]]:  # fmt: skip
        """Find JSON objects by their fields or by similarity; see ``operations.Search``."""
        return self._client.run(self._search(Search(prefix, filter, limit, offset, vector)))

    @overload
    def snapshot(self, key: str) -> Snapshot[Any] | None: ...
    @overload
    def snapshot(self, key: str, *, as_type: TypeForm[T]) -> Snapshot[T] | None: ...
    def snapshot(self, key: str, *, as_type: Any = None) -> Snapshot[Any] | None:
        """Return the value of a key with its entry, None if there is none."""
        return self._client.run(self._values(key, as_type).snapshot())

    def raw(self, key: str) -> Snapshot[bytes] | None:
        """Return the stored bytes of a key with their entry, whatever they hold; None if there is nothing."""
        return self._client.run(self._values(key, None).raw())

    def set(
        self, key: str, value: Any, *, as_type: Any = None, ttl: float | None = None, reason: str | None = None
    ) -> Entry:
        """Write a value, whatever stands there, and return its entry.

        A Pydantic model and JSON types are stored as JSON, bytes as they are, anything else as a signed pickle; with
        ``as_type`` always as that type. It expires after ``ttl`` seconds. Raises SerializationError for a value that
        could not be read back.
        """
        return self._client.run(self._values(key, as_type).write(value, MISSING, ttl, reason))

    def delete(
        self, key: str, *, expected: Snapshot[Any] | Entry | str | Missing = MISSING, reason: str | None = None
    ) -> Entry | None:
        """Delete a key and return the entry of the deletion, None if there was nothing.

        With ``expected``, only if it did not change since; else ConflictError.
        """
        return self._client.run(self._values(key, None).delete(expected, reason))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Iterate over the keys that start with ``prefix``, in byte order, page by page."""
        return self._client.iterate(lambda cursor: self._page(prefix, cursor))

    def key(self, key: str, value_type: TypeForm[T]) -> Document[T]:
        """Return a typed key: its values are always of this type. Nothing is read or written yet.

        Raises SerializationError for a type that cannot be stored as it is, and InvalidKeyError for a bad key.
        """
        return Document(Values(self._client, self._scope, key, value_type, self._bound))


class AsyncState(_StateFlows):
    """The async face of ``State``: the same methods, awaited."""

    __slots__ = ()

    @overload
    async def get(self, key: str, *, default: D) -> Any | D: ...
    @overload
    async def get(self, key: str) -> Any: ...
    @overload
    async def get(self, key: str, *, as_type: TypeForm[T]) -> T | None: ...
    @overload
    async def get(self, key: str, *, as_type: TypeForm[T], default: D) -> T | D: ...
    async def get(self, key: str, *, as_type: Any = None, default: Any = None) -> Any:
        """See ``State.get``."""
        return await self._client.arun(self._values(key, as_type).get(default))

    @overload
    async def get_many(self, keys: Sequence[str]) -> dict[str, Any]: ...
    @overload
    async def get_many(self, keys: Sequence[str], *, as_type: TypeForm[T]) -> dict[str, T]: ...
    async def get_many(self, keys: Sequence[str], *, as_type: Any = None) -> dict[str, Any]:
        """See ``State.get_many``."""
        return await self._client.arun(self._get_many(keys, as_type))

    async def batch(self, operations: Sequence[Operation]) -> list[Any]:
        """See ``State.batch``."""
        return await self._client.arun(self._batch(operations))

    async def search(
        self, prefix: str = "", *, filter: Mapping[str, Any] | None = None, limit: int = 10, offset: int = 0,
        vector: Sequence[float] | None = None,
    ) -> list[Hit[Any]]:  # fmt: skip
        """See ``State.search``."""
        return await self._client.arun(self._search(Search(prefix, filter, limit, offset, vector)))

    @overload
    async def snapshot(self, key: str) -> Snapshot[Any] | None: ...
    @overload
    async def snapshot(self, key: str, *, as_type: TypeForm[T]) -> Snapshot[T] | None: ...
    async def snapshot(self, key: str, *, as_type: Any = None) -> Snapshot[Any] | None:
        """See ``State.snapshot``."""
        return await self._client.arun(self._values(key, as_type).snapshot())

    async def raw(self, key: str) -> Snapshot[bytes] | None:
        """See ``State.raw``."""
        return await self._client.arun(self._values(key, None).raw())

    async def set(
        self, key: str, value: Any, *, as_type: Any = None, ttl: float | None = None, reason: str | None = None
    ) -> Entry:
        """See ``State.set``."""
        return await self._client.arun(self._values(key, as_type).write(value, MISSING, ttl, reason))

    async def delete(
        self, key: str, *, expected: Snapshot[Any] | Entry | str | Missing = MISSING, reason: str | None = None
    ) -> Entry | None:
        """See ``State.delete``."""
        return await self._client.arun(self._values(key, None).delete(expected, reason))

    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """See ``State.keys``."""
        return self._client.aiterate(lambda cursor: self._page(prefix, cursor))

    def key(self, key: str, value_type: TypeForm[T]) -> AsyncDocument[T]:
        """See ``State.key``."""
        return AsyncDocument(Values(self._client, self._scope, key, value_type, self._bound))


class RequestState(State):
    """The state of one request: swept seven days after its last write."""

    __slots__ = ()

    def clear(self) -> int:
        """Delete every key of this request; return how many there were."""
        return self._client.run(delete_all(self._scope, "", PAGE_LIMIT, self._client.write_id))


class AsyncRequestState(AsyncState):
    """The async face of ``RequestState``."""

    __slots__ = ()

    async def clear(self) -> int:
        """See ``RequestState.clear``."""
        return await self._client.arun(delete_all(self._scope, "", PAGE_LIMIT, self._client.write_id))
