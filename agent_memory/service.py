"""The rules: one method per message, the same for an embedded store and behind a server.

Synchronous and thread-safe. It knows no HTTP and no SQL: a catalog decides what is current, a blob store keeps what is
too large for the catalog.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from .checks import check_condition, check_limit, check_list, check_parents, check_search, check_write
from .errors import ConflictError, InvalidRequestError, LimitExceededError
from .ids import uuid7
from .keys import check_key, check_prefix
from .maintenance import CheckReport, backup, check
from .messages import (
    BATCH_OPERATIONS,
    INLINE_LIMIT,
    Backup,
    Batch,
    Blob,
    Check,
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
    Operation,
    Page,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Search,
    SegmentPage,
    SetTimes,
    Sweep,
    Write,
)
from .replies import Replies, segment_page
from .storage.blobs import BlobStore, FileBlobs, blob_of, chunk_name
from .storage.catalog import Catalog, Row, Times, has_writes, is_time
from .storage.sqlite.catalog import SqliteCatalog
from .sweeping import SweepAfterWrites, SweepReport, sweep
from .uploads import Uploads

_Listing = TypeVar("_Listing", List, ListParents)


class StateService:
    """Answers messages from a catalog and a blob store; a message's docstring says what it is answered with.

    Args:
        catalog: decides what is current.
        blobs: keeps values above INLINE_LIMIT bytes.
        key_file: the signing key of a store in files, for its backup.
        sweep_after_writes: sweep after a write, at most once a minute; for stores that no server tends.
    """

    def __init__(
        self, catalog: Catalog, blobs: BlobStore, *, key_file: Path | None = None, sweep_after_writes: bool = False
    ) -> None:
        self.catalog = catalog
        self.blobs = blobs
        self._uploads = Uploads(catalog, blobs)
        self._key_file = key_file
        self._sweeper = SweepAfterWrites(lambda limit: self.sweep(limit=limit)) if sweep_after_writes else None
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
        if _is_simple(request, row):
            return Found(row.entry, row.data, None)
        return self._replies([request], [row])[0]

    def read_at_once(self, request: PrepareRead) -> tuple[bool, Found | None]:
        """Answer a read if a row of a catalog in a file is all it takes -> (True, answer); else (False, None)."""
        if not self.catalog.is_file:
            # A round trip may take any time: an event loop must not wait for it.
            return False, None
        row = self.catalog.read(request.scope, check_key(request.key))
        if row is None:
            return True, None
        return (True, Found(row.entry, row.data, None)) if _is_simple(request, row) else (False, None)

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
        check_list(request)
        return self._replies([request], [self.catalog.list(_one_more(request))])[0]

    def list_segments(self, request: ListSegments) -> SegmentPage:
        check_limit(request.limit)
        check_prefix(request.prefix)
        check_prefix(request.cursor or "")
        names = self.catalog.list_segments(request.scope, request.prefix, after=request.cursor, limit=request.limit + 1)
        return segment_page(names, request.limit)

    def list_parents(self, request: ListParents) -> SegmentPage:
        return self._apply([request])[0]

    def search(self, request: Search) -> list[Hit]:
        return self._apply([request])[0]

    def _replies(self, requests: Sequence[Operation], results: Sequence[Any]) -> list[Any]:
        replies = Replies(requests[0].scope, self.catalog, self.blobs, self._load)
        made = [replies.to(request, result) for request, result in zip(requests, results, strict=True)]
        replies.finish()
        return made

    def _load(self, row: Row, size: int) -> bytes:
        # First: of a size that is damaged no memory is taken.
        chunks = blob_of(row.blob_id or "", row.entry.size, row.chunk_size).chunks
        data = bytearray(size)
        view, offset = memoryview(data), 0
        for chunk in chunks:
            if offset >= size:
                break
            self.blobs.read_into(*chunk_name(chunk), 0, view[offset : offset + chunk.size])
            offset += chunk.size
        return bytes(data)

    # -- writes ------------------------------------------------------------------------------------------------------

    def prepare_write(self, request: PrepareWrite) -> Blob:
        check_key(request.key)
        check_condition(request)
        try:
            return self._uploads.prepare(request)
        except ConflictError as error:
            raise self._explained(error, [request]) from None

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
        replies = self._replies(requests, results)
        if has_writes(requests):
            self._sweep_after_write()
        return replies

    def _ready(self, request: Operation) -> Operation:
        """Check a request and complete what the client may leave to the store."""
        match request:
            case PrepareRead():
                check_key(request.key)
                return request
            case CommitWrite() | Delete():
                return self._ready_write(request)
            case List():
                check_list(request)
                return _one_more(request)
            case ListParents():
                check_parents(request)
                return _one_more(request)
            case Search():
                check_search(request)
                return request

    def _ready_write(self, request: Write) -> Write:
        check_key(request.key)
        check_write(request)
        if request.write_id is None and not self.catalog.is_file:
            # Its connections may break behind a commit, and the catalog tries again by itself.
            request = request._replace(write_id=uuid7())
        if isinstance(request, Delete):
            return request
        return self._uploads.ready(request) if request.data is None else self._ready_inline(request, request.data)

    def _ready_inline(self, request: CommitWrite, data: bytes) -> CommitWrite:
        if len(data) > INLINE_LIMIT:
            raise LimitExceededError(f"a value above {INLINE_LIMIT} bytes is prepared and uploaded, not sent inline")
        sha256 = hashlib.sha256(data).hexdigest()
        if request.sha256 is None:
            return request._replace(sha256=sha256)
        if request.sha256 != sha256:
            raise InvalidRequestError("the value does not have the sha256 that was sent with it")
        return request

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
        return self._uploads.is_open(blob_id)

    # -- maintenance -------------------------------------------------------------------------------------------------

    def sweep(self, *, limit: int | None = None) -> SweepReport:
        """Take away what nobody can reach any more; at most ``limit`` things of each kind, or all of them."""
        return sweep(self.catalog, self.blobs, limit=limit)

    def _sweep_after_write(self) -> None:
        if self._sweeper is not None:
            self._sweeper.after_write()

    def check(self, request: Check) -> CheckReport:
        return check(self.catalog, self.blobs, fix=request.fix)

    def backup(self, request: Backup) -> None:
        if not isinstance(self.catalog, SqliteCatalog) or not isinstance(self.blobs, FileBlobs) or not self._key_file:
            raise InvalidRequestError(
                "only a store in files can be backed up here; the command copy brings any other into files"
            )
        if "://" in request.path:
            # The rest of it may hold a password.
            raise InvalidRequestError("a backup goes into a file; the command copy brings a store to PostgreSQL")
        backup(self.catalog, self.blobs, self._key_file, Path(request.path))

    def set_times(self, request: SetTimes) -> None:
        if not all(is_time(us) for _, *both in request.times for us in both):
            # With its offset a time may lie beyond the calendar, and what has it could not be read.
            raise InvalidRequestError("the times of a key are of the years 1 to 9999 in UTC")
        self.catalog.set_times(request.scope, [Times(*one) for one in request.times])

    def close(self) -> None:
        try:
            if self._sweeper is not None:
                # Files answer at once; a database or an object store that does not must not hold up the end.
                self._sweeper.close(sweep=self.catalog.is_file and isinstance(self.blobs, FileBlobs))
        finally:
            self.catalog.close()
            self.blobs.close()


def _is_simple(request: PrepareRead, row: Row) -> bool:
    """Say whether a row is all that it takes to answer a read."""
    return (
        row.data is not None
        and len(row.data) <= request.max_inline_size
        and request.version is None
        and not (request.refresh_ttl and row.entry.expires_us is not None)
    )


def _one_more(request: _Listing) -> _Listing:
    return request._replace(limit=request.limit + 1)
