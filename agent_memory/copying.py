"""Moving a store: every version that is current, with its etag, times, provenance, time to live, vectors and bytes.

Rows are taken over as they stand, never written anew, so a condition that held before the move holds after it. What is
there already is left alone: a copy that was interrupted goes on where it stopped. Where an application has written on
what was copied, its versions are later than the source's, and nothing takes their place; what it deleted stays deleted
when the tombstone is swept, by the scope's version floor. Of what both sides wrote, the later version stays, and of one
version the later end of its time to live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

from .errors import ConflictError, IntegrityError, UnavailableError
from .messages import Chunk
from .service import StateService
from .storage.blobs import BlobObject, blob_of, chunk_name, chunk_sizes
from .storage.catalog import LIVE, STAGED, BlobRow, Catalog, ScopeRow, StoredRow
from .sweeping import REQUEST_SECONDS

_PAGE: Final = 200
_STRAYS: Final = 10


class CopyReport(NamedTuple):
    """What a copy did: keys it looked at (deletions included), keys and bytes it took over, keys it then compared.

    ``strays`` are places of the target, ten at most, that the source has not, but may have deleted and forgotten.
    """

    keys: int
    copied: int
    bytes: int
    verified: int
    strays: tuple[str, ...]


def _tell_nobody(_done: int, _all: int | None) -> None:
    pass


def copy(
    source: StateService,
    target: StateService,
    *,
    progress: Callable[[int, int | None], object] = _tell_nobody,
) -> CopyReport:
    """Copy everything from one store to another, then compare all of it.

    Nobody may write to the source meanwhile. ``progress`` is told how many keys are done, and of how many, if
    that can be counted in time; it begins again when these are compared.

    Raises:
        ConflictError: the target has a later version of a key, or deleted it; the copy stops there.
        IntegrityError: what arrived is not what left; the places are named.
    """
    try:
        total = source.catalog.count()
    except UnavailableError:
        total = None
    copied = size = done = 0
    for scopes in _scopes(source.catalog):
        # When requests were last written, ahead of their rows: a sweep of the target takes those that seem long over.
        target.catalog.take_scopes([one._replace(version_floor=0) for one in scopes])
    for page in _pages(source.catalog):
        rows = [row for row, _, same in _compared(source.catalog, target.catalog, page) if not same]
        for row in rows:
            if row.row.blob_id is not None:
                _copy_bytes(source, target, row, row.row.blob_id)
                # At once: a sweep of the target takes what waits too long for its row.
                target.catalog.take([row])
        target.catalog.take([row for row in rows if row.row.blob_id is None])
        size += sum(row.row.entry.size for row in rows)
        copied += len(rows)
        done += len(page)
        progress(done, total)
    for scopes in _scopes(source.catalog):
        target.catalog.take_scopes(scopes)
    strays = tuple(islice(_strays(source.catalog, target.catalog), _STRAYS))
    return CopyReport(done, copied, size, verify(source, target, total, progress), strays)


def verify(
    source: StateService,
    target: StateService,
    total: int | None = None,
    progress: Callable[[int, int | None], object] = _tell_nobody,
) -> int:
    """Compare every key of the source, and its bytes, with the target; return how many there were.

    Where large values were damaged in the target, or are gone, the source's bytes take their place.
    """
    count = 0
    for page in _pages(source.catalog):
        for row, other, same in _compared(source.catalog, target.catalog, page):
            if not same:
                raise IntegrityError(
                    f"{row.scope} {row.row.entry.key} is not in the copy as it is in the source: "
                    "copy again while nobody writes to either"
                )
            if other is not None and not _is_whole(target, other):
                _bring_again(source, target, other)
            count += 1
        progress(count, total)
    return count


def _strays(source: Catalog, target: Catalog) -> Iterator[str]:
    """Give live places of the target that an earlier copy may have brought before the source deleted and forgot them.

    A floor says that there was such a version, and not of which key: they may be the target's own as well.
    """
    for scope, floor, _ in chain.from_iterable(_scopes(source)):
        for page in _pages(target, (scope, "")) if floor else ():
            now = target.clock()
            own = {
                _place(row)
                for row in page
                if row.scope == scope
                and row.row.entry.version <= floor
                and not (row.row.entry.deleted or _has_expired(row, now))
            }
            known = {_place(row) for row in source.stored_at(own)}
            yield from sorted(f"{scope} {key}" for _, key in own - known)
            if page[-1].scope != scope:
                break


def _scopes(catalog: Catalog) -> Iterator[list[ScopeRow]]:
    after = ""
    while scopes := catalog.scopes(after=after, limit=_PAGE):
        yield scopes
        after = scopes[-1].scope


def _pages(catalog: Catalog, place: tuple[str, str] = ("", "")) -> Iterator[list[StoredRow]]:
    while page := catalog.stored(after=place, limit=_PAGE):
        yield page
        place = _place(page[-1])


def _compared(
    source: Catalog, target: Catalog, page: list[StoredRow]
) -> Iterator[tuple[StoredRow, StoredRow | None, bool]]:
    """Give each row with the one that is in its place, and whether that is the same, or went by itself.

    Raises ConflictError where an application deleted it.
    """
    found = {_place(row): row for row in target.stored_at([_place(row) for row in page])}
    missing = {row.scope for row in page if _place(row) not in found}
    # Looked at later than the rows: a sweep that takes a tombstone raises the floor.
    floors = {one.scope: one.version_floor for one in target.scopes_at(missing)}
    origins = {one.scope: one for one in source.scopes_at(missing)}
    now = target.clock()
    for row in page:
        other = found.get(_place(row))
        if other is not None:
            row = _with_later_end(row, other)
            yield row, other, _facts(other) == _facts(row) or (_has_expired(row, now) and _is_tombstone_of(other, row))
        else:
            forgotten = _is_swept(origins.get(row.scope), now) or _is_forgotten(row, floors.get(row.scope, 0), now)
            yield row, None, forgotten


def _place(row: StoredRow) -> tuple[str, str]:
    return row.scope, row.row.entry.key


def _has_expired(row: StoredRow, now: int) -> bool:
    expires_us = row.row.entry.expires_us
    return expires_us is not None and expires_us <= now


def _is_tombstone_of(row: StoredRow, other: StoredRow) -> bool:
    """Say whether a row is what a sweep makes of another one that has expired."""
    left, entry = row.row.entry, other.row.entry
    return left.deleted and (left.version, left.etag) == (entry.version, entry.etag)


def _with_later_end(row: StoredRow, other: StoredRow) -> StoredRow:
    """Return a row that ends no earlier than the same version of it elsewhere: a read there began its time anew."""
    entry, there = row.row.entry, other.row.entry
    if (entry.version, entry.etag) != (there.version, there.etag) or entry.expires_us is None:
        return row
    later = entry._replace(expires_us=max(entry.expires_us, there.expires_us or 0))
    return row._replace(row=row.row._replace(entry=later))


def _is_swept(scope: ScopeRow | None, now: int) -> bool:
    """Say whether a sweep takes all of a scope: the state of a request that is long over."""
    last_write_us = None if scope is None else scope.last_write_us
    return last_write_us is not None and last_write_us < now - REQUEST_SECONDS * 1_000_000


def _is_forgotten(row: StoredRow, floor: int, now: int) -> bool:
    entry = row.row.entry
    if entry.version > floor:
        return False
    if not entry.deleted and not _has_expired(row, now):
        raise ConflictError(
            f"{row.scope} {entry.key} was deleted in the target; only an empty one takes it again", code="not_older"
        )
    return True


def _facts(stored: StoredRow) -> tuple[object, ...]:
    row = stored.row
    return (row.entry, row.data, row.blob_id, row.chunk_size, stored.ttl_us, stored.vectors)


def _copy_bytes(source: StateService, target: StateService, stored: StoredRow, blob_id: str) -> None:
    """Copy the chunks of a large value, staged until its row is taken over."""
    known = target.catalog.blob(blob_id)
    if known is not None and known.state == LIVE:
        # An earlier copy brought them, and only the row has changed. A sweep would take them if they were staged again.
        return
    key, size, chunk_size = stored.row.entry.key, stored.row.entry.size, stored.row.chunk_size
    target.catalog.mend_blob(BlobRow(blob_id, stored.scope, key, size, chunk_size, STAGED, target.catalog.clock()))
    for chunk in blob_of(blob_id, size, chunk_size).chunks:
        try:
            _copy_chunk(source, target, chunk)
        except IntegrityError:
            raise _damaged(stored) from None
        if not target.catalog.renew(blob_id):
            raise UnavailableError(f"{stored.scope} {key} was swept in the target while it was copied; copy again")


def _bring_again(source: StateService, target: StateService, stored: StoredRow) -> None:
    row = stored.row
    # What is damaged in the source takes the place of nothing in the target. A small value is the same in both.
    if row.blob_id is None or not _is_whole(source, stored):
        raise _damaged(stored)
    for chunk in blob_of(row.blob_id, row.entry.size, row.chunk_size).chunks:
        _copy_chunk(source, target, chunk)
    if not _is_whole(target, stored):
        raise IntegrityError(f"{stored.scope} {row.entry.key} arrived with other bytes than it left with")


def _damaged(stored: StoredRow) -> IntegrityError:
    place = f"{stored.scope} {stored.row.entry.key}"
    return IntegrityError(f"{place} is damaged or missing in the source: write or delete it there, then copy again")


def _copy_chunk(source: StateService, target: StateService, chunk: Chunk) -> None:
    blob_id, number = chunk_name(chunk)
    data = memoryview(bytearray(chunk.size))
    source.blobs.read_into(blob_id, number, 0, data)
    try:
        target.blobs.put(blob_id, number, data)
    except ConflictError:
        # Damaged since an earlier copy brought it.
        target.blobs.discard(BlobObject(blob_id, number, chunk.size, 0.0))
        target.blobs.put(blob_id, number, data)


def _is_whole(service: StateService, stored: StoredRow) -> bool:
    row = stored.row
    if row.entry.deleted:
        return True
    if row.blob_id is None:
        return hashlib.sha256(row.data or b"").hexdigest() == row.entry.sha256
    digest = service.blobs.digest(row.blob_id, chunk_sizes(row.entry.size, row.chunk_size))
    return digest is not None and digest[0] == row.entry.sha256
