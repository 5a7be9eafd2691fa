"""Parts of large values, received straight into the memory of the value, on threads.

httpcore and h11 copy each byte five times on its way, in async code on the event loop. The HTTP client of the standard
library reads into memory that it is given.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, cast

import httpx

from ..executors import Executor
from .async_pool import CONNECTIONS, KEPT, KEPT_SECONDS
from .bounded import until, within
from .exchanges import Download
from .trust import Origin, origin_of

_ROOM: Final = 1024 * 1024
_PIECE: Final = 16 * 1024
# Below TLS, which would take part in the conversation of another thread.
_PLAIN: Final = socket.socket


class Downloads:
    """Connections to the places of chunks, and the threads on which event loops use them. Thread-safe."""

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        ssl_context.set_alpn_protocols(["http/1.1"])
        self._ssl = ssl_context
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._threads = Executor(CONNECTIONS, "agent-memory-download")
        self._lock = threading.Lock()
        # In the order in which they were last used.
        self._idle: list[_Connection] = []
        self._closed = False

    def fetch(self, request: httpx.Request, exchange: Download, deadline: float) -> None:
        """Carry a request out on this thread; raise an error of httpx, http.client or the system if that fails."""
        _Fetch(self, request, exchange).run(deadline)

    async def afetch(self, request: httpx.Request, exchange: Download, deadline: float) -> None:
        """Carry a request out on a thread. One that is cancelled is broken off, and its thread not waited for."""
        fetch = _Fetch(self, request, exchange)
        call = asyncio.wrap_future(self._threads.submit(fetch.run, deadline))
        try:
            await asyncio.wait([call], timeout=deadline - time.monotonic())
        finally:
            if not call.done():
                call.cancel()
                fetch.abandon()
            elif not call.cancelled():
                # If this task was cancelled in the same moment, nobody else asks for the error.
                call.exception()
        if call.cancelled():
            raise TimeoutError
        try:
            call.result()
        finally:
            # The error holds this frame, and by its own frames memory of the value.
            del call

    def take(self, origin: Origin, host: str) -> _Connection:
        """Return a connection that was kept and is still open, or one that is yet to be made."""
        if not self._places.acquire(timeout=within(None, TimeoutError)):
            raise TimeoutError
        try:
            while (kept := self._kept(origin)) is not None:
                if kept.is_usable():
                    return kept
                kept.hang_up()
            return _Connection(origin, host, self._ssl)
        except BaseException:
            self._places.release()
            raise

    def _kept(self, origin: Origin) -> _Connection | None:
        with self._lock:
            found = next((one for one in reversed(self._idle) if one.origin == origin), None)
            if found is not None:
                self._idle.remove(found)
        return found

    def give_back(self, connection: _Connection, *, reusable: bool) -> None:
        """Keep a connection that can be used again, close another one, and those that nobody used for long."""
        self._places.release()
        out: list[_Connection] = []
        with self._lock:
            (out if self._closed or not reusable else self._idle).append(connection)
            now = connection.idle_since = time.monotonic()
            while self._idle and (len(self._idle) > KEPT or now - self._idle[0].idle_since > KEPT_SECONDS):
                out.append(self._idle.pop(0))
        for one in out:
            one.hang_up()

    def close(self) -> None:
        """Close the connections: one that is in use when it is given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.hang_up()
        self._threads.shutdown(wait=False)


class _Fetch:
    """A request on its way, which another thread may break off."""

    def __init__(self, pool: Downloads, request: httpx.Request, exchange: Download) -> None:
        self._pool, self._request, self._exchange = pool, request, exchange
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._abandoned = False

    def run(self, deadline: float) -> None:
        """Take a connection, ask, and take the answer, all within the deadline."""
        url = self._request.url
        with until(deadline):
            connection = self._pool.take(origin_of(url), url.raw_host.decode("ascii"))
            reusable = False
            try:
                if self._use(connection):
                    connection.open(self._request.extensions["timeout"])
                    reusable = self._exchanged(connection) and self._use(None)
            finally:
                self._use(None)
                self._pool.give_back(connection, reusable=reusable)

    def _use(self, connection: _Connection | None) -> bool:
        """Say what is to be broken off; return whether somebody still waits."""
        with self._lock:
            self._connection = connection
            return not self._abandoned

    def abandon(self) -> None:
        """Let it fail soon: nobody waits for it any more."""
        with self._lock:
            self._abandoned = True
            if self._connection is not None:
                self._connection.break_off()

    def _exchanged(self, connection: _Connection) -> bool:
        """Ask and take the answer; return whether the connection can be used again."""
        exchange = self._exchange
        connection.ask(self._request)
        with connection.getresponse() as response:
            headers = httpx.Headers(response.getheaders(), encoding="iso-8859-1")
            exchange.begin(response.status, headers)
            with exchange.room() as room:
                filled = 0
                while filled < len(room) and (count := _read(response, room, filled)):
                    filled += count
                    exchange.fill(filled)
            # A refusal, or more than was asked for.
            while part := response.read1(_PIECE):
                exchange.feed(part)
            return not response.will_close


def _read(response: http.client.HTTPResponse, room: memoryview, start: int) -> int:
    with room[start : start + _ROOM] as rest:
        return response.readinto(rest)


class _Response(http.client.HTTPResponse):
    """The answer itself: http.client passes over 100 alone of what may come before it."""

    def begin(self) -> None:
        super().begin()
        while self.status < 200:
            cast(Any, self).headers = None
            super().begin()


class _Connection(http.client.HTTPConnection):
    """A connection of which each step ends at the deadline of the thread that takes it."""

    response_class = _Response
    idle_since = 0.0

    def __init__(self, origin: Origin, host: str, ssl_context: ssl.SSLContext) -> None:
        super().__init__(host, origin.port)
        self.origin = origin
        self._ssl = ssl_context
        self._socket: socket.socket | None = None
        self._is_open = self._is_broken_off = False

    def open(self, limits: Mapping[str, float]) -> None:
        """Connect unless that was done before; ``limits`` are httpx's of one request."""
        if not self._is_open:
            try:
                self._connect(limits["connect"])
            except (OSError, ValueError) as error:
                raise httpx.ConnectError("") from error
            self._is_open = True
        assert self._socket is not None
        self.sock: Any = _Socket(self._socket, limits["read"])

    def _connect(self, seconds: float) -> None:
        *others, last = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for place in others:
            with suppress(OSError):
                self._reach(place, seconds)
                break
        else:
            self._reach(last, seconds)
        if self.origin.scheme == "https":
            # The handshake waits until it can be broken off.
            self._socket = found = self._ssl.wrap_socket(
                cast(socket.socket, self._socket), server_hostname=self.host, do_handshake_on_connect=False
            )
            self._check()
            found.settimeout(within(seconds, TimeoutError))
            found.do_handshake()

    def _reach(self, place: tuple[Any, ...], seconds: float) -> None:
        family, kind, protocol, _, address = place
        self._socket = found = socket.socket(family, kind, protocol)
        try:
            self._check()
            found.settimeout(within(seconds, TimeoutError))
            found.connect(address)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            found.close()
            raise

    def _check(self) -> None:
        if self._is_broken_off:
            raise OSError

    def ask(self, request: httpx.Request) -> None:
        target = request.url.raw_path.decode("ascii")
        self.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            self.putheader(name, value)
        self.endheaders()

    def is_usable(self) -> bool:
        """Say whether it was used lately and is still open: the end of a connection is something to read."""
        found = self._socket
        if found is None or time.monotonic() - self.idle_since > KEPT_SECONDS:
            return False
        try:
            found.settimeout(0)
            _PLAIN.recv(found, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def break_off(self) -> None:
        """End what another thread waits for on it."""
        self._is_broken_off = True
        if self._socket is not None:
            with suppress(OSError):
                _PLAIN.shutdown(self._socket, socket.SHUT_RDWR)

    def hang_up(self) -> None:
        self.close()
        if self._socket is not None:
            self._socket.close()


class _Socket:
    """What http.client wants of a socket, within the deadline of the thread; closing is the connection's business."""

    def __init__(self, plain: socket.socket, seconds: float) -> None:
        self._plain, self._seconds = plain, seconds

    def sendall(self, data: bytes) -> None:
        self._plain.settimeout(within(self._seconds, TimeoutError))
        self._plain.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Arriving(self._plain, self._seconds))

    def close(self) -> None:
        """An answer that ends with its connection is still to be read."""


class _Arriving(io.RawIOBase):
    """The bytes that arrive, read into memory that is given."""

    def __init__(self, plain: socket.socket, seconds: float) -> None:
        self._plain, self._seconds = plain, seconds

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self._plain.settimeout(within(self._seconds, TimeoutError))
        return self._plain.recv_into(into)
