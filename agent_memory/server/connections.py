"""What a connection to the server may be: bounded in what it sends before a request, and in how long that takes."""

from __future__ import annotations

import asyncio
import resource
import sys
from contextlib import suppress
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import ProtocolError
from ..wire import encode_error
from ..wire.problems import PROBLEM_TYPE
from .asgi import DISCARDED

ACCEPTED_AT_ONCE: Final = 16
"""Connections that are taken in one step of the event loop; it takes some steps until they are counted."""

_MOST_FILES: Final = 65_536
_OTHER_FILES: Final = 256
_HEAD_BYTES: Final = 64 * 1024
_HEAD_SECONDS: Final = 20.0
# Kept, each takes forty times as many bytes as the shortest has.
_MOST_HEADERS: Final = 128
# Clients of ours wait for an answer before they ask again.
_WAITING_REQUESTS: Final = 4
_SAY_THAT_A_BODY_FOLLOWS: Final = (b"content-length", b"transfer-encoding")


def raise_file_limit() -> None:
    """Let this process have as many files and connections open as the system lets it take, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some systems have another limit besides, which they do not tell: then it stays as it is.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _most_connections() -> int:
    # The database and large values need files too: with none left, connections that are served would fail as well.
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_FILES if files == resource.RLIM_INFINITY else files - min(_OTHER_FILES, files // 2)


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose request line, headers, trailers or refused body go on and on, or do not end in time.

    And one that sends much before it is answered. The parser itself would keep it all, and uvicorn's own limit is one
    between requests. What is no HTTP at all is refused like everything else.
    """

    _in_head = False
    _kept_bytes = 0
    _discarded_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > _most_connections():
            transport.abort()
        else:
            self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_limit()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        if len(self.pipeline) == _WAITING_REQUESTS:
            raise ProtocolError("too many requests wait for those before them")
        self._in_head, self._discarded_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What stands behind a body is none of the headers by which a request is judged.
        if not self._in_head:
            return
        if len(self.headers) == _MOST_HEADERS:
            raise ProtocolError("a request has too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._kept_bytes = False, 0
        self._end_limit()
        parser: Any = self.parser
        if parser.should_upgrade() and any(name in _SAY_THAT_A_BODY_FOLLOWS for name, _ in self.headers):
            # The parser takes a body for the other protocol, and what comes of it later for a request of its own.
            raise ProtocolError("a request with a body asks for another protocol")
        encodings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if encodings not in ([], [b"chunked"]):
            # The parser looks at the last one alone, and would take a compressed body for one that is not.
            raise ProtocolError("a body is chunked or as it is")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        if self.pipeline and len(self.cycle.body) + len(body) > _HEAD_BYTES:
            # It waits like a head, and nothing reads it before its turn comes.
            self.transport.abort()
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > DISCARDED:
                self.transport.abort()
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self.cycle.response_complete:
            self._limit_head()
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._kept_bytes > _HEAD_BYTES:
            self.transport.abort()

    def _limit_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _end_limit(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        ahead = cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)
        if ahead or self.pipeline:
            # It would pass for the answer to the request before, or for a part of that.
            self.transport.abort()
            return
        # What uvicorn has caught is the parser's, which says why it was stopped by its context.
        failure = sys.exception()
        reason = failure.__context__ if failure is not None else None
        detail = str(reason) if isinstance(reason, ProtocolError) else msg
        _, body = encode_error(ProtocolError(detail, code="malformed_http"))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {PROBLEM_TYPE}\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()
