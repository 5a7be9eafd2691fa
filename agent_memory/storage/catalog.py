"""What a catalog does: the only place where "current" is decided.

A catalog keeps one row a key: the metadata of its newest version, small values, and for large ones the id of a blob. It
also knows every blob that was ever handed out and not yet forgotten, and the receipts of recent writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from ..errors import ConflictError, IntegrityError
from ..messages import CommitWrite, Delete, Entry, List, Operation, Scope, Write

Clock: TypeAlias = Callable[[], int]
"""Microseconds since 1970."""

STAGED: Final = "staged"
LIVE: Final = "live"
GARBAGE: Final = "garbage"
DEAD: Final = "dead"


class Row(NamedTuple):
    """The current version of a key, as stored: its bytes, or the blob that holds them."""

    entry: Entry
    data: bytes | None
    blob_id: str | None
    chunk_size: int | None


COLUMNS: Final = (
    "key, version, etag, size, sha256, content_type, signature, schema_name, schema_version, "
    "created_us, updated_us, expires_us, provenance, deleted, blob_id, chunk_size, value"
)
"""The columns that make a Row, in the order in which every catalog reads them."""


SECRET_BYTES: Final = 32

_FIRST_US: Final = -62_135_596_800_000_000
_LAST_US: Final = 253_402_300_799_999_999
"""The years 1 to 9999, which a datetime can tell."""

_MAX_VERSION: Final = 2**53
"""What JSON carries exactly everywhere."""


def is_sound(row: Any) -> bool:
    """Say whether what no hash covers, in a row of COLUMNS, is of its type and in its bounds.

    A flipped bit changes a number to any other one, and in SQLite, which keeps it in each row, a column's type.
    """
    _, version, etag, size, sha256, kind, signature, name, number, created, updated, expires, provenance = row[:13]
    return (
        type(version) is type(size) is type(created) is type(updated) is int
        and type(etag) is type(sha256) is type(kind) is str
        and (signature is None or type(signature) is str)
        and (name is None or type(name) is str)
        and (number is None or type(number) is int)
        and (provenance is None or type(provenance) is str)
        and 0 < version <= _MAX_VERSION
        and size >= 0
        and _FIRST_US <= created <= _LAST_US
        and _FIRST_US <= updated <= _LAST_US
        and (expires is None or (type(expires) is int and _FIRST_US <= expires <= _LAST_US))
    )


def is_time(us: Any) -> bool:
    """Say whether something is microseconds since 1970, of a time that a datetime can tell."""
    return type(us) is int and _FIRST_US <= us <= _LAST_US


def is_version(number: Any) -> bool:
    """Say whether something is a version, or the floor of some."""
    return type(number) is int and 0 <= number <= _MAX_VERSION


def check_secret(secret: Any) -> bytes:
    """Return a secret of SECRET_BYTES; raise IntegrityError for anything else, with which nothing may be signed."""
    if type(secret) is not bytes or len(secret) != SECRET_BYTES:
        raise IntegrityError("a secret of the store is damaged in the database")
    return secret


def provenance_text(provenance: Mapping[str, str] | None) -> str | None:
    """Return provenance as a catalog stores it: JSON, or NULL where there is none."""
    return json.dumps(dict(provenance)) if provenance else None


def provenance_of(text: str | None) -> dict[str, str] | None:
    """Return the provenance that stands in a catalog as this text; raise ValueError if it is none."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    if type(found) is not dict or not all(type(one) is str for one in cast("dict[str, object]", found).values()):
        raise ValueError
    return cast("dict[str, str]", found)


class ScoredRow(NamedTuple):
    """What a search found in the catalog."""

    row: Row
    score: float | None


class BlobRow(NamedTuple):
    """What the catalog knows of a blob.

    staged: handed out, not committed. live: some key's current value. garbage: no longer, but readers may still fetch
    it. dead: its objects are deleted, and will be once more in case an upload was late. ``at_us`` is when it became so.
    """

    id: str
    scope: str
    key: str
    size: int
    chunk_size: int | None
    state: str
    at_us: int


class StoredValue(NamedTuple):
    """One row as the consistency check sees it; ``sound`` says whether what no hash covers can be true."""

    scope: str
    key: str
    size: int
    sha256: str
    data: bytes | None
    blob_id: str | None
    chunk_size: int | None
    sound: bool


def stored_value(row: Any) -> StoredValue:
    """Return what the consistency check sees of a row of COLUMNS and its scope, the last of all."""
    sound = is_sound(row)
    try:
        provenance_of(row[12] if sound else None)
    except ValueError:
        sound = False
    return StoredValue(row[-1], row[0], row[3], row[4], row[16], row[14], row[15], sound)


class StoredRow(NamedTuple):
    """A row with all that a copy of a store carries; deletions and expired values too."""

    scope: str
    row: Row
    ttl_us: int | None
    vectors: tuple[bytes, ...]


class ScopeRow(NamedTuple):
    """What is known of a scope besides its rows.

    ``version_floor`` is the highest version of its keys that were deleted and forgotten; ``last_write_us`` is known of
    requests alone.
    """

    scope: str
    version_floor: int
    last_write_us: int | None


class Times(NamedTuple):
    """When a key's value was first and last written, where that is known better elsewhere."""

    key: str
    created_us: int
    updated_us: int


LoadBlob: TypeAlias = Callable[[Row, int], bytes]
"""Gives the first so many bytes of a row whose value is a blob."""

_WRITES: Final = frozenset({CommitWrite, Delete})


def has_writes(operations: Sequence[Operation]) -> bool:
    """Say whether some of the operations write."""
    return not _WRITES.isdisjoint(map(type, operations))


def not_older(row: StoredRow) -> ConflictError:
    """Return the error for a row that cannot be taken over."""
    return ConflictError(
        f"{row.scope} {row.row.entry.key} has a later version in the target, where an application wrote it",
        code="not_older",
    )


class Catalog(Protocol):
    """Thread-safe. Raises UnavailableError when a call may be repeated, IntegrityError when the database is damaged."""

    @property
    def clock(self) -> Clock:
        """What tells the time of versions and expiry: the same for all processes on this catalog."""
        ...

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine: a row is read in microseconds, and one writer writes at a time."""
        ...

    def read(self, scope: Scope, key: str) -> Row | None:
        """Return the current version; None for a key that is absent, deleted or expired. Never waits for a writer."""
        ...

    def list(self, request: List) -> list[Row]:
        """Return live rows after the key ``cursor`` (before it, if reversed) in byte order of the key.

        At most ``limit`` rows, fewer when their values exceed BATCH_INLINE_LIMIT bytes; values only if the request
        has a ``max_inline_size``.
        """
        ...

    def list_segments(self, scope: Scope, prefix: str, *, after: str | None, limit: int) -> list[str]:
        """Return the distinct segments that follow ``prefix`` and end in ``/``, in byte order, live keys only."""
        ...

    def write(self, write: Write) -> Entry | None:
        """Carry out a single write: what ``apply`` does, without what several operations take."""
        ...

    def apply(self, operations: Sequence[Operation], load: LoadBlob) -> list[Any]:
        """Carry out operations in order in one transaction, durably, all or none.

        A write whose receipt exists gives the first result again. Raises ConflictError, whose ``found`` is the current
        Row, when a condition fails; ``write_id_reused`` and ``blob_gone`` are its codes for a write id or a blob that
        cannot be used. Writes give an Entry (None for a delete of nothing), reads a Row or None, lists rows, searches
        ScoredRows, ListParents names. A search calls ``load`` for large values that its filter has to look into.
        """
        ...

    def touch(self, scope: Scope, keys: Sequence[str]) -> None:
        """Restart the time to live of those keys that have one and are not expired."""
        ...

    def stage(self, blobs: Sequence[BlobRow]) -> None:
        """Remember blobs before anybody may upload to them."""
        ...

    def blob(self, blob_id: str) -> BlobRow | None:
        """Return what is known of a blob, None if nothing is."""
        ...

    def renew(self, blob_id: str) -> bool:
        """Restart the life of a staged blob; False if it is no longer staged."""
        ...

    def claim_blobs(self, *, staged_before: int, garbage_before: int, limit: int) -> list[BlobRow]:
        """Mark blobs that nobody may use any more as dead and return them; from then on they cannot be committed."""
        ...

    def dead_blobs(self, *, before: int, limit: int) -> list[BlobRow]:
        """Return blobs that were marked as dead before then."""
        ...

    def forget_blobs(self, ids: Sequence[str]) -> None:
        """Forget those of these blobs that are dead."""
        ...

    def expire(self, *, limit: int) -> int:
        """Turn expired rows into tombstones; return how many."""
        ...

    def drop_tombstones(self, *, before: int, limit: int) -> int:
        """Forget old tombstones, having raised their scopes' version floors; return how many."""
        ...

    def drop_receipts(self, *, before: int, limit: int) -> int:
        """Forget receipts of writes before then; some of them may stay for another hour."""
        ...

    def drop_requests(self, *, before: int, limit: int) -> int:
        """Forget the state of requests that were last written before then; return how many keys and requests went."""
        ...

    def values(self) -> Iterator[StoredValue]:
        """Iterate over every live row, inline values included."""
        ...

    def blobs(self) -> Iterator[BlobRow]:
        """Iterate over every blob that is not forgotten, in the order of their ids, the oldest first."""
        ...

    def count(self) -> int:
        """Return how many rows there are, deletions included."""
        ...

    def stored(self, *, after: tuple[str, str], limit: int) -> list[StoredRow]:
        """Return rows after ``(scope, key)``, in the byte order of both."""
        ...

    def stored_at(self, places: Collection[tuple[str, str]]) -> list[StoredRow]:
        """Return the rows that there are of these ``(scope, key)``, deletions too, in no order."""
        ...

    def take(self, rows: Sequence[StoredRow]) -> None:
        """Take over rows as they stand, in one transaction; the blobs that they name must be known.

        Raises ConflictError, having changed nothing, where a row would take the place of a later version or of another
        one with its number. Of one version the row may differ: what has expired stays, or is swept.
        """
        ...

    def scopes(self, *, after: str, limit: int) -> list[ScopeRow]:
        """Return what is known of the scopes after this one, in byte order."""
        ...

    def scopes_at(self, names: Collection[str]) -> list[ScopeRow]:
        """Return what is known of these scopes, in no order."""
        ...

    def take_scopes(self, rows: Sequence[ScopeRow]) -> None:
        """Take over what is known of scopes; a floor is only ever raised."""
        ...

    def set_times(self, scope: Scope, times: Sequence[Times]) -> None:
        """Set the times of keys that are there."""
        ...

    def mend_blob(self, blob: BlobRow) -> None:
        """Set what the catalog knows of a blob, as the consistency check found it."""
        ...

    def secret(self, name: str) -> bytes:
        """Return a random secret of 32 bytes that all processes on this catalog share; the first call makes it."""
        ...

    def is_sound(self) -> bool:
        """Say whether the database finds its own structure whole; in one that is not, keys may seem absent."""
        ...

    def ping(self) -> None:
        """Raise an AgentMemoryError if the catalog cannot serve, writes included. Changes nothing, and soon answers."""
        ...

    def close(self) -> None: ...
