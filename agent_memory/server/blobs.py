"""``/v1/blobs/…``: chunks of large values, stored and fetched by signed URL."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from typing import Final, TypeVar

import anyio
from starlette.types import Receive, Scope, Send

from ..disk import disk_error
from ..errors import ConflictError, IntegrityError, InvalidRequestError
from ..executors import on_thread
from ..service import StateService
from ..storage.blobs import FileBlobs, Upload
from .asgi import (
    BLOCK,
    PIECE,
    Disconnected,
    MethodNotAllowedError,
    Pace,
    answer,
    declared_size,
    header,
    next_part,
    record_of,
    refuse,
    wait_until_gone,
)
from .blob_urls import BlobUrls, Place
from .shares import Shares

T = TypeVar("T")

_TRANSFERS: Final = 64
_THREADS: Final = 8
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class BlobEndpoint:
    """Streams chunks to and from files; at most a block of each transfer is in memory."""

    def __init__(self, service: StateService, blobs: FileBlobs, urls: BlobUrls) -> None:
        self._service = service
        self._blobs = blobs
        self._urls = urls
        self._transfers = Shares(_TRANSFERS)
        # Threads of their own: transfers that wait for a disk must not keep small requests waiting.
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).route = "/v1/blobs/{blob}/{chunk}"
        method: str = scope["method"]
        if method not in ("GET", "HEAD", "PUT"):
            raise MethodNotAllowedError("a blob takes GET, HEAD and PUT", "GET", "HEAD", "PUT")
        place = self._urls.check(method, scope["path"], scope["query_string"])
        known = await self._thread(self._service.catalog.blob, place.blob_id)
        tenant = known.scope.partition("/")[0] if known is not None else ""
        pace = Pace()
        with self._transfers.place(tenant, "transfers"):
            if method == "PUT":
                await self._put(place, scope, pace.of(receive), send)
            else:
                await self._get(place, scope, receive, pace.of(send))

    async def _thread(self, function: Callable[..., T], *args: object) -> T:
        return await on_thread(lambda: function(*args), self._threads)

    # -- PUT ---------------------------------------------------------------------------------------------------------

    async def _put(self, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        declared = declared_size(scope["headers"])
        if declared is not None and declared != place.size:
            raise _wrong_size(place)
        if not await self._thread(self._service.uploadable, place.blob_id):
            gone = ConflictError("the prepared write is committed or has expired", code="blob_gone")
            await refuse(scope, send, gone, status=410)
            return
        upload = await self._thread(self._blobs.writer, place.blob_id, place.number)
        try:
            await self._receive(place, upload, scope, receive)
            etag = await self._thread(upload.finish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._thread(upload.__exit__)
        await answer(send, 200, b"", b"application/octet-stream", [(b"etag", f'"{etag}"'.encode())])

    async def _receive(self, place: Place, upload: Upload, scope: Scope, receive: Receive) -> None:
        record = record_of(scope)
        block = bytearray()
        more = True
        while more:
            part, more = await next_part(receive)
            record.bytes_in += len(part)
            if record.bytes_in > place.size:
                raise _wrong_size(place)
            block += part
            if len(block) >= BLOCK or not more:
                await self._thread(upload.write, bytes(block))
                block.clear()
        if record.bytes_in != place.size:
            raise _wrong_size(place)

    # -- GET ---------------------------------------------------------------------------------------------------------

    async def _get(self, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        file = await self._thread(self._open, place)
        # What is sent to somebody who has left goes nowhere, without an error.
        leaving = asyncio.ensure_future(wait_until_gone(receive))
        try:
            start, end = _range(header(scope["headers"], b"range"), place.size)
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"content-length", str(end - start).encode()),
                (b"accept-ranges", b"bytes"),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
            partial = (start, end) != (0, place.size)
            if partial:
                headers.append((b"content-range", f"bytes {start}-{end - 1}/{place.size}".encode()))
            await send({"type": "http.response.start", "status": 206 if partial else 200, "headers": headers})
            while start < end and scope["method"] == "GET":
                block = await self._thread(os.pread, file, min(BLOCK, end - start), start)
                if not block:
                    # Too late for another status: the connection ends before the announced length.
                    raise IntegrityError("a stored chunk is shorter than the catalog says")
                start += len(block)
                if leaving.done():
                    raise Disconnected
                for first in range(0, len(block), PIECE):
                    piece = block[first : first + PIECE]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            # What this waits for is that the last block is nearly gone.
            await send({"type": "http.response.body", "body": b""})
        finally:
            leaving.cancel()
            os.close(file)

    def _open(self, place: Place) -> int:
        try:
            file = os.open(self._blobs.path(place.blob_id, place.number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            file = None
        except OSError as error:
            raise disk_error(error, "the blob folder") from None
        if file is None:
            raise IntegrityError("a chunk of the value is missing from the blob store", code="chunk_missing")
        if os.fstat(file).st_size != place.size:
            os.close(file)
            raise IntegrityError("a stored chunk has another size than the catalog says")
        return file


def _wrong_size(place: Place) -> InvalidRequestError:
    return InvalidRequestError(f"this chunk has exactly {place.size} bytes", code="wrong_size")


def _range(text: str | None, size: int) -> tuple[int, int]:
    """Return where a requested range starts and ends; the whole for none, and for forms that may be ignored."""
    match = _RANGE.fullmatch(text or "")
    if match is None or not (match[1] or match[2]):
        return 0, size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return 0, size
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= end:
        raise IntegrityError(f"the chunk has {size} bytes", code="range_not_satisfiable")
    return start, end
