"""One line of JSON a request: what was asked for and how it went, never a value, a key, a token or a query."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import select
import time
from datetime import UTC, datetime
from typing import Final, TextIO

from ..errors import InvalidKeyError
from ..keys import check_scope_name

_REPEATED_SECONDS: Final = 1.0
# A reader that is slow, or is started anew, is waited for, and once; one that stands still must not stop the server.
_READER_SECONDS: Final = 1.0


class Record:
    """What is known of a request while it is served."""

    __slots__ = (
        "application",
        "bytes_in",
        "bytes_out",
        "client",
        "code",
        "error",
        "method",
        "namespace",
        "request_id",
        "route",
        "start",
        "status",
        "token",
    )

    def __init__(self, method: str, client: str | None = None) -> None:
        self.start = time.perf_counter()
        self.client = client
        self.token: str | None = None
        self.request_id: str | None = None
        self.method = method
        self.route = ""
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.namespace: str | None = None
        self.application: str | None = None
        self.code: str | None = None
        self.error: str | None = None


class RequestLog:
    """Writes records to a text stream, or nowhere: Python has no stderr if that was closed when it started.

    What a pipe that nobody reads does not take is left out, and counted in the next line that it takes.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._dropped = 0

    def write(self, record: Record) -> None:
        line: dict[str, str | int | float] = {
            "method": record.method,
            "route": record.route,
            "status": record.status,
            "ms": round((time.perf_counter() - record.start) * 1000, 2),
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
        }
        for name in ("namespace", "application"):
            value: str | None = getattr(record, name)
            if value is not None and _is_name(value):
                line[name] = value
        for name in ("client", "token", "request_id", "code", "error"):
            value = getattr(record, name)
            if value is not None:
                line[name] = value
        self.event(line)

    def event(self, line: dict[str, str | int | float]) -> None:
        """Write one line, with the time if it has none."""
        if self._stream is None:
            return
        timed = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}
        try:
            if not self._has_room(self._stream):
                self._dropped += 1
                return
            if self._dropped:
                timed["dropped"], self._dropped = self._dropped, 0
            self._stream.write(f"{json.dumps(timed)}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads the log any more: that is no reason to stop serving.
            return

    def _has_room(self, stream: TextIO) -> bool:
        try:
            # On Linux there is room for 4 KiB in a pipe where there is any. Of many workers that see the last of it at
            # once, one could still be made to wait.
            return bool(select.select([], [stream.fileno()], [], 0 if self._dropped else _READER_SECONDS)[1])
        except (OSError, ValueError):
            # It is no file, or Windows, where only sockets can be asked: it takes everything, or makes us wait.
            return True


class ServerEvents(logging.Handler):
    """Writes what uvicorn and others have to say as lines of the same log, of an exception its type alone.

    What asyncio says hundreds of times a second while it gets no file for a connection is written once a second.
    """

    def __init__(self, log: RequestLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._said = -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is asyncio.CancelledError:
            # A request that outlasted the server has a line of its own.
            return
        # What others put into their texts may be a value: what they say stands in the first line, as it is written.
        text = record.getMessage() if record.name.startswith("uvicorn") else str(record.msg).partition("\n")[0]
        if text.startswith("No supported WebSocket library"):
            # There is none on purpose, and what it follows says what was asked for.
            return
        if text.startswith("socket.accept()"):
            if 0 <= record.created - self._said < _REPEATED_SECONDS:
                return
            self._said = record.created
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, str | int | float] = {"time": at, "event": "server", "message": text.strip()}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        self._log.event(line)


def _is_name(value: str) -> bool:
    # Before it is checked, a scope's name is whatever the other side put into the path.
    try:
        check_scope_name(value, "a name")
    except InvalidKeyError:
        return False
    return True
