"""The protocol, as generators: prepare, transfer, commit, with retries, checks and clean failure.

A flow yields messages and effects and gets replies or errors thrown in; ``drivers`` runs it. What stands here works on
bytes and entries; values and types are the business of the layer above.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from .buffers import zeroed
from .drivers import Compute, Flow, Gather, Sleep
from .errors import ConflictError, IntegrityError, UnavailableError
from .ids import uuid7
from .messages import (
    BATCH_INLINE_LIMIT,
    INLINE_LIMIT,
    Batch,
    Blob,
    Chunk,
    CommitWrite,
    Delete,
    Entry,
    Found,
    GetRange,
    List,
    Message,
    Operation,
    PrepareRead,
    PrepareWrite,
    PutChunk,
    Scope,
)

T = TypeVar("T")

_log: Final = logging.getLogger("agent_memory")

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 2.0
_SILENT_SECONDS: Final = 1.0
"""A call that fails for longer logs why: else a wrong address would show only when the call's time is over."""
_RENEWALS: Final = 20
_UPLOADS: Final = 3
_HASHED_AT_ONCE: Final = 1024 * 1024
"""Bytes that are hashed on the event loop itself, in half a millisecond; more of them on a thread."""


class Transfer(NamedTuple):
    """How large values travel: in chunks of so many bytes, so many at once."""

    chunk_size: int = 8 * 1024 * 1024
    parallelism: int = 4


def pause(attempt: int) -> float:
    """Return the seconds to wait before try number ``attempt + 1``: exponential, with full jitter."""
    return random.uniform(0.2, 1.0) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10))


def call(message: Message) -> Flow[Any]:
    """Send a message until it is answered or the deadline leaves no time; every message may be repeated."""
    attempt, failing_since, told = 0, 0.0, False
    while True:
        try:
            return (yield message)
        except UnavailableError as error:
            if error.code in _FINAL:
                raise
            now = time.monotonic()
            failing_since = failing_since or now
            # A server gives all callers that it refuses the same pause: without jitter they would come back together.
            wanted = error.retry_after
            if not (yield Sleep(pause(attempt) if wanted is None else wanted * random.uniform(1.0, 1.5))):
                raise
            # By the clock and not by the pauses, which are short where each attempt waits long for an answer.
            if not told and now >= failing_since + _SILENT_SECONDS:
                _log.warning("%s; trying again until the call's time is over", error)
                told = True
            attempt += 1


# Repeating these soon would not help: the caller has to act.
_FINAL: Final = frozenset(
    {
        "closed",
        "disk_full",
        "disk_failed",
        "database_failed",
        "newer_schema",
        "timeout",
        "search_timeout",
        "url_expired",
        "blobs_refused",
        "forked",
        "schema_missing",
        "tls_failed",
    }
)


# -- read ------------------------------------------------------------------------------------------------------------


def read(request: PrepareRead, transfer: Transfer) -> Flow[tuple[bytes, Entry] | None]:
    """Return the bytes of a key's current version, checked, with its entry; None if there is none."""
    found: Found | None = yield from call(request)
    return None if found is None else arrived(found) or (yield from fetch(found, request, transfer))


def fetch(found: Found, request: PrepareRead, transfer: Transfer) -> Flow[tuple[bytes, Entry] | None]:
    """Return the bytes that a prepared read stands for; raise IntegrityError unless they are the ones written.

    None if the key was deleted, and its bytes swept, while they were being fetched.
    """
    renewals = 0
    while True:
        if (whole := arrived(found)) is not None:
            return whole
        blob = found.blob
        if blob is None or blob.size != found.entry.size:
            raise IntegrityError("the store offered chunks that do not add up to the value's size")
        buffer = zeroed(blob.size)
        try:
            if (yield from _download(blob, buffer.getbuffer(), transfer)) != found.entry.sha256:
                raise IntegrityError(_DAMAGED)
            return buffer.getvalue(), found.entry
        except (UnavailableError, IntegrityError) as error:
            if error.code not in _STALE:
                raise
            # The URLs expired, or the version was overwritten and swept meanwhile.
            renewals += 1
            if renewals > _RENEWALS:
                raise
            version = found.entry.version
            try:
                again: Found | None = yield from call(request._replace(version=version))
            except ConflictError:
                again = None
            if again is not None and error.code == "chunk_missing":
                raise
            again = again or (yield from call(request))
            if again is None:
                return None
            found = again
        finally:
            # A failure holds this frame for as long as somebody keeps it.
            del buffer


_STALE: Final = frozenset({"url_expired", "chunk_missing"})


def arrived(found: Found) -> tuple[bytes, Entry] | None:
    """Return the bytes that came with a read, if they are what the entry says was written; None if none came."""
    entry, data, _ = found
    if data is None:
        return None
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise IntegrityError(_DAMAGED)
    return data, entry


_DAMAGED: Final = "the bytes that arrived are not the ones that were written (size or sha256 differs)"


def _download(blob: Blob, view: memoryview, transfer: Transfer) -> Flow[str]:
    """Fill a view part by part, several at once, release it and return its sha256: nobody holds the buffer any more."""
    with view:
        ranges: list[tuple[Chunk, int]] = []
        pieces: list[memoryview] = []
        start = 0
        for chunk in blob.chunks:
            for offset in range(0, chunk.size, transfer.chunk_size):
                size = min(transfer.chunk_size, chunk.size - offset)
                ranges.append((chunk, offset))
                pieces.append(view[start : start + size])
                start += size
        try:
            whole = _InOrder(pieces)
            parts = [_fetch_part(chunk, offset, number, whole) for number, (chunk, offset) in enumerate(ranges)]
            yield Gather(parts, transfer.parallelism)
            return (yield from whole.hexdigest())
        finally:
            # The frames of a failure hold each other and their pieces: by these, each attempt's buffer would be kept.
            for piece in pieces:
                # A thread that was abandoned with its event loop may still be at work on one.
                with suppress(BufferError):
                    piece.release()


def _fetch_part(chunk: Chunk, offset: int, number: int, whole: _InOrder) -> Flow[None]:
    yield from call(GetRange(chunk, offset, whole.parts[number], partial(whole.add, number)))
    yield from whole.take(number)


class _InOrder:
    """Hashes parts that come in any order and on any thread, while others, and the rest of them, are on their way."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self.parts = parts
        self._sha256 = hashlib.sha256()
        self._lock = threading.Lock()
        self._here = [0] * len(parts)
        # The part that the hash has come to, and how much of it went in.
        self._number = self._hashed = 0
        self._hashing = self._overwritten = False

    def take(self, number: int) -> Flow[None]:
        """Take a part that is there as a whole."""
        size = len(self.parts[number])
        if self._here[number] == size:
            # That was told while it came.
            return
        if size > _HASHED_AT_ONCE:
            yield Compute(partial(self.add, number, size))
        else:
            self.add(number, size)

    def add(self, number: int, size: int) -> None:
        """Take the first ``size`` bytes of a part; whoever brings the next ones hashes all that follow them."""
        with self._lock:
            # A new attempt brings the same bytes again, if all is well.
            hashed = self._hashed if number == self._number else len(self.parts[number]) * (number < self._number)
            self._overwritten |= size < hashed
            self._here[number] = size
            if self._hashing:
                return
            self._hashing = True
        while (ready := self._ready()) is not None:
            with ready:
                self._sha256.update(ready)

    def _ready(self) -> memoryview | None:
        with self._lock:
            while self._number < len(self.parts):
                part, start, here = self.parts[self._number], self._hashed, self._here[self._number]
                if here > start:
                    self._hashed = here
                    return part[start:here]
                if start < len(part):
                    break
                self._number, self._hashed = self._number + 1, 0
            self._hashing = False
        return None

    def hexdigest(self) -> Flow[str]:
        """Return the hash of all parts as they are now; all of them have been taken."""
        if self._overwritten:
            self._sha256 = hashlib.sha256()
            for part in self.parts:
                yield Compute(partial(self._sha256.update, part))
        return self._sha256.hexdigest()


# -- write -----------------------------------------------------------------------------------------------------------


def write(commit: CommitWrite, transfer: Transfer, *, repeats: bool = False) -> Flow[Entry]:
    """Commit a value that stands in ``commit.data``: in one round trip if it is small, else in the three phases.

    A condition that does not hold is met before the upload, unless the write may be one that ``repeats``: whether it
    was made before only its commit can tell.
    """
    if commit.data is None or len(commit.data) <= INLINE_LIMIT:
        return (yield from call(commit))
    data = commit.data
    return (yield from _prepared_anew(lambda: _upload_and_commit(commit, data, transfer, repeats)))


def _prepared_anew(attempt: Callable[[], Flow[T]]) -> Flow[T]:
    """Upload and commit, and once more from the start where the catalog does not know what was prepared.

    One that was restored, or a standby that took over, does not: nobody else wrote, and the commit cannot have been
    carried out, which its receipt would tell.
    """
    for _ in range(_UPLOADS - 1):
        try:
            return (yield from attempt())
        except ConflictError as error:
            if error.code != "blob_gone":
                raise
    return (yield from attempt())


def _upload_and_commit(commit: CommitWrite, data: bytes, transfer: Transfer, repeats: bool) -> Flow[Entry]:
    return (yield from call((yield from upload(commit, data, transfer, refused_early=not repeats))))


def upload(commit: CommitWrite, data: bytes, transfer: Transfer, *, refused_early: bool = False) -> Flow[CommitWrite]:
    """Upload bytes that are too large to travel in the message, and return the commit that names their place."""
    size = len(data)
    chunk_size = transfer.chunk_size if size > transfer.chunk_size else None
    place = PrepareWrite(commit.scope, commit.key, size, chunk_size)
    if refused_early:
        place = place._replace(if_match=commit.if_match, if_none_match=commit.if_none_match)
    blob: Blob = yield from call(place)
    view = memoryview(data)
    places = dict(enumerate(blob.chunks))
    parts: list[memoryview] = []
    start = 0
    for chunk in blob.chunks:
        parts.append(view[start : start + chunk.size])
        start += chunk.size
    whole = _InOrder(parts) if commit.sha256 is None else None
    renew = place._replace(write_id=blob.id)
    puts = [_put(index, places, part, renew, whole) for index, part in enumerate(parts)]
    etags: list[str] = yield Gather(puts, transfer.parallelism)
    # Without the URLs, which nobody looks at: those of thousands of chunks, signed with a session's token, are more
    # than a request may have.
    chunks = tuple(Chunk("", chunk.size, etag) for chunk, etag in zip(blob.chunks, etags, strict=True))
    sha256 = commit.sha256 if whole is None else (yield from whole.hexdigest())
    return commit._replace(data=None, blob=Blob(blob.id, chunks), sha256=sha256)


def _put(
    index: int, places: dict[int, Chunk], data: memoryview, renew: PrepareWrite, whole: _InOrder | None
) -> Flow[str]:
    """Upload a chunk and return its etag; ``whole`` hashes the value if nobody did before."""
    if whole is not None:
        yield from whole.take(index)
    renewals = 0
    while True:
        try:
            return (yield from call(PutChunk(places[index], data)))
        except UnavailableError as error:
            renewals += 1
            if error.code != "url_expired" or renewals > _RENEWALS:
                raise
            blob: Blob = yield from call(renew)
            places.update(enumerate(blob.chunks))


# -- several keys ----------------------------------------------------------------------------------------------------


def batch(scope: Scope, operations: Sequence[Operation], transfer: Transfer) -> Flow[list[Any]]:
    """Carry out operations in one transaction -> for each read ``(bytes, Entry) | None``, else what the message gives.

    Small values travel in the one message; larger ones are uploaded before it and fetched after it. Their conditions
    wait for it: what it does before may fulfil them.
    """
    # A read may fail after the writes of its batch are committed. Then the batch is sent again: the writes need ids.
    reads = not all(isinstance(operation, CommitWrite | Delete) for operation in operations)
    named = [
        operation._replace(write_id=uuid7())
        if reads and isinstance(operation, CommitWrite | Delete) and operation.write_id is None
        else operation
        for operation in operations
    ]
    replies = yield from _prepared_anew(lambda: _upload_and_send(scope, named, transfer))
    for index, (operation, reply) in enumerate(zip(operations, replies, strict=True)):
        if reply is None or not isinstance(operation, PrepareRead):
            continue
        # Most came with the reply, and need no flow of their own.
        replies[index] = arrived(reply) or (yield from fetch(reply, operation, transfer))
    return replies


def _upload_and_send(scope: Scope, operations: Sequence[Operation], transfer: Transfer) -> Flow[list[Any]]:
    ready: list[Any] = []
    room = BATCH_INLINE_LIMIT
    for operation in operations:
        if isinstance(operation, CommitWrite) and operation.data is not None:
            if len(operation.data) > min(INLINE_LIMIT, room):
                operation = yield from upload(operation, operation.data, transfer)
            else:
                room -= len(operation.data)
        ready.append(operation)
    return (yield from call(Batch(scope, tuple(ready))))


def alone(operation: Operation, transfer: Transfer) -> Flow[Any]:
    """Carry out one operation as the message that it is: a small read is then answered on the event loop itself."""
    if isinstance(operation, PrepareRead):
        return (yield from read(operation, transfer))
    if isinstance(operation, CommitWrite):
        return (yield from write(operation, transfer))
    return (yield from call(operation))


def delete_all(scope: Scope, prefix: str, page_limit: int, write_id: Callable[[], str | None]) -> Flow[int]:
    """Delete every key under a prefix, a page at a time, each by a new ``write_id``; return how many there were."""
    count = 0
    cursor: str | None = None
    while True:
        page = yield from call(List(scope, prefix, cursor, page_limit))
        if page.found:
            yield from call(Batch(scope, tuple(Delete(scope, one.entry.key, write_id()) for one in page.found)))
            count += len(page.found)
            # Go on behind what was deleted: a listing reads all tombstones in its range.
            cursor = page.found[-1].entry.key
        elif cursor is not None:
            # Once more from the start, for what others wrote meanwhile.
            cursor = None
        else:
            return count
