"""Collection: many typed values of an entity, each with an id."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

from .checks import check_type
from .client import Client
from .codec import typed_codec
from .documents import AsyncDocument, Document
from .drivers import Flow
from .errors import ConflictError, InvalidRequestError
from .flows import batch, call, fetch
from .ids import uuid7
from .keys import segment
from .messages import BATCH_OPERATIONS, INLINE_LIMIT, PAGE_LIMIT, CommitWrite, Entry, List, Page, PrepareRead
from .values import Snapshot, Values, is_model

T = TypeVar("T")
U = TypeVar("U")


class _CollectionFlows(Generic[T]):
    # With slots, `workouts.limit = 5` is an error and not lost.
    __slots__ = ("_bound", "_client", "_prefix", "_value_type")

    def __init__(self, client: Client, prefix: str, value_type: Any, bound: Mapping[str, str] | None) -> None:
        typed_codec(value_type)
        self._client = client
        self._prefix = prefix
        self._value_type = value_type
        self._bound = bound

    @property
    def prefix(self) -> str:
        """What every item's key starts with."""
        return self._prefix

    def _key(self, item_id: str) -> str:
        return self._prefix + segment(item_id, "an item's id")

    def _values(self, item_id: str) -> Values[T]:
        return self._values_at(self._key(item_id))

    def _values_at(self, key: str) -> Values[T]:
        return Values(self._client, self._client.scope, key, self._value_type, self._bound)

    def _add(self, value: T, item_id: str | None, ttl: float | None, reason: str | None) -> Flow[str]:
        name = uuid7() if item_id is None else item_id
        values = self._values(name)
        try:
            yield from values.write(value, None, ttl, reason)
        except ConflictError as error:
            if error.found is None or not values.is_same(error.found, values.encode(value)[0].data):
                raise
        return name

    def _add_many(self, items: Mapping[str, T] | Iterable[T], reason: str | None) -> Flow[list[str]]:
        if isinstance(items, str) or (is_model(self._value_type) and isinstance(items, self._value_type)):
            # Each letter would be a value, or each field.
            raise InvalidRequestError("add_many takes several values; add() takes one")
        named: dict[str, T] = {}
        if isinstance(items, Mapping):
            named.update(cast("Mapping[str, T]", items))
        else:
            named.update((uuid7(), value) for value in items)
        # Everything is encoded before anything is written: a value that cannot be stored stops them all.
        commits: list[tuple[str, CommitWrite]] = []
        for name, value in named.items():
            values = self._values(name)
            commits.append((name, values.commit(values.encode(value)[0], expected=None, ttl=None, reason=reason)))
        added: list[str] = []
        for start in range(0, len(commits), BATCH_OPERATIONS):
            added += yield from self._add_batch(dict(commits[start : start + BATCH_OPERATIONS]))
        return added

    def _add_batch(self, commits: dict[str, CommitWrite]) -> Flow[list[str]]:
        """Write items in one transaction, leaving out those that are there already with the same value."""
        while commits:
            try:
                yield from batch(self._client.scope, list(commits.values()), self._client.config.transfer)
                return list(commits)
            except ConflictError as error:
                if error.code != "condition_failed":
                    raise
            reads = [PrepareRead(commit.scope, commit.key, INLINE_LIMIT) for commit in commits.values()]
            stored = yield from batch(self._client.scope, reads, self._client.config.transfer)
            rest: dict[str, CommitWrite] = {}
            for (name, commit), found in zip(commits.items(), stored, strict=True):
                values, there = self._values(name), found
                if there is None:
                    rest[name] = commit
                elif not values.is_same(there, commit.data):
                    raise ConflictError(f"another value has the id {name!r} already", key=commit.key).with_loader(
                        lambda values=values, there=there: Snapshot(values.decode(*there), there[1])
                    )
            commits = rest
        return []

    def _list(self, limit: int | None, reverse: bool, after: str | None) -> Flow[list[Snapshot[T]]]:
        def load(data: bytes, entry: Entry) -> Snapshot[T]:
            return Snapshot(self._values_at(entry.key).decode(data, entry), entry)

        return (yield from self._all(load, limit, reverse, after))

    def _raw(self, limit: int | None, reverse: bool, after: str | None) -> Flow[list[Snapshot[bytes]]]:
        return (yield from self._all(Snapshot[bytes], limit, reverse, after))

    def _all(
        self, load: Callable[[bytes, Entry], Snapshot[U]], limit: int | None, reverse: bool, after: str | None
    ) -> Flow[list[Snapshot[U]]]:
        """Find values and load each page of them as it comes: thousands at once would hold an event loop up."""
        if limit is not None:
            check_type(limit, int, "limit is a whole number")
            if limit < 0:
                raise InvalidRequestError("limit must not be negative")
        cursor = None if after is None else self._key(after)
        found: list[Snapshot[U]] = []
        while limit is None or len(found) < limit:
            room = PAGE_LIMIT if limit is None else min(PAGE_LIMIT, limit - len(found))
            page: Page = yield from call(
                List(self._client.scope, self._prefix, cursor, room, reverse, max_inline_size=INLINE_LIMIT)
            )
            for one in page.found:
                request = PrepareRead(self._client.scope, one.entry.key, INLINE_LIMIT)
                stored = yield from fetch(one, request, self._client.config.transfer)
                if stored is not None:
                    found.append(load(*stored))
            cursor = page.cursor
            if cursor is None:
                break
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._prefix!r})"


class Collection(_CollectionFlows[T]):
    """Many typed values, by default in the order of their adding: ids are UUIDv7 unless you name them.

    ``ttl`` is in seconds, ``reason`` goes into the provenance, and values are refused and damaged ones reported as by
    ``Document``.
    """

    __slots__ = ()

    def add(self, value: T, *, id: str | None = None, ttl: float | None = None, reason: str | None = None) -> str:
        """Add an item and return its id.

        Adding the same value under the same ``id`` again changes nothing, also where an older model wrote it; another
        value there is a ConflictError.
        """
        return self._client.run(self._add(value, id, ttl, reason))

    def add_many(self, items: Mapping[str, T] | Iterable[T], *, reason: str | None = None) -> list[str]:
        """Add items, by id if they are given as a mapping, and return the ids of those that were not there yet.

        A thousand go in one transaction and one round trip. Repeating it is safe, as with ``add``; ``item_id`` makes
        ids for what has a time and a name elsewhere.
        """
        return self._client.run(self._add_many(items, reason))

    def get(self, item_id: str) -> T | None:
        """Return an item, None if there is none with this id."""
        return self._client.run(self._values(item_id).get(None))

    def item(self, item_id: str) -> Document[T]:
        """Return one item as a document: to update, edit, replace or delete it."""
        return Document(self._values(item_id))

    def list(self, *, limit: int | None = None, reverse: bool = False, after: str | None = None) -> list[Snapshot[T]]:
        """Return items in the byte order of their ids (``reverse``: the last first), those behind the id ``after``.

        At most ``limit``, or all of them; the id of the last one is the next call's ``after``.
        """
        return self._client.run(self._list(limit, reverse, after))

    def raw(
        self, *, limit: int | None = None, reverse: bool = False, after: str | None = None
    ) -> builtins.list[Snapshot[bytes]]:
        """List items like ``list``, as their bytes and entries, whatever they hold."""
        return self._client.run(self._raw(limit, reverse, after))

    def delete(self, item_id: str, *, reason: str | None = None) -> Entry | None:
        """Delete an item and return the entry of the deletion, None if there was nothing."""
        return self.item(item_id).delete(reason=reason)


class AsyncCollection(_CollectionFlows[T]):
    """The async face of ``Collection``: the same methods, awaited."""

    __slots__ = ()

    async def add(self, value: T, *, id: str | None = None, ttl: float | None = None, reason: str | None = None) -> str:
        """See ``Collection.add``."""
        return await self._client.arun(self._add(value, id, ttl, reason))

    async def add_many(self, items: Mapping[str, T] | Iterable[T], *, reason: str | None = None) -> list[str]:
        """See ``Collection.add_many``."""
        return await self._client.arun(self._add_many(items, reason))

    async def get(self, item_id: str) -> T | None:
        """See ``Collection.get``."""
        return await self._client.arun(self._values(item_id).get(None))

    def item(self, item_id: str) -> AsyncDocument[T]:
        """See ``Collection.item``."""
        return AsyncDocument(self._values(item_id))

    async def list(
        self, *, limit: int | None = None, reverse: bool = False, after: str | None = None
    ) -> list[Snapshot[T]]:
        """See ``Collection.list``."""
        return await self._client.arun(self._list(limit, reverse, after))

    async def raw(
        self, *, limit: int | None = None, reverse: bool = False, after: str | None = None
    ) -> builtins.list[Snapshot[bytes]]:
        """See ``Collection.raw``."""
        return await self._client.arun(self._raw(limit, reverse, after))

    async def delete(self, item_id: str, *, reason: str | None = None) -> Entry | None:
        """See ``Collection.delete``."""
        return await self.item(item_id).delete(reason=reason)
