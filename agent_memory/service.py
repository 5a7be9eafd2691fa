"""The rules: one method per message, the same for an embedded store and behind a server.

Synchronous and thread-safe. It knows no HTTP and no SQL: a catalog decides what is current, a blob store keeps what is
too large for the catalog.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

from .checks import check_limit, check_scope, check_search, check_write, checked_list, checked_parents
from .errors import AgentMemoryError, ConflictError, InvalidRequestError, LimitExceededError, ProtocolError
from .ids import uuid7
from .keys import check_key, check_prefix
from .maintenance import CheckReport, backup, check
from .messages import (
    BATCH_INLINE_LIMIT,
    BATCH_OPERATIONS,
    INLINE_LIMIT,
    Backup,
    Batch,
    Blob,
    Check,
    Chunk,
    CommitWrite,
    Delete,
    Entry,
    Found,
    GetRange,
    Hit,
    List,
    ListParents,
    ListSegments,
    Message,
    Page,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
    Search,
    SegmentPage,
    SetTimes,
    Sweep,
    Write,
)
from .storage.blobs import GRACE_SECONDS, BlobStore, FileBlobs, chunk_sizes
from .storage.catalog import GARBAGE, STAGED, BlobRow, Catalog, Operation, Row, Times, has_writes
from .storage.sqlite import SqliteCatalog

MAX_VALUE_BYTES: Final = 5 * 1024**3
"""The largest object that one PUT can make in S3."""

MIN_CHUNK_BYTES: Final = 64 * 1024
MAX_CHUNKS: Final = 10_000

DEAD_SECONDS: Final = 86_400
RECEIPT_SECONDS: Final = 3_600
TOMBSTONE_SECONDS: Final = 86_400
REQUEST_SECONDS: Final = 7 * 86_400

_Listing = TypeVar("_Listing", List, ListParents)

_SWEEP_EVERY_SECONDS: Final = 60.0
_SMALL_SWEEP: Final = 100
_PUTS_AT_ONCE: Final = 16
_BLOB_URI: Final = "blob:"


class SweepReport(NamedTuple):
    """What a sweep took away, in numbers of things."""

    blobs: int = 0
    expired: int = 0
    tombstones: int = 0
    receipts: int = 0
    request_keys: int = 0


class _Copy(NamedTuple):
    """An inline value on its way to the blob store, for a reader who fetches it by a URL."""

    blob_id: str
    scope: Scope
    entry: Entry
    data: bytes


def blob_of(blob_id: str, size: int, chunk_size: int | None, etags: Sequence[str | None] | None = None) -> Blob:
    """Return a blob whose chunks are named for the blob store; a server puts URLs in the names' place."""
    sizes = chunk_sizes(size, chunk_size)
    marks = etags or [None] * len(sizes)
    return Blob(blob_id, tuple(Chunk(f"{_BLOB_URI}{blob_id}/{n}", one, marks[n]) for n, one in enumerate(sizes)))


def chunk_name(chunk: Chunk) -> tuple[str, int]:
    """Return the blob id and the number of a chunk that ``blob_of`` named."""
    blob_id, _, index = chunk.uri.removeprefix(_BLOB_URI).rpartition("/")
    return blob_id, int(index)


class StateService:
    """Answers messages from a catalog and a blob store.

    Args:
        catalog: decides what is current.
        blobs: keeps values above INLINE_LIMIT bytes.
        key_file: the signing key of a store in files, for its backup.
        sweep_after_writes: sweep a little after a write, at most once a minute; for stores that no server tends.
    """

    def __init__(
        self, catalog: Catalog, blobs: BlobStore, *, key_file: Path | None = None, sweep_after_writes: bool = False
    ) -> None:
        self.catalog = catalog
        self.blobs = blobs
        self._key_file = key_file
        self._next_sweep = time.monotonic() + _SWEEP_EVERY_SECONDS if sweep_after_writes else math.inf
        self._sweeping = threading.Lock()
        self._methods: Mapping[type, Callable[[Any], Any]] = {
            PrepareRead: self.prepare_read,
            PrepareWrite: self.prepare_write,
            CommitWrite: self.write,
            Delete: self.write,
            List: self.list,
            ListParents: self.list_parents,
            Search: self.search,
            ListSegments: self.list_segments,
            Batch: self.batch,
            PutChunk: self.put_chunk,
            GetRange: self.get_range,
            Sweep: lambda _: self.sweep(),
            Check: self.check,
            Backup: self.backup,
            SetTimes: self.set_times,
        }

    def handle(self, message: Message) -> Any:
        """Answer one message."""
        return self._methods[type(message)](message)

    # -- reads -------------------------------------------------------------------------------------------------------

    def prepare_read(self, request: PrepareRead) -> Found | None:
        row = self.catalog.read(request.scope, check_key(request.key))
        if row is None:
            return None
        _check_version(request, row)
        self._refresh(request.scope, [row.entry] if request.refresh_ttl else [])
        copies: list[_Copy] = []
        found = self._found(request, row, request.max_inline_size, copies)
        self._put_copies(copies)
        return found

    def read_at_once(self, request: PrepareRead) -> tuple[bool, Found | None]:
        """Answer a read if a row of a catalog in a file is all it takes -> (True, answer); else (False, None)."""
        if not self.catalog.is_file:
            # A round trip may take any time: an event loop must not wait for it.
            return False, None
        row = self.catalog.read(request.scope, check_key(request.key))
        if row is None:
            return True, None
        simple = row.data is not None and len(row.data) <= request.max_inline_size and request.version is None
        if not simple or (request.refresh_ttl and row.entry.expires_us is not None):
            return False, None
        return True, Found(row.entry, row.data, None)

    def takes_turns(self, message: Message) -> bool:
        """Say whether a message is a quick write to a file, which has one writer at a time."""
        if not self.catalog.is_file:
            return False
        operations = cast("Sequence[Operation]", message.operations if isinstance(message, Batch) else (message,))
        # An uploaded blob is read to its end before it is committed.
        return has_writes(operations) and not any(
            isinstance(one, CommitWrite) and one.blob is not None for one in operations
        )

    def list(self, request: List) -> Page:
        rows = self.catalog.list(_one_more(checked_list(request)))
        copies: list[_Copy] = []
        page, _ = self._page(request, rows, BATCH_INLINE_LIMIT, copies)
        self._put_copies(copies)
        return page

    def list_segments(self, request: ListSegments) -> SegmentPage:
        check_limit(request.limit)
        check_prefix(request.prefix)
        check_prefix(request.cursor or "")
        names = self.catalog.list_segments(request.scope, request.prefix, after=request.cursor, limit=request.limit + 1)
        return _segment_page(names, request.limit)

    def list_parents(self, request: ListParents) -> SegmentPage:
        return self._apply([request])[0]

    def search(self, request: Search) -> list[Hit]:
        return self._apply([request])[0]

    def _page(self, request: List, rows: list[Row], room: int, copies: list[_Copy]) -> tuple[Page, int]:
        """Return a page and how many bytes of values it carries; it ends where there is room for no more."""
        size = sum(len(row.data or b"") for row in rows)
        more = len(rows) > request.limit or size > BATCH_INLINE_LIMIT
        rows = rows[: request.limit]
        if request.max_inline_size is None:
            return Page([Found(row.entry, None, None) for row in rows], rows[-1].entry.key if more else None), 0
        cut = more or size + INLINE_LIMIT > BATCH_INLINE_LIMIT
        found: list[Found] = []
        used = 0
        for row in rows:
            if found and used + len(row.data or b"") > room:
                cut = True
                break
            found.append(self._found(request, row, min(request.max_inline_size, room - used), copies))
            used += len(found[-1].data or b"")
        return Page(found, found[-1].entry.key if found and cut else None), used

    def _found(
        self, request: PrepareRead | List | Search, row: Row, max_inline_size: int, copies: list[_Copy]
    ) -> Found:
        """Return what was found; adds to ``copies`` an inline value that is to be fetched by a URL."""
        entry = row.entry
        if row.data is not None:
            if len(row.data) <= max_inline_size:
                return Found(entry, row.data, None)
            copy = _Copy(uuid7(), request.scope, entry, row.data)
            copies.append(copy)
            return Found(entry, None, blob_of(copy.blob_id, entry.size, None))
        if row.blob_id is None:
            raise ProtocolError("the catalog has a value without bytes")
        blob = blob_of(row.blob_id, entry.size, row.chunk_size)
        if entry.size <= min(max_inline_size, INLINE_LIMIT):
            return Found(entry, self._load(row), None)
        return Found(entry, None, blob)

    def _put_copies(self, copies: Sequence[_Copy]) -> None:
        """Put inline values where URLs can name them, pinned while their keys move on; garbage from the start."""
        if not copies:
            return
        now = self.catalog.clock()
        self.catalog.stage(
            [BlobRow(one.blob_id, one.scope.path, one.entry.key, one.entry.size, None, GARBAGE, now) for one in copies]
        )
        if len(copies) == 1:
            self._put_copy(copies[0])
            return
        with ThreadPoolExecutor(min(_PUTS_AT_ONCE, len(copies)), "agent-memory-copy") as pool:
            list(pool.map(self._put_copy, copies))

    def _put_copy(self, copy: _Copy) -> None:
        self.blobs.put(copy.blob_id, 0, memoryview(copy.data))

    # -- writes ------------------------------------------------------------------------------------------------------

    def prepare_write(self, request: PrepareWrite) -> Blob:
        check_key(request.key)
        check_scope(request.scope.request_id)
        size, chunk_size = request.size, request.chunk_size
        if size < 0 or (chunk_size is not None and chunk_size < MIN_CHUNK_BYTES):
            raise InvalidRequestError(f"size must be 0 or more bytes, chunk_size at least {MIN_CHUNK_BYTES}")
        if size > MAX_VALUE_BYTES:
            raise LimitExceededError(f"a value may have at most {MAX_VALUE_BYTES} bytes")
        if chunk_size is not None and size > chunk_size * MAX_CHUNKS:
            raise LimitExceededError(f"a value may have at most {MAX_CHUNKS} chunks")
        if request.write_id is not None:
            self._renew(request)
            return blob_of(request.write_id, size, chunk_size)
        blob_id = uuid7()
        self.catalog.stage(
            [BlobRow(blob_id, request.scope.path, request.key, size, chunk_size, STAGED, self.catalog.clock())]
        )
        return blob_of(blob_id, size, chunk_size)

    def _renew(self, request: PrepareWrite) -> None:
        known = self.catalog.blob(request.write_id or "")
        wanted = (request.scope.path, request.key, request.size, request.chunk_size)
        if known is None or (known.scope, known.key, known.size, known.chunk_size) != wanted:
            raise ConflictError("the prepared write has expired; prepare it again", code="blob_gone")
        if not self.catalog.renew(known.id):
            raise ConflictError("the prepared write has expired; prepare it again", code="blob_gone")

    def write(self, request: Write) -> Entry | None:
        """Commit a write -> Entry, or carry out a deletion -> Entry | None."""
        try:
            result = self.catalog.write(self._ready_write(request))
        except ConflictError as error:
            raise self._explained(error, [request]) from None
        self._sweep_after_write()
        return result

    def batch(self, request: Batch) -> list[Any]:
        if not 0 < len(request.operations) <= BATCH_OPERATIONS:
            raise LimitExceededError(f"a batch has 1 to {BATCH_OPERATIONS} operations, not {len(request.operations)}")
        return self._apply(request.operations)

    def _apply(self, requests: Sequence[Operation]) -> list[Any]:
        if has_writes(requests) and any(isinstance(one, PrepareRead) and one.version is not None for one in requests):
            # It is compared after the writes are done.
            raise InvalidRequestError("a read that insists on a version does not go with writes in one batch")
        operations = [self._ready(request) for request in requests]
        try:
            results = self.catalog.apply(operations, self._load)
        except ConflictError as error:
            if error.found is not None and len(requests) > 1:
                # What stood there may have been written by the batch itself, and undone with it.
                error.found = self.catalog.read(requests[0].scope, error.found.entry.key)
            raise self._explained(error, requests) from None
        room = BATCH_INLINE_LIMIT
        replies: list[Any] = []
        refreshed: list[Entry] = []
        copies: list[_Copy] = []
        for request, result in zip(requests, results, strict=True):
            reply, size = self._reply(request, result, room, refreshed, copies)
            room -= size
            replies.append(reply)
        self._put_copies(copies)
        if refreshed:
            self._refresh(requests[0].scope, refreshed)
        if has_writes(requests):
            self._sweep_after_write()
        return replies

    def _reply(
        self, request: Operation, result: Any, room: int, refreshed: list[Entry], copies: list[_Copy]
    ) -> tuple[Any, int]:
        """Return the answer to one operation, and how many bytes of values it carries; at most ``room`` of them.

        Adds to ``refreshed`` the entries whose time to live the operation restarts, to ``copies`` what had no room.
        """
        match request:
            case PrepareRead():
                if result is None:
                    return None, 0
                entry, data, _, _ = result
                if request.refresh_ttl and entry.expires_us is not None:
                    refreshed.append(entry)
                if request.version is not None:
                    _check_version(request, result)
                if data is not None and len(data) <= room and len(data) <= request.max_inline_size:
                    return Found(entry, data, None), len(data)
                found = self._found(request, result, min(request.max_inline_size, room), copies)
                return found, len(found.data or b"")
            case List():
                return self._page(request, result, room, copies)
            case ListParents():
                return _segment_page(result, request.limit), 0
            case Search():
                hits: list[Hit] = []
                used = 0
                for row, score in result:
                    found = self._found(request, row, min(request.max_inline_size, room - used), copies)
                    hits.append(Hit(found, score))
                    used += len(hits[-1].found.data or b"")
                if request.refresh_ttl:
                    refreshed += [hit.found.entry for hit in hits]
                return hits, used
            case _:
                return result, 0

    def _refresh(self, scope: Scope, entries: Sequence[Entry]) -> None:
        # Only values that can expire pay for a write.
        keys = [entry.key for entry in entries if entry.expires_us is not None]
        if keys:
            self.catalog.touch(scope, keys)

    def _load(self, row: Row) -> bytes:
        data = bytearray(row.entry.size)
        view, offset = memoryview(data), 0
        for chunk in blob_of(row.blob_id or "", row.entry.size, row.chunk_size).chunks:
            self.blobs.read_into(*chunk_name(chunk), 0, view[offset : offset + chunk.size])
            offset += chunk.size
        return bytes(data)

    def _ready(self, request: Operation) -> Operation:
        """Check a request and complete what the client may leave to the store."""
        match request:
            case PrepareRead():
                check_key(request.key)
                return request
            case CommitWrite() | Delete():
                return self._ready_write(request)
            case List():
                return _one_more(checked_list(request))
            case ListParents():
                return _one_more(checked_parents(request))
            case Search():
                check_search(request)
                return request

    def _ready_write(self, request: Write) -> Write:
        check_key(request.key)
        check_write(request)
        if isinstance(request, Delete):
            return request
        return self._ready_blob(request) if request.data is None else self._ready_inline(request, request.data)

    def _ready_inline(self, request: CommitWrite, data: bytes) -> CommitWrite:
        if len(data) > INLINE_LIMIT:
            raise LimitExceededError(f"a value above {INLINE_LIMIT} bytes is prepared and uploaded, not sent inline")
        sha256 = hashlib.sha256(data).hexdigest()
        if request.sha256 is None:
            return request._replace(sha256=sha256)
        if request.sha256 != sha256:
            raise InvalidRequestError("the value does not have the sha256 that was sent with it")
        return request

    def _ready_blob(self, request: CommitWrite) -> CommitWrite:
        if request.blob is None:
            raise InvalidRequestError("a write needs inline data or a prepared blob")
        known = self.catalog.blob(request.blob.id)
        if known is None or (known.scope, known.key) != (request.scope.path, request.key):
            raise ConflictError("the prepared write has expired; prepare it again", code="blob_gone")
        if known.state != STAGED and request.sha256 is not None:
            # A repeated commit: the receipt answers it, its bytes may be gone by now.
            return request._replace(blob=blob_of(known.id, known.size, known.chunk_size))
        sizes = chunk_sizes(known.size, known.chunk_size)
        if [chunk.size for chunk in request.blob.chunks] != sizes:
            raise InvalidRequestError("the chunks to commit are not the ones that were prepared")
        digest = self.blobs.digest(known.id, sizes, request.sha256)
        if digest is None:
            raise ConflictError(
                "not every chunk was uploaded with the size it was prepared for", code="blob_incomplete"
            )
        sha256, etags = digest
        for chunk, etag in zip(request.blob.chunks, etags, strict=True):
            if chunk.etag is not None and chunk.etag.strip('"') != etag:
                raise InvalidRequestError("a chunk's etag is not the one of the bytes that were uploaded")
        if request.sha256 is not None and request.sha256 != sha256:
            raise InvalidRequestError("the uploaded bytes do not have the sha256 that the commit names")
        return request._replace(sha256=sha256, blob=blob_of(known.id, known.size, known.chunk_size))

    def _explained(self, error: ConflictError, requests: Sequence[Any]) -> ConflictError:
        """Put the current value where the writer asked for it."""
        row: Row | None = error.found
        if row is None:
            return error
        wanted = max(
            (r.max_inline_size for r in requests if isinstance(r, CommitWrite | Delete) and r.key == row.entry.key),
            default=0,
        )
        error.found = Found(row.entry, row.data if len(row.data or b"") <= wanted else None, None)
        return error

    # -- transfer ----------------------------------------------------------------------------------------------------

    def put_chunk(self, request: PutChunk) -> str:
        return self.blobs.put(*chunk_name(request.chunk), request.data)

    def get_range(self, request: GetRange) -> None:
        self.blobs.read_into(*chunk_name(request.chunk), request.offset, request.into)

    def uploadable(self, blob_id: str) -> bool:
        """Say whether a chunk of this blob may still be uploaded."""
        known = self.catalog.blob(blob_id)
        return known is not None and known.state == STAGED

    # -- sweeping ----------------------------------------------------------------------------------------------------

    def sweep(self, *, limit: int | None = None) -> SweepReport:
        """Take away what nobody can reach any more; at most ``limit`` things of each kind, or all of them."""
        now = self.catalog.clock()
        most = limit or 1_000
        catalog = self.catalog

        def all_of(step: Callable[[], int]) -> int:
            total = 0
            while True:
                count = step()
                total += count
                if count < most or limit is not None:
                    return total

        return SweepReport(
            expired=all_of(lambda: catalog.expire(limit=most)),
            request_keys=all_of(lambda: catalog.drop_requests(before=now - _us(REQUEST_SECONDS), limit=most)),
            tombstones=all_of(lambda: catalog.drop_tombstones(before=now - _us(TOMBSTONE_SECONDS), limit=most)),
            receipts=all_of(lambda: catalog.drop_receipts(before=now - _us(RECEIPT_SECONDS), limit=most)),
            blobs=all_of(lambda: self._sweep_blobs(now, most)),
        )

    def _sweep_blobs(self, now: int, limit: int) -> int:
        before = now - _us(GRACE_SECONDS)
        claimed = self.catalog.claim_blobs(staged_before=before, garbage_before=before, limit=limit)
        # An upload that was late may have put objects of a dead blob back.
        dead = self.catalog.dead_blobs(before=now - _us(DEAD_SECONDS), limit=limit)
        self.blobs.delete((blob.id, len(chunk_sizes(blob.size, blob.chunk_size))) for blob in (*claimed, *dead))
        self.catalog.forget_blobs([blob.id for blob in dead])
        return max(len(claimed), len(dead))

    def _sweep_after_write(self) -> None:
        if time.monotonic() < self._next_sweep or not self._sweeping.acquire(blocking=False):
            return
        self._next_sweep = time.monotonic() + _SWEEP_EVERY_SECONDS
        try:
            # The writer, and those behind it, do not wait for an object store.
            threading.Thread(target=self._small_sweep, name="agent-memory-sweep", daemon=True).start()
        except RuntimeError:
            # No thread is to be had. The write before it is done and must not look as if it were not.
            self._sweeping.release()

    def _small_sweep(self) -> None:
        try:
            # The next one tries again.
            with suppress(AgentMemoryError):
                self.sweep(limit=_SMALL_SWEEP)
        finally:
            self._sweeping.release()

    # -- maintenance -------------------------------------------------------------------------------------------------

    def check(self, request: Check) -> CheckReport:
        return check(self.catalog, self.blobs, fix=request.fix)

    def backup(self, request: Backup) -> None:
        if not isinstance(self.catalog, SqliteCatalog) or not isinstance(self.blobs, FileBlobs) or not self._key_file:
            raise InvalidRequestError("only a store in files can be backed up here")
        backup(self.catalog, self.blobs, self._key_file, Path(request.path))

    def set_times(self, request: SetTimes) -> None:
        self.catalog.set_times(request.scope, [Times(*one) for one in request.times])

    def close(self) -> None:
        self._next_sweep = math.inf
        # A sweep that has begun is brought to its end.
        with self._sweeping:
            pass
        self.catalog.close()
        self.blobs.close()


def _us(seconds: int) -> int:
    return seconds * 1_000_000


def _one_more(request: _Listing) -> _Listing:
    return request._replace(limit=request.limit + 1)


def _segment_page(names: list[str], limit: int) -> SegmentPage:
    """Return a page from one name more than it holds, which only says that there are more."""
    return SegmentPage(names[:limit], names[limit - 1] if len(names) > limit else None)


def _check_version(request: PrepareRead, row: Row) -> None:
    if request.version is not None and row.entry.version != request.version:
        raise ConflictError("that version is no longer there", code="version_gone")
