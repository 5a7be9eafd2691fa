"""One HTTP request and what its answer means, without the I/O: the sync and the async transport share these.

``begin`` gets the status and headers, ``feed`` the body as it arrives, ``end`` gives the reply or raises. An answer
that is not the one asked for is always an error, never a default.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import httpx

from ..errors import AgentMemoryError, IntegrityError, ProtocolError, UnavailableError
from ..messages import JSON, Message
from ..wire import decode_error, decode_reply
from ..wire.problems import PROBLEM_TYPE

_LONGEST_REPLY: Final = 64 * 1024 * 1024
_LONGEST_REFUSAL: Final = 64 * 1024
_SLICE: Final = 128 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
# How the object stores say that a signed URL is too old: S3, S3 with a session's token or GCS, Azure.
_EXPIRED: Final = (b"Request has expired", b"ExpiredToken", b"Signature not valid in the specified time frame")
_MISSING: Final = (b"NoSuchKey", b"BlobNotFound")
# Refusals with a status of the client's that speak of the connection.
_PASSING: Final = (b"<Code>RequestTimeout</Code>", b"<Code>IncompleteBody</Code>")
_ERROR: Final = b"<Error>"
# Nothing but letters is repeated: no key, no URL.
_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")


class Exchange(Protocol):
    """A request that is on its way."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None: ...

    def feed(self, part: bytes) -> None: ...

    def end(self) -> Any: ...


class ApiCall:
    """A message sent to one of the API's verbs."""

    def __init__(self, message: Message, secret: str | None) -> None:
        self._message = message
        self._secret = secret
        self._parts: list[bytes] = []
        self._size = 0

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._type = headers.get("content-type", "")
        self._retry_after = headers.get("retry-after")
        _check_encoding(headers)

    def feed(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > _LONGEST_REPLY:
            raise ProtocolError("the server's answer is longer than any of this protocol")
        self._parts.append(part)

    def end(self) -> Any:
        raw = b"".join(self._parts)
        if self._status != 200:
            raise decode_error(
                self._status, self._type, raw, message=self._message, retry_after=self._retry_after, secret=self._secret
            )
        if self._type.partition(";")[0].strip() != JSON:
            raise ProtocolError("the answer is not JSON: is this the address of an agent-memory server?")
        return decode_reply(self._message, raw)


class _Transfer:
    """What uploads and downloads share: a refusal's body is kept, for it may say that the URL is too old."""

    _refused: bytearray | None = None
    _status = 0
    _type = ""
    _retry_after: str | None = None

    def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._refused = bytearray()
        self._type = headers.get("content-type", "")
        self._retry_after = headers.get("retry-after")

    def _keep(self, refused: bytearray, part: bytes) -> None:
        refused += part[: _LONGEST_REFUSAL - len(refused)]

    def _refusal(self, refused: bytearray) -> AgentMemoryError:
        raw = bytes(refused)
        error = decode_error(self._status, self._type, raw, retry_after=self._retry_after, who="the blob store")
        if self._type.startswith(PROBLEM_TYPE):
            return error
        if self._status in (400, 403) and any(mark in raw for mark in _EXPIRED):
            return UnavailableError("the signed URL has expired", code="url_expired")
        if self._status == 404 and any(mark in raw for mark in _MISSING):
            return IntegrityError("a chunk of the value is missing from the blob store", code="chunk_missing")
        if self._status == 416:
            return IntegrityError("the blob store's chunk is shorter than it was", code="range_not_satisfiable")
        if self._status == 400 and any(mark in raw for mark in _PASSING):
            return UnavailableError("the upload broke off before the blob store had all of it", code="truncated")
        code = _CODE.search(raw)
        return error.about(code[1].decode()) if code else error


class Upload(_Transfer):
    """A chunk's bytes sent to where they are to be kept; its reply is the etag."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._etag = headers.get("etag", "")
        self._taken = status in (200, 201, 204)
        if not self._taken or not self._etag:
            self._refuse(status, headers)

    def feed(self, part: bytes) -> None:
        if self._refused is not None:
            self._keep(self._refused, part)

    def end(self) -> str:
        if self._refused is None:
            return self._etag
        if not self._taken:
            raise self._refusal(self._refused)
        if _ERROR in self._refused:
            raise UnavailableError("the blob store answered with an error under a status of success")
        raise ProtocolError("the blob store took a chunk without giving it an etag")


class Download(_Transfer):
    """A range of a chunk, written straight to where it belongs: the body fills ``room``, and only the rest is fed.

    Args:
        total: bytes of the whole chunk.
        offset: where the range begins.
        into: filled completely, or an error is raised.
        progress: told how much of it is filled.
    """

    def __init__(self, total: int, offset: int, into: memoryview, progress: Callable[[int], object]) -> None:
        self._total = total
        self._offset = offset
        self._into = into
        self._progress = progress
        self._filled = 0
        self.whole = offset == 0 and len(into) == total

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        if status not in (200, 206):
            self._refuse(status, headers)
            return
        _check_encoding(headers)
        if (status == 200) != self.whole:
            raise IntegrityError("the blob store ignored the range that was asked for", code="range_ignored")
        if status == 206:
            self._check_range(headers.get("content-range", ""))
        length = headers.get("content-length")
        if length is not None and length != str(len(self._into)):
            raise IntegrityError("the blob store offers another number of bytes than a chunk has", code="wrong_length")
        self.fill(0)

    def _check_range(self, text: str) -> None:
        match = _CONTENT_RANGE.fullmatch(text)
        wanted = (self._offset, self._offset + len(self._into) - 1)
        if match is None or (int(match[1]), int(match[2])) != wanted or match[3] not in ("*", str(self._total)):
            raise IntegrityError("the blob store sent another range than was asked for", code="wrong_range")

    def room(self) -> memoryview:
        """Return where the body goes; that of a refusal nowhere. To be released."""
        return self._into[: 0 if self._refused is not None else None]

    def fill(self, size: int) -> None:
        """Take note of how many bytes stand in the room by now."""
        self._filled = size
        self._progress(size)

    def feed(self, part: bytes) -> None:
        if self._refused is None:
            raise IntegrityError("the blob store sent more bytes than a chunk has", code="wrong_length")
        self._keep(self._refused, part)

    def end(self) -> None:
        if self._refused is not None:
            raise self._refusal(self._refused)
        if self._filled != len(self._into):
            raise UnavailableError("the transfer broke off in the middle of a chunk", code="truncated")


def _check_encoding(headers: Mapping[str, str]) -> None:
    if headers.get("content-encoding", "identity") != "identity":
        raise ProtocolError("the answer is compressed, which was not asked for")


class Slices(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Sends a view of memory piece by piece, so that no copy of the whole is made."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), _SLICE):
            yield bytes(self._data[start : start + _SLICE])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece
