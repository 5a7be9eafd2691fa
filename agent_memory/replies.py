"""What the operations of one request bring back: values that travel in the reply, and blobs that name the others."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from .errors import ConflictError, IntegrityError, LimitExceededError
from .executors import Executor
from .ids import uuid7
from .messages import (
    BATCH_INLINE_LIMIT,
    INLINE_LIMIT,
    Found,
    Hit,
    List,
    ListParents,
    Operation,
    Page,
    PrepareRead,
    Scope,
    Search,
    SegmentPage,
)
from .storage.blobs import BlobStore, blob_of, chunk_sizes
from .storage.catalog import GARBAGE, BlobRow, Catalog, LoadBlob, Row

_PUTS_AT_ONCE: Final = 16
# Each is a URL of some hundred bytes: more would be an answer that no client of ours takes.
_MOST_CHUNKS: Final = 100_000


class _Copy(NamedTuple):
    """An inline value on its way to the blob store, for a reader who fetches it by a URL."""

    blob_id: str
    key: str
    data: bytes


class Replies:
    """Makes replies one after the other from what the catalog found; they share the room for values.

    ``finish`` has to follow the last one.
    """

    def __init__(self, scope: Scope, catalog: Catalog, blobs: BlobStore, load: LoadBlob) -> None:
        self._scope = scope
        self._catalog = catalog
        self._blobs = blobs
        self._load = load
        self._room = BATCH_INLINE_LIMIT
        self._chunks = _MOST_CHUNKS
        self._copies: list[_Copy] = []
        self._in_use: list[str] = []

    def to(self, request: Operation, result: Any) -> Any:
        """Return the reply to an operation; ``result`` is what ``Catalog.apply`` gives for it."""
        match request:
            case PrepareRead():
                if result is None:
                    return None
                if request.version is not None and result.entry.version != request.version:
                    raise ConflictError("that version is no longer there", code="version_gone")
                return self._read(request, result)
            case List():
                return self._page(request, result)
            case ListParents():
                return segment_page(result, request.limit)
            case Search():
                return [Hit(self._read(request, row), score) for row, score in result]
            case _:
                return result

    def finish(self) -> None:
        """Put the copies where their URLs lead, and restart the times to live of what was read."""
        if self._copies:
            self._put_copies()
        if self._in_use:
            self._catalog.touch(self._scope, self._in_use)

    def _page(self, request: List, rows: list[Row]) -> Page:
        """Return a page; it ends where there is room for no more."""
        size = sum(len(row.data or b"") for row in rows)
        more = len(rows) > request.limit or size > BATCH_INLINE_LIMIT
        rows = rows[: request.limit]
        if request.max_inline_size is None:
            return Page([Found(row.entry, None, None) for row in rows], rows[-1].entry.key if more else None)
        cut = more or size + INLINE_LIMIT > BATCH_INLINE_LIMIT
        found: list[Found] = []
        for row in rows:
            if found and (len(row.data or b"") > self._room or _chunks(row) > self._chunks):
                cut = True
                break
            found.append(self._found(row, request.max_inline_size))
        return Page(found, found[-1].entry.key if found and cut else None)

    def _read(self, request: PrepareRead | Search, row: Row) -> Found:
        # Only values that can expire pay for a write.
        if request.refresh_ttl and row.entry.expires_us is not None:
            self._in_use.append(row.entry.key)
        return self._found(row, request.max_inline_size)

    def _found(self, row: Row, max_inline_size: int) -> Found:
        """Return a value's bytes if they are small enough and there is room, else where they can be fetched."""
        entry, data, blob_id, chunk_size = row
        if data is None:
            if blob_id is None:
                raise IntegrityError("the catalog has a value without bytes")
            if entry.size > min(max_inline_size, self._room, INLINE_LIMIT):
                self._chunks -= _chunks(row)
                if self._chunks < 0:
                    raise LimitExceededError(f"one answer names at most {_MOST_CHUNKS} chunks; ask for less at once")
                return Found(entry, None, blob_of(blob_id, entry.size, chunk_size))
            data = self._load(row, entry.size)
        if len(data) <= max_inline_size and len(data) <= self._room:
            self._room -= len(data)
            return Found(entry, data, None)
        copy = _Copy(uuid7(), entry.key, data)
        self._copies.append(copy)
        return Found(entry, None, blob_of(copy.blob_id, entry.size, None))

    def _put_copies(self) -> None:
        """Put inline values where URLs can name them, pinned while their keys move on; garbage from the start."""
        now = self._catalog.clock()
        self._catalog.stage(
            [BlobRow(one.blob_id, self._scope.path, one.key, len(one.data), None, GARBAGE, now) for one in self._copies]
        )
        if len(self._copies) == 1:
            self._put(self._copies[0])
            return
        with Executor(min(_PUTS_AT_ONCE, len(self._copies)), "agent-memory-copy") as pool:
            list(pool.map(self._put, self._copies))

    def _put(self, copy: _Copy) -> None:
        self._blobs.put(copy.blob_id, 0, memoryview(copy.data))


def _chunks(row: Row) -> int:
    return len(chunk_sizes(row.entry.size, row.chunk_size))


def segment_page(names: list[str], limit: int) -> SegmentPage:
    """Return a page from one name more than it holds, which only says that there are more."""
    return SegmentPage(names[:limit], names[limit - 1] if len(names) > limit else None)
