"""A batch of LangGraph's operations, carried out by the operations of agent_memory.

``carry_out`` is a generator, so that the sync and the async store share it: it yields what has to be embedded and the
operations to send, and gets the vectors and results back. Nothing is sent before every operation is checked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
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
)
from pydantic import BaseModel

from agent_memory import Entry, InvalidKeyError, InvalidRequestError, LimitExceededError, Snapshot
from agent_memory.operations import Delete, Get, Hit, Parents, Search, Set

from .indexing import Index
from .item_schemas import JSON_OBJECT, SchemaRules, as_json, item_name
from .namespaces import (
    check_labels,
    checked,
    common_start,
    from_parent,
    from_state_key,
    to_pattern,
    to_prefix,
    to_state_key,
)

PAGE: Final = 1_000
"""Operations in one transaction, hits of one search and namespaces of one listing, at most."""

_JSON: Final = "application/json"


class Embed(NamedTuple):
    """What has to be embedded before a batch is sent -> (vectors of the texts, vectors of the queries)."""

    texts: list[str]
    queries: list[str]


Send: TypeAlias = list[Any]
"""Operations of agent_memory for one transaction -> their results, or the LimitExceededError that they met."""

Flow: TypeAlias = Generator[Embed | Send, Any, list[Result]]
_Sending: TypeAlias = Generator[Send, list[Any] | LimitExceededError, list[Any]]


class _Reads(Protocol):
    """Reads in the making. ``wanted`` is what to send next: nothing once they are complete."""

    wanted: list[Any]
    paged: bool
    """Whether sending once may not be enough."""

    def take(self, replies: list[Any]) -> None: ...


def carry_out(ops: Iterable[Op], index: Index | None, rules: SchemaRules) -> Flow:
    """Carry out a batch -> results in the order of the operations.

    Reads see what was there before the batch; then the puts apply, of several to one item the last. It is one
    transaction of at most 1,000 operations; more, a read of more than 1,000 results together with puts, or reads that
    find more than one transaction may, take several: the reads come first.
    """
    given = list(ops)
    results: list[Result] = [None] * len(given)
    gets = _Gets(results, rules)
    reads: list[_Reads] = [gets]
    puts: dict[str, _Put] = {}
    for position, op in enumerate(given):
        if isinstance(op, GetOp):
            gets.add(position, op)
        elif isinstance(op, PutOp):
            put = _Put(op, rules)
            # Taken out first: the order of the writes is the order of the operations that count.
            puts.pop(put.state_key, None)
            puts[put.state_key] = put
        else:
            read = _read(op, rules)
            reads.append(read)
            results[position] = read.result
    yield from _embed(reads, puts.values(), index)
    writes = [put.write() for put in puts.values() if put.addresses_item]
    pending = [read for read in reads if read.wanted]
    together = not any(read.paged for read in pending)
    while pending:
        operations = [operation for read in pending for operation in read.wanted]
        replies = yield from _send(operations + writes if together else operations)
        start = 0
        for read in pending:
            end = start + len(read.wanted)
            read.take(replies[start:end])
            start = end
        pending = [read for read in pending if read.wanted]
        if together:
            writes = []
    if writes:
        yield from _send(writes)
    return results


def _send(operations: Send) -> _Sending:
    replies: list[Any] = []
    for start in range(0, len(operations), PAGE):
        replies += yield from _send_page(operations[start : start + PAGE])
    return replies


def _send_page(operations: Send) -> _Sending:
    """Send operations, reads first; if they find more than a transaction may, the reads by halves, then the writes."""
    replies = yield operations
    if not isinstance(replies, LimitExceededError):
        return replies
    reads = sum(not isinstance(operation, Set | Delete) for operation in operations)
    middle = reads if reads < len(operations) else reads // 2
    if not middle:
        raise replies
    first = yield from _send_page(operations[:middle])
    return first + (yield from _send_page(operations[middle:]))


def _embed(reads: Iterable[_Reads], puts: Iterable[_Put], index: Index | None) -> Generator[Embed, Any, None]:
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


def _read(op: Op, rules: SchemaRules) -> _SearchRead | _Listing:
    if isinstance(op, SearchOp):
        return _SearchRead(op, rules)
    if isinstance(op, ListNamespacesOp):
        for condition in op.match_conditions or ():
            check_labels(condition.path)
        return _Listing(op)
    raise ValueError(f"Unknown operation type: {type(op)}")


# -- reads -----------------------------------------------------------------------------------------------------------


class _Gets:
    """All gets of a batch; an object each would take as long as the rest of their way through here."""

    paged = False

    def __init__(self, results: list[Result], rules: SchemaRules) -> None:
        self.wanted: list[Get] = []
        self._places: list[tuple[int, tuple[str, ...], str]] = []
        self._results, self._rules = results, rules

    def add(self, position: int, op: GetOp) -> None:
        """Take in the operation whose result stands at a position."""
        namespace, key = checked(op.namespace), str(op.key)
        # Without a namespace it would be a state key of one segment, which is no item.
        if namespace:
            self._places.append((position, namespace, key))
            self.wanted.append(Get(to_state_key(namespace, key), None, op.refresh_ttl))

    def take(self, replies: list[Snapshot[Any] | None]) -> None:
        self.wanted = []
        for (position, namespace, key), reply in zip(self._places, replies, strict=True):
            if reply is None or not _is_item(*reply):
                continue
            value, entry = reply
            self._rules.report(namespace, key, value)
            self._results[position] = Item(
                value=value, key=key, namespace=namespace, created_at=entry.created_at, updated_at=entry.updated_at
            )


class _SearchRead:
    def __init__(self, op: SearchOp, rules: SchemaRules) -> None:
        namespace = checked(op.namespace_prefix)
        self.query = op.query
        self.result: list[SearchItem] = []
        self.paged = op.limit > PAGE
        self._rules, self._limit = rules, op.limit
        # A state key of one segment is no item.
        first = Search(
            to_prefix(namespace), op.filter, min(op.limit, PAGE), op.offset, None, bool(op.refresh_ttl), not namespace
        )
        self.wanted: list[Search] = [first] if op.limit else []

    def look_for(self, vector: Sequence[float]) -> None:
        """Search by similarity."""
        self.wanted = [search._replace(vector=vector) for search in self.wanted]

    def take(self, replies: list[list[Hit[Any]]]) -> None:
        (asked,), self.wanted = self.wanted, []
        (hits,) = replies
        for value, entry, score in hits:
            namespace, key = from_state_key(entry.key)
            self._rules.report(namespace, key, value)
            self.result.append(SearchItem(namespace, key, value, entry.created_at, entry.updated_at, score))
        left = self._limit - len(self.result)
        if len(hits) == asked.limit and left:
            self.wanted = [asked._replace(offset=asked.offset + len(hits), limit=min(left, PAGE))]


class _Listing:
    def __init__(self, op: ListNamespacesOp) -> None:
        conditions = [to_pattern(condition) for condition in op.match_conditions or ()]
        start = common_start(conditions)
        prefix = "".join(f"{segment}/" for segment in start)
        # What the prefix says already need not be looked at name by name.
        patterns = [pattern for pattern in conditions if pattern.at_end or not pattern.fits(start)]
        self.result: list[tuple[str, ...]] = []
        self.paged = op.limit > PAGE
        self._limit = op.limit
        first = Parents(prefix, None, min(op.limit, PAGE), patterns, op.max_depth, op.offset)
        self.wanted = [first] if op.limit else []

    def take(self, replies: list[list[str]]) -> None:
        (asked,), self.wanted = self.wanted, []
        (names,) = replies
        self.result += map(from_parent, names)
        left = self._limit - len(self.result)
        if len(names) == asked.limit and left:
            self.wanted = [asked._replace(after=names[-1], offset=0, limit=min(left, PAGE))]


def _is_item(value: object, entry: Entry) -> bool:
    """Say whether a value is what LangGraph's view shows: a JSON object, not a pickled dict."""
    return isinstance(value, dict) and entry.content_type == _JSON


# -- writes ----------------------------------------------------------------------------------------------------------


def minutes(time: Any, name: str = "ttl") -> float:
    """Return a time as it is; raise InvalidRequestError if it is no number of minutes."""
    if not isinstance(time, int | float) or not time > 0:
        raise InvalidRequestError(f"{name} is a number of minutes above 0")
    return time


class _Put:
    """One put, or a delete if ``value`` is None."""

    def __init__(self, op: PutOp, rules: SchemaRules) -> None:
        namespace, key = checked(op.namespace), str(op.key)
        self.state_key = to_state_key(namespace, key)
        self.addresses_item = bool(namespace)
        self.index = op.index
        self.vectors: Sequence[Sequence[float]] = ()
        self.value: Mapping[str, Any] | BaseModel | None = None
        self._ttl = None
        if op.value is None:
            return
        if not namespace:
            raise InvalidNamespaceError("Namespace cannot be empty.")
        if not key:
            raise InvalidKeyError("a key must not be empty")
        if not isinstance(op.value, Mapping):
            raise InvalidRequestError(f"a value is a mapping, not {type(op.value).__name__}")
        if op.ttl is not None:
            self._ttl = minutes(op.ttl) * 60.0
        model = rules.model(namespace, key)
        self.value = (
            as_json(dict(op.value)) if model is None else rules.to_model(model, op.value, item_name(namespace, key))
        )
        # Typed, so that it is never a pickle.
        self._type = model or JSON_OBJECT

    def write(self) -> Set | Delete:
        """Return the operation that applies it."""
        if self.value is None:
            return Delete(self.state_key)
        return Set(self.state_key, self.value, self._type, ttl=self._ttl, vectors=self.vectors)
