"""Values that are uploaded before they are committed: where their bytes go, for how long, and whether they arrived."""

from __future__ import annotations

from typing import Final

from .errors import ConflictError, InvalidRequestError, LimitExceededError
from .ids import made_us, uuid7
from .messages import MAX_VALUE_BYTES, Blob, CommitWrite, PrepareWrite
from .storage.blobs import MAX_CHUNKS, BlobStore, blob_of, chunk_sizes
from .storage.catalog import STAGED, BlobRow, Catalog
from .storage.rules import blob_gone, condition_failed, conditions_hold

MIN_CHUNK_BYTES: Final = 64 * 1024

_LONGEST_UPLOAD_US: Final = 86_400_000_000


class Uploads:
    """Prepares uploads and checks what was uploaded. Thread-safe."""

    def __init__(self, catalog: Catalog, blobs: BlobStore) -> None:
        self.catalog = catalog
        self.blobs = blobs

    def prepare(self, request: PrepareWrite) -> Blob:
        """Return where to put the bytes of a value."""
        size, chunk_size = request.size, request.chunk_size
        if size < 0 or (chunk_size is not None and chunk_size < MIN_CHUNK_BYTES):
            raise InvalidRequestError(f"size must be 0 or more bytes, chunk_size at least {MIN_CHUNK_BYTES}")
        if size > MAX_VALUE_BYTES:
            raise LimitExceededError(f"a value may have at most {MAX_VALUE_BYTES} bytes")
        if chunk_size is not None and size > chunk_size * MAX_CHUNKS:
            raise LimitExceededError(f"a value may have at most {MAX_CHUNKS} chunks")
        blob_id = request.write_id
        if blob_id is not None:
            # First: what is committed by now may be why the condition does not hold any more.
            self._renew(request)
        self._refuse_early(request)
        if blob_id is None:
            blob_id = uuid7()
            self.catalog.stage(
                [BlobRow(blob_id, request.scope.path, request.key, size, chunk_size, STAGED, self.catalog.clock())]
            )
        return blob_of(blob_id, size, chunk_size)

    def _refuse_early(self, request: PrepareWrite) -> None:
        """Raise ConflictError if the commit would by now: large values are not uploaded to be refused."""
        if request.if_match is None and not request.if_none_match:
            return
        row = self.catalog.read(request.scope, request.key)
        if not conditions_hold(request, row and row.entry.etag):
            raise condition_failed(request, row)

    def _renew(self, request: PrepareWrite) -> None:
        known = self.catalog.blob(request.write_id or "")
        wanted = (request.scope.path, request.key, request.size, request.chunk_size)
        if known is None or (known.scope, known.key, known.size, known.chunk_size) != wanted:
            raise blob_gone()
        # What is never committed would otherwise lie there for as long as somebody asks for its URLs.
        if self.catalog.clock() - made_us(known.id) > _LONGEST_UPLOAD_US or not self.catalog.renew(known.id):
            raise blob_gone()

    def ready(self, request: CommitWrite) -> CommitWrite:
        """Return a commit with what the store knows of the uploaded bytes; raise if it is not what was prepared."""
        if request.blob is None:
            raise InvalidRequestError("a write needs inline data or a prepared blob")
        known = self.catalog.blob(request.blob.id)
        if known is None or (known.scope, known.key) != (request.scope.path, request.key):
            raise blob_gone()
        blob = blob_of(known.id, known.size, known.chunk_size)
        if known.state != STAGED and request.sha256 is not None:
            # A repeated commit: the receipt answers it, its bytes may be gone by now.
            return request._replace(blob=blob)
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
        return request._replace(sha256=sha256, blob=blob)

    def is_open(self, blob_id: str) -> bool:
        """Say whether a chunk of this blob may still be uploaded."""
        known = self.catalog.blob(blob_id)
        return known is not None and known.state == STAGED
