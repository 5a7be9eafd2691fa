"""The way to a store behind a server: each message is one HTTP request, one attempt; the flows repeat it.

Requests go through httpx's transports, below its clients: no URL in anybody's log, no redirects, no cookies or proxies
from the environment. No httpx exception gets out, not even as the context of another: their texts repeat URLs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import AsyncIterable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import httpx

from ..errors import (
    AgentMemoryError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from ..keys import check_scope_name
from ..messages import Backup, Check, CommitWrite, GetRange, Message, PutChunk, Scope, SetTimes, Sweep
from ..wire import encode_request
from ..wire.requests import scope_of
from .bounded import BoundedTransport, until
from .cancellation import end_of
from .exchanges import ApiCall, Download, Exchange, Slices, Upload

_CONNECT_SECONDS: Final = 5.0
_SMALL_SECONDS: Final = 10.0
_TRANSFER_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 2.0
# A piece takes as long to handle as to copy: 64 MiB took 98 ms of CPU in httpcore's 64 KiB, 84 in these.
_LARGE_READ: Final = 256 * 1024
_CONNECTIONS: Final = 100
_KEPT: Final = 32
_KEPT_SECONDS: Final = 30.0
_FAILURES: Final = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError)
# Steps of httpcore's trace extension: between these and those, a cancelled connection is neither used nor closed.
_CONNECTED: Final = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})
_ON_ITS_WAY: Final = frozenset({"connection.start_tls.started", "http11.send_request_headers.started"})
_NO_COMMON_TLS: Final = frozenset(
    {
        "HTTP_REQUEST",
        "RECORD_LAYER_FAILURE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
_PORTS: Final = {"http": 80, "https": 443}
_AGENT: Final = (b"User-Agent", b"agent-memory")
# Azure takes no upload without it; other stores do not know it.
_BLOCK_BLOB: Final = (b"x-ms-blob-type", b"BlockBlob")


class Origin(NamedTuple):
    """Who answers at a URL; ``port`` None is any scheme's own."""

    scheme: str
    host: str
    port: int


class HttpTransport:
    """Carries messages of one application to a server.

    Thread-safe. One pool of connections serves all threads, and one each event loop.

    Args:
        base_url: the server's address, ``http`` or ``https``, without the scope's path.
        token: sent to the API's own routes and nowhere else.
        blob_hosts: ``host`` or ``host:port`` of object stores that chunks may be fetched from and sent to, over https;
            a loopback host may be reached over http.
        ssl_context: what certificates are checked with; by default the authorities that ``SSL_CERT_FILE`` or
            ``SSL_CERT_DIR`` name, else those that come with ``certifi``.
    """

    def __init__(
        self,
        base_url: str,
        namespace: str,
        application: str,
        token: str | None = None,
        blob_hosts: Sequence[str] = (),
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        base = _parse(base_url)
        if base is None or base.scheme not in _PORTS or not base.host or base.userinfo or base.query or base.fragment:
            raise InvalidRequestError("a server's address is http:// or https:// with a host, and without a password")
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise InvalidRequestError("a token is printable ASCII without spaces")
        self._scope = Scope(check_scope_name(namespace, "a namespace"), check_scope_name(application, "an application"))
        self._origin = _origin(base)
        self._root = f"{str(base).rstrip('/')}/v1/namespaces/{namespace}/applications/{application}"
        self._urls: dict[str, httpx.URL] = {}
        self._token = token
        self._headers = [
            (b"Host", base.netloc),
            _AGENT,
            (b"Accept-Encoding", b"identity"),
            (b"Content-Type", b"application/json"),
        ]
        if token is not None:
            self._headers.append((b"Authorization", f"Bearer {token}".encode()))
        self._blob_hosts = frozenset(host.lower() for host in blob_hosts)
        self._ssl = ssl_context or _ssl_context(base.scheme == "https" or bool(blob_hosts))
        limits = httpx.Limits(
            max_connections=_CONNECTIONS, max_keepalive_connections=_KEPT, keepalive_expiry=_KEPT_SECONDS
        )
        self._pool = BoundedTransport(self._ssl, limits)
        self._async_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _AsyncPool] = WeakKeyDictionary()
        self._closed = False

    def send(self, message: Message, deadline: float) -> Any:
        """Answer a message from this thread, in one attempt."""
        request, exchange = self._start(message, deadline)
        try:
            with until(deadline, _LARGE_READ if isinstance(message, GetRange) else 0):
                response = self._pool.handle_request(request)
                try:
                    exchange.begin(response.status_code, response.headers)
                    for part in cast(Iterable[bytes], response.stream):
                        exchange.feed(part)
                finally:
                    response.close()
            failure = None
        except _FAILURES as error:
            failure = self._failure(error, message, deadline)
        if failure is not None:
            # Outside the handler, so that the error does not carry httpx's as its context.
            raise failure
        return exchange.end()

    async def asend(self, message: Message, deadline: float) -> Any:
        """Answer a message from the event loop, in one attempt."""
        request, exchange = self._start(message, deadline)
        try:
            await _Call(self._async_pool(), request, exchange).end(deadline)
            failure = None
        except _FAILURES as error:
            failure = self._failure(error, message, deadline)
        if failure is not None:
            raise failure
        return exchange.end()

    def _start(self, message: Message, deadline: float) -> tuple[httpx.Request, Exchange]:
        if self._closed:
            raise UnavailableError("this memory is closed", code="closed")
        if isinstance(message, Sweep | Check | Backup | SetTimes):
            raise PermissionDeniedError(
                "looking after the store belongs to whoever runs the server: agent-memory sweep|check|backup --data …"
            )
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimedOutError("the call's time is over")
        if isinstance(message, PutChunk):
            return self._upload(message, remaining)
        if isinstance(message, GetRange):
            return self._download(message, remaining)
        return self._call(message, remaining)

    def _call(self, message: Message, remaining: float) -> tuple[httpx.Request, Exchange]:
        scope = scope_of(message)
        if scope[:2] != self._scope[:2]:
            raise InvalidRequestError("this connection speaks for another application")
        verb, body = encode_request(message)
        path = f"app_state/{verb}" if scope.request_id is None else f"request_state/{verb}"
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx.URL(f"{self._root}/{path}")
        # The server reads an uploaded blob to its end before it commits it.
        slow = isinstance(message, CommitWrite) and message.data is None
        request = httpx.Request(
            "POST",
            url,
            headers=[*self._headers, (b"Content-Length", str(len(body)).encode())],
            stream=httpx.ByteStream(body),
            extensions=_timeouts(min(remaining, 2 * _TRANSFER_SECONDS if slow else _SMALL_SECONDS)),
        )
        return request, ApiCall(message, self._token)

    def _upload(self, message: PutChunk, remaining: float) -> tuple[httpx.Request, Exchange]:
        url = self._accepted(message.chunk.uri)
        headers = [(b"Host", url.netloc), _AGENT, (b"Content-Length", str(len(message.data)).encode())]
        if _origin(url) != self._origin:
            headers.append(_BLOCK_BLOB)
        request = httpx.Request(
            "PUT",
            url,
            headers=headers,
            stream=Slices(message.data),
            extensions=_timeouts(min(remaining, _TRANSFER_SECONDS)),
        )
        return request, Upload()

    def _download(self, message: GetRange, remaining: float) -> tuple[httpx.Request, Exchange]:
        url = self._accepted(message.chunk.uri)
        exchange = Download(message.chunk.size, message.offset, message.into)
        headers = [(b"Host", url.netloc), _AGENT, (b"Accept-Encoding", b"identity")]
        if not exchange.whole:
            last = message.offset + len(message.into) - 1
            headers.append((b"Range", f"bytes={message.offset}-{last}".encode()))
        request = httpx.Request(
            "GET",
            url,
            headers=headers,
            stream=httpx.ByteStream(b""),
            extensions=_timeouts(min(remaining, _TRANSFER_SECONDS)),
        )
        return request, exchange

    def _accepted(self, uri: str) -> httpx.URL:
        """Return a chunk's URL if it leads to the API's own origin or to a configured blob host."""
        url = _parse(uri)
        if url is not None and url.scheme in _PORTS and url.host and not url.userinfo:
            origin = _origin(url)
            if origin == self._origin or self._is_blob_host(origin):
                return url
        raise ProtocolError("the server named a place for a chunk that this client does not trust: see blob_hosts")

    def _is_blob_host(self, origin: Origin) -> bool:
        if origin.scheme != "https" and not _is_loopback(origin.host):
            return False
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        names = {f"{host}:{origin.port}"}
        if origin.port == _PORTS[origin.scheme]:
            names.add(host)
        return not names.isdisjoint(self._blob_hosts)

    def _async_pool(self) -> _AsyncPool:
        loop = asyncio.get_running_loop()
        pool = self._async_pools.get(loop)
        if pool is None:
            pool = self._async_pools[loop] = _AsyncPool(self._ssl)
        return pool

    def _failure(self, error: Exception, message: Message, deadline: float) -> AgentMemoryError:
        is_transfer = isinstance(message, PutChunk | GetRange)
        # Of a chunk's URL, which is signed, nothing is told.
        who = "the blob store" if is_transfer else f"the server at {self._origin.host}:{self._origin.port}"
        if time.monotonic() >= deadline:
            return TimedOutError(f"{who} did not answer in the call's time")
        reason = _tls_reason(error)
        if reason is not None:
            return UnavailableError(f"no TLS connection to {who} is possible: {reason}", code="tls_failed")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return UnavailableError(f"{who} cannot be reached", code="no_answer")
        return UnavailableError(f"the connection to {who} broke before the answer was whole", code="no_answer")

    def close(self) -> None:
        """Close the connections; those of an event loop that runs elsewhere are closed there, within seconds."""
        self._closed = True
        self._pool.close()
        for loop, pool in list(self._async_pools.items()):
            _close_from_outside(loop, pool.transport)
        self._async_pools.clear()

    async def aclose(self) -> None:
        """Close the connections, those of this event loop among them."""
        self._closed = True
        pool = self._async_pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.transport.aclose()
        self.close()


class _AsyncPool:
    """The connections of one event loop.

    Waiting for one is done here: one that httpcore has just made for a waiting request is never used, nor made room
    for, if that request is cancelled then.
    """

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        limits = httpx.Limits(max_keepalive_connections=_KEPT, keepalive_expiry=_KEPT_SECONDS)
        self.transport = httpx.AsyncHTTPTransport(verify=ssl_context, trust_env=False, limits=limits)
        self.places = asyncio.Semaphore(_CONNECTIONS)


class _Call:
    """A request in a task of its own, which is cancelled at most once, and only where httpcore takes it well.

    A connection that is cancelled when it was just made, or while it is given back, counts as taken for ever: anyio's
    shield, which guards the latter, does not hold off asyncio's ``Task.cancel()``.
    """

    def __init__(self, pool: _AsyncPool, request: httpx.Request, exchange: Exchange) -> None:
        self._fragile = self._abandoned = False
        request.extensions["trace"] = self._follow
        self._task = asyncio.ensure_future(self._run(pool, request, exchange))

    async def _run(self, pool: _AsyncPool, request: httpx.Request, exchange: Exchange) -> None:
        async with pool.places:
            response = await pool.transport.handle_async_request(request)
            try:
                exchange.begin(response.status_code, response.headers)
                async for part in cast(AsyncIterable[bytes], response.stream):
                    exchange.feed(part)
            finally:
                self._fragile = True
                await response.aclose()

    async def _follow(self, event: str, _: object) -> None:
        """Take note of how far httpcore is."""
        if event in _CONNECTED:
            self._fragile = True
        elif event in _ON_ITS_WAY:
            self._fragile = False
            if self._abandoned:
                # It could not be cancelled before; here httpcore closes the connection.
                raise asyncio.CancelledError

    async def end(self, deadline: float) -> None:
        """Wait until the exchange is over; raise TimeoutError if it is not by the deadline."""
        try:
            await asyncio.wait([self._task], timeout=deadline - time.monotonic())
        finally:
            if not self._task.done():
                self._abandoned = True
                if not self._fragile:
                    self._task.cancel()
                await end_of(self._task)
            elif not self._task.cancelled():
                # If this task was cancelled in the same moment, nobody else asks for the other's error.
                self._task.exception()
        if self._task.cancelled():
            raise TimeoutError
        self._task.result()


def _close_from_outside(loop: asyncio.AbstractEventLoop, pool: httpx.AsyncHTTPTransport) -> None:
    closing: Coroutine[Any, Any, None] = pool.aclose()
    if loop.is_closed():
        # Its sockets went with it; nothing can run there any more.
        closing.close()
    elif loop is _running_loop():
        _tasks.add(task := loop.create_task(closing))
        task.add_done_callback(_tasks.discard)
    elif loop.is_running():
        try:
            # A loop that is busy for longer closes them when it comes to it.
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(closing, loop).result(_CLOSE_SECONDS)
        except RuntimeError:
            closing.close()
    elif _running_loop() is None:
        loop.run_until_complete(closing)
    else:
        closing.close()


# An event loop keeps only weak references to its tasks.
_tasks: Final[set[asyncio.Task[None]]] = set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _timeouts(seconds: float) -> dict[str, Any]:
    return {
        "timeout": {
            "connect": min(seconds, _CONNECT_SECONDS),
            "read": seconds,
            "write": seconds,
            "pool": seconds,
        }
    }


def _parse(text: str) -> httpx.URL | None:
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError, TypeError):
        return None


def _origin(url: httpx.URL) -> Origin:
    return Origin(url.scheme, url.host.lower(), url.port or _PORTS[url.scheme])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ssl_context(needed: bool) -> ssl.SSLContext:
    # Reading the certificates takes 20 ms. Without them every https connection is refused, which is right: none is due.
    if not needed:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return httpx.create_ssl_context()
    except OSError:
        raise InvalidRequestError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read as PEM"
        ) from None


def _tls_reason(error: Exception) -> str | None:
    """Return what is in the way of TLS, where trying again would not help."""
    # httpx's error comes from httpcore's, which was raised while it handled the one of the connection. No further: what
    # that one was raised in may be an error that the caller is just handling.
    failure = error.__cause__ and error.__cause__.__context__
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"{failure.verify_message} (SSL_CERT_FILE can name the authorities to trust)"
    if isinstance(failure, ssl.SSLError) and failure.reason in _NO_COMMON_TLS:
        return f"{failure.reason.lower().replace('_', ' ')} (an http:// address speaks none)"
    return None
