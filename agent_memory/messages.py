"""What the protocol says: requests to a store and what comes back.

The flows yield these, the transports carry them, the service answers them. They are NamedTuples because they are made
on every call: a frozen dataclass takes five times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
PICKLE: Final = "application/vnd.agent-memory.cloudpickle"

INLINE_LIMIT: Final = 64 * 1024
"""Bytes: a value up to this size lives in the catalog and travels in the message itself."""

MAX_VALUE_BYTES: Final = 5 * 1024**3
"""The largest object that one PUT can make in S3."""

BATCH_OPERATIONS: Final = 1_000
"""Operations in one batch, at most."""

BATCH_INLINE_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of values that one batch or page carries in its messages; the rest comes as chunks to fetch."""

PAGE_LIMIT: Final = 1_000
"""Entries in one page of a listing, at most."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Scope(NamedTuple):
    """Where keys live: an application of a namespace, or one request of it."""

    namespace: str
    application: str
    request_id: str | None = None

    @property
    def path(self) -> str:
        """The scope as one string; names hold no slash, so no two scopes share it."""
        if self.request_id is None:
            return f"{self.namespace}/{self.application}"
        return f"{self.namespace}/{self.application}/{self.request_id}"


class Entry(NamedTuple):
    """The metadata of one committed version of a key.

    ``size`` is in bytes, ``sha256`` in lower-case hex. A deletion is a version too: it has ``deleted=True`` and size 0.
    Times are microseconds since 1970 by the catalog's clock; ``created_at``, ``updated_at`` and ``expires_at`` give
    them as datetimes in UTC. Order changes by ``version``, never by time.
    """

    key: str
    version: int
    etag: str
    size: int
    sha256: str
    content_type: str
    signature: str | None
    schema_name: str | None
    schema_version: int | None
    created_us: int
    updated_us: int
    expires_us: int | None
    provenance: Mapping[str, str] | None
    deleted: bool = False

    @property
    def created_at(self) -> datetime:
        """When the key was written first, or anew after a deletion; in UTC."""
        return from_us(self.created_us)

    @property
    def updated_at(self) -> datetime:
        """When this version was committed; in UTC."""
        return from_us(self.updated_us)

    @property
    def expires_at(self) -> datetime | None:
        """When the value expires, None if it does not; in UTC."""
        return None if self.expires_us is None else from_us(self.expires_us)


@lru_cache(1_024)
def from_us(us: int) -> datetime:
    """Return the UTC time of so many microseconds since 1970, exactly.

    Values that are in use are read again and again, and those of one batch were written at one time.
    """
    return _EPOCH + timedelta(0, 0, us)


def to_us(time: datetime) -> int:
    """Return the microseconds since 1970 of an aware time, exactly."""
    return (time - _EPOCH) // timedelta(microseconds=1)


class Chunk(NamedTuple):
    """A run of a value's bytes: where it is read or written, its size in bytes and the store's etag for it."""

    uri: str
    size: int
    etag: str | None = None


class Blob(NamedTuple):
    """The bytes of a value outside the catalog, in order. The id of one being written is the write id."""

    id: str
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        """The bytes of all chunks."""
        return sum(chunk.size for chunk in self.chunks)


class Found(NamedTuple):
    """A version that exists: its entry, and its bytes (``data``) or where to fetch them (``blob``)."""

    entry: Entry
    data: bytes | None
    blob: Blob | None


# -- requests --------------------------------------------------------------------------------------------------------


class PrepareRead(NamedTuple):
    """Ask for a key's current version -> Found | None.

    ``version`` insists on that one; ``refresh_ttl`` restarts its time to live.
    """

    scope: Scope
    key: str
    max_inline_size: int = 0
    version: int | None = None
    refresh_ttl: bool = False


class PrepareWrite(NamedTuple):
    """Ask where to put ``size`` bytes -> Blob. Without ``chunk_size`` it has exactly one chunk.

    ``write_id`` asks for fresh places of a write that was prepared before and not committed. A condition that does not
    hold is refused at once, for the bytes would travel in vain; whether it does is for the commit to say.
    """

    scope: Scope
    key: str
    size: int
    chunk_size: int | None = None
    write_id: str | None = None
    if_match: str | None = None
    if_none_match: bool = False


class CommitWrite(NamedTuple):
    """Make inline or uploaded bytes the new version of a key -> Entry. Fails as a whole with ConflictError.

    ``write_id`` names the change, so that it is made once however often it is sent; None for one that nobody sends
    twice. The version expires ``ttl_seconds`` after the commit, by the catalog's clock; with ``keep_ttl`` when the
    current one would, if there is one. ``vectors`` stand for it in semantic searches: little-endian 32-bit floats each,
    of which a search compares those that are as long as its own.
    """

    scope: Scope
    key: str
    write_id: str | None
    data: bytes | None
    blob: Blob | None
    content_type: str = BYTES
    sha256: str | None = None
    signature: str | None = None
    schema_name: str | None = None
    schema_version: int | None = None
    if_match: str | None = None
    if_none_match: bool = False
    ttl_seconds: float | None = None
    keep_ttl: bool = False
    provenance: Mapping[str, str] | None = None
    max_inline_size: int = 0
    vectors: tuple[bytes, ...] = ()


class Delete(NamedTuple):
    """Delete a key -> Entry of the deletion, or None if there was nothing to delete. ``write_id`` as in CommitWrite."""

    scope: Scope
    key: str
    write_id: str | None
    if_match: str | None = None
    provenance: Mapping[str, str] | None = None
    max_inline_size: int = 0


class List(NamedTuple):
    """List the keys that start with ``prefix``, in byte order or its reverse -> Page."""

    scope: Scope
    prefix: str
    cursor: str | None = None
    limit: int = 100
    reverse: bool = False
    max_inline_size: int | None = None


class ListSegments(NamedTuple):
    """List the distinct segments that follow ``prefix`` and are followed by ``/`` -> SegmentPage."""

    scope: Scope
    prefix: str
    cursor: str | None = None
    limit: int = 100


class Search(NamedTuple):
    """Find the JSON objects under ``prefix`` that fulfil ``filter`` -> list of Hits.

    The newest change first; with ``vector`` the most similar first, and those without vectors behind them. Ties are
    broken by key. ``filter`` is what ``filters.parse`` takes. ``nested`` leaves out keys without a ``/``.
    """

    scope: Scope
    prefix: str
    filter: Mapping[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    vector: bytes | None = None
    max_inline_size: int = 0
    refresh_ttl: bool = False
    nested: bool = False


class Pattern(NamedTuple):
    """The segments that a parent starts with, or with ``at_end`` ends with; None stands for any one."""

    segments: tuple[str | None, ...]
    at_end: bool = False

    def fits(self, segments: Sequence[str]) -> bool:
        """Say whether a parent of these segments is one of those meant."""
        count = len(self.segments)
        if count > len(segments):
            return False
        part = segments[len(segments) - count :] if self.at_end else segments[:count]
        return all(wanted is None or wanted == segment for wanted, segment in zip(self.segments, part, strict=True))


class ListParents(NamedTuple):
    """List the distinct parents (a key up to its last ``/``) of the JSON objects under ``prefix`` -> SegmentPage.

    Those that fit all ``patterns``, cut to ``depth`` segments; ``offset`` of them are skipped.
    """

    scope: Scope
    prefix: str
    cursor: str | None = None
    limit: int = 100
    patterns: tuple[Pattern, ...] = ()
    depth: int | None = None
    offset: int = 0


class Batch(NamedTuple):
    """Carry out several operations in order, in one transaction, all or none -> list of their replies."""

    scope: Scope
    operations: tuple[Operation, ...]


class PutChunk(NamedTuple):
    """Transfer: store the bytes of one chunk -> its etag."""

    chunk: Chunk
    data: memoryview


class GetRange(NamedTuple):
    """Transfer: fill ``into`` with a chunk's bytes from ``offset`` on -> None.

    Where they come in pieces, ``progress`` is told on the way how many of them stand there; each attempt begins with 0.
    """

    chunk: Chunk
    offset: int
    into: memoryview
    progress: Callable[[int], object] = lambda _: None


class Sweep(NamedTuple):
    """Maintenance: take away what nobody can reach any more -> SweepReport."""


class Check(NamedTuple):
    """Maintenance: compare the catalog with the stored bytes -> CheckReport."""

    fix: bool = False


class Backup(NamedTuple):
    """Maintenance: write a consistent copy of the store -> None."""

    path: str


class SetTimes(NamedTuple):
    """Maintenance: set when keys were first and last written, as an import knows it -> None.

    ``times`` holds ``(key, created_us, updated_us)``.
    """

    scope: Scope
    times: tuple[tuple[str, int, int], ...]


class Page(NamedTuple):
    """One page of a listing; ``cursor`` is None at the end. Bytes are there if the request asked for them inline."""

    found: list[Found]
    cursor: str | None


class SegmentPage(NamedTuple):
    """One page of names; ``cursor`` is None at the end."""

    segments: list[str]
    cursor: str | None


class Hit(NamedTuple):
    """Something a search found; ``score`` is the cosine similarity, None without a query or without vectors."""

    found: Found
    score: float | None


Write: TypeAlias = CommitWrite | Delete
Operation: TypeAlias = PrepareRead | Write | List | Search | ListParents
"""What may be part of a batch."""

Maintenance: TypeAlias = Sweep | Check | Backup | SetTimes
Message: TypeAlias = (
    PrepareRead
    | PrepareWrite
    | CommitWrite
    | Delete
    | List
    | ListSegments
    | ListParents
    | Search
    | Batch
    | PutChunk
    | GetRange
    | Maintenance
)


def searches(message: Message) -> bool:
    """Say whether a message may look at all that a tenant has."""
    if isinstance(message, Batch):
        return any(map(searches, message.operations))
    return isinstance(message, Search | ListParents)
