"""A batch of LangGraph's operations, carried out by the operations of agent_memory.

``carry_out`` is a generator, so that the sync and the async store share it: it yields what has to be embedded and the
operations to send, and gets the vectors and results back. Nothing is sent before every operation is checked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)

from agent_memory import Entry, InvalidKeyError, InvalidRequestError, Snapshot
from agent_memory.operations import Delete, Get, Hit, Parents, Search, Set

from .indexing import Index
from .item_schemas import SchemaRules, item_name
from .namespaces import checked, fixed_part, from_parent, from_state_key, matches, to_prefix, to_state_key

PAGE: Final = 1_000
"""Operations in one transaction, hits of one search and namespaces of one listing, at most."""

_JSON_OBJECT: Final[Any] = dict[str, Any]
_JSON: Final = "application/json"


class Embed(NamedTuple):
    """What has to be embedded before a batch is sent -> (vectors of the texts, vectors of the queries)."""

    texts: list[str]
    queries: list[str]


Send: TypeAlias = list[Any]
"""Operations of agent_memory for one transaction -> their results."""

Flow: TypeAlias = Generator[Embed | Send, Any, list[Result]]
_Sending: TypeAlias = Generator[Send, Any, list[Any]]


class _Read(Protocol):
    """A read in the making. ``next`` is the operation to send, None once ``result`` is complete."""

    next: Any
    result: Any
    paged: bool
    """Whether one operation may not be enough."""

    def take(self, reply: Any) -> None: ...


def carry_out(ops: Iterable[Op], index: Index | None, rules: SchemaRules) -> Flow:
    """Carry out a batch -> results in the order of the operations.

    Reads see what was there before the batch; then the puts apply, of several to one item the last. It is one
    transaction of at most 1,000 operations; more, or reads that may take several pages together with puts, take
    several: the reads come first.
    """
    given = list(ops)
    reads: dict[int, _Read] = {}
    puts: dict[str, _Put] = {}
    for position, op in enumerate(given):
        if isinstance(op, PutOp):
            put = _Put(op, rules)
            # Taken out first: the order of the writes is the order of the operations that count.
            puts.pop(put.state_key, None)
            puts[put.state_key] = put
        else:
            reads[position] = _read(op, rules)
    yield from _embed(reads.values(), puts.values(), index)
    writes = [put.write() for put in puts.values() if put.addresses_item]
    pending = [read for read in reads.values() if read.next is not None]
    together = not any(read.paged for read in pending)
    while pending:
        operations = [read.next for read in pending]
        replies = yield from _send(operations + writes if together else operations)
        for read, reply in zip(pending, replies, strict=False):
            read.take(reply)
        pending = [read for read in pending if read.next is not None]
        if together:
            writes = []
    if writes:
        yield from _send(writes)
    return [reads[position].result if position in reads else None for position in range(len(given))]


def _send(operations: Send) -> _Sending:
    replies: list[Any] = []
    for start in range(0, len(operations), PAGE):
        replies += yield operations[start : start + PAGE]
    return replies


def _embed(reads: Iterable[_Read], puts: Iterable[_Put], index: Index | None) -> Generator[Embed, Any, None]:
    if index is None:
        return
    searches = [read for read in reads if isinstance(read, _SearchRead) and read.query]
    written = [(put, index.texts(put.value, put.index)) for put in puts if put.value is not None]
    texts = list(dict.fromkeys(text for _, found in written for text in found))
    queries = list(dict.fromkeys(read.query or "" for read in searches))
    if not texts and not queries:
        return
    vectors, query_vectors = yield Embed(texts, queries)
    known, asked = index.checked(vectors, texts), index.checked(query_vectors, queries)
    for put, found in written:
        put.vectors = [known[text] for text in found]
    for read in searches:
        read.look_for(asked[read.query or ""])


def _read(op: Op, rules: SchemaRules) -> _Read:
    if isinstance(op, GetOp):
        return _GetRead(op, rules)
    if isinstance(op, SearchOp):
        return _SearchRead(op, rules)
    if isinstance(op, ListNamespacesOp):
        validate_op_namespace(op)
        return _Listing(op)
    raise ValueError(f"Unknown operation type: {type(op)}")


# -- reads -----------------------------------------------------------------------------------------------------------


class _GetRead:
    paged = False

    def __init__(self, op: GetOp, rules: SchemaRules) -> None:
        self._namespace, self._key, self._rules = checked(op.namespace), str(op.key), rules
        self.result: Item | None = None
        # Without a namespace it would be a state key of one segment, which is no item.
        self.next: Get | None = None
        if self._namespace:
            self.next = Get(to_state_key(self._namespace, self._key), None, op.refresh_ttl)

    def take(self, reply: Snapshot[Any] | None) -> None:
        self.next = None
        if reply is None or not _is_item(reply.value, reply.entry):
            return
        value, entry = reply
        self._rules.report(self._namespace, self._key, value)
        created, updated = _times(entry)
        self.result = Item(
            value=value, key=self._key, namespace=self._namespace, created_at=created, updated_at=updated
        )


class _SearchRead:
    def __init__(self, op: SearchOp, rules: SchemaRules) -> None:
        if op.offset < 0 or op.limit < 0:
            raise InvalidRequestError("limit and offset must not be negative")
        namespace = checked(op.namespace_prefix)
        self.query = op.query
        self.result: list[SearchItem] = []
        self._rules, self._wanted = rules, op.limit
        # In the whole store a search also finds state keys of one segment, which are no items: it is skipped through
        # here, where they can be told apart. Below a namespace there are none, and the store does the skipping.
        self._skip = 0 if namespace else op.offset
        self.paged = self._left > PAGE or not namespace
        self.next: Search | None = None
        if op.limit:
            self.next = Search(
                to_prefix(namespace), op.filter, min(self._left, PAGE), op.offset if namespace else 0, None,
                bool(op.refresh_ttl),
            )  # fmt: skip

    @property
    def _left(self) -> int:
        return self._wanted - len(self.result) + self._skip

    def look_for(self, vector: Sequence[float]) -> None:
        """Search by similarity."""
        if self.next is not None:
            self.next = self.next._replace(vector=vector)

    def take(self, reply: list[Hit[Any]]) -> None:
        asked, self.next = self.next, None
        for value, entry, score in reply:
            place = from_state_key(entry.key)
            if place is None or not _is_item(value, entry):
                continue
            if self._skip:
                self._skip -= 1
                continue
            self._rules.report(*place, value)
            self.result.append(SearchItem(*place, value, *_times(entry), score))
        if asked is not None and len(reply) == asked.limit and self._left:
            self.next = asked._replace(offset=asked.offset + len(reply), limit=min(self._left, PAGE))


class _Listing:
    def __init__(self, op: ListNamespacesOp) -> None:
        if op.offset < 0 or op.limit < 0 or (op.max_depth is not None and op.max_depth < 1):
            raise InvalidRequestError("limit and offset must not be negative, max_depth must be at least 1")
        self._conditions = tuple(op.match_conditions or ())
        for condition in self._conditions:
            matches(condition, ())  # an unknown kind of condition fails before anything is sent
        self._depth, self._skip, self._limit = op.max_depth, op.offset, op.limit
        self._last: tuple[str, ...] | None = None
        self.result: list[tuple[str, ...]] = []
        fixed = fixed_part(self._conditions)
        # Where every namespace below these labels is one of the result, as many are enough as it is to have.
        every = op.max_depth is None and all(
            condition.match_type == "prefix" and matches(condition, fixed) for condition in self._conditions
        )
        wanted = op.offset + op.limit
        self.paged = not every or wanted > PAGE
        self.next: Parents | None = None
        if op.limit:
            self.next = Parents(to_prefix(fixed), None, PAGE if self.paged else wanted)

    def take(self, reply: list[str]) -> None:
        asked, self.next = self.next, None
        for parent in reply:
            namespace = from_parent(parent)
            if not all(matches(condition, namespace) for condition in self._conditions):
                continue
            shown = namespace[: self._depth]
            # In the order of state keys, the namespaces that begin alike stand together.
            if shown == self._last:
                continue
            self._last = shown
            if self._skip:
                self._skip -= 1
                continue
            self.result.append(shown)
            if len(self.result) == self._limit:
                return
        if asked is not None and len(reply) == asked.limit:
            self.next = asked._replace(after=reply[-1])


def _times(entry: Entry) -> tuple[datetime, datetime]:
    created = entry.created_at
    return created, created if entry.updated_us == entry.created_us else entry.updated_at


def _is_item(value: object, entry: Entry) -> bool:
    """Say whether a value is what LangGraph's view shows: a JSON object, not a pickled dict."""
    return isinstance(value, dict) and entry.content_type == _JSON


# -- writes ----------------------------------------------------------------------------------------------------------


class _Put:
    """One put, or a delete if ``value`` is None."""

    def __init__(self, op: PutOp, rules: SchemaRules) -> None:
        namespace, key = checked(op.namespace), str(op.key)
        self.state_key = to_state_key(namespace, key)
        self.addresses_item = bool(namespace)
        self.index = op.index
        self.vectors: Sequence[Sequence[float]] = ()
        self.value: Mapping[str, Any] | None = None
        self._ttl = None if op.ttl is None else op.ttl * 60.0
        if op.value is None:
            return
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if not key:
            raise InvalidKeyError("a key must not be empty")
        if not isinstance(op.value, Mapping):
            raise InvalidRequestError(f"a value is a mapping, not a {type(op.value).__name__}")
        if self._ttl is not None and not self._ttl > 0:
            raise InvalidRequestError("ttl is a number of minutes above 0")
        self.value = dict(op.value)
        self._model = rules.model(namespace, key)
        if self._model is not None:
            self._typed = rules.to_model(self._model, self.value, item_name(namespace, key))

    def write(self) -> Set | Delete:
        """Return the operation that applies it."""
        if self.value is None:
            return Delete(self.state_key)
        if self._model is not None:
            return Set(self.state_key, self._typed, self._model, ttl=self._ttl, vectors=self.vectors)
        # Typed, so that dates, tuples and models become JSON, as they do in the other stores, and never a pickle.
        return Set(self.state_key, self.value, _JSON_OBJECT, ttl=self._ttl, vectors=self.vectors)
