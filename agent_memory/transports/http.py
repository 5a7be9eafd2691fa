"""The way to a store behind a server: each message is one HTTP request, one attempt; the flows repeat it.

Requests go through httpx's transports, below its clients, and downloads by ``http.client``: no URL in anybody's log, no
redirects, no cookies or proxies from the environment. No exception of either gets out, not even as the context of
another: their texts repeat URLs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import httpx

from ..disk import OUT_OF_FILES
from ..errors import (
    AgentMemoryError,
    InvalidRequestError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from ..keys import check_scope_name
from ..messages import Backup, Check, CommitWrite, GetRange, Message, PutChunk, Scope, SetTimes, Sweep, searches
from ..wire import LOGGED_ID, encode_request
from ..wire.requests import scope_of
from .async_pool import CONNECTIONS, KEPT, KEPT_SECONDS, AsyncPool, close_from_outside
from .bounded import BoundedTransport, until
from .cancellation import close_on_thread, to_the_end
from .downloads import Downloads
from .exchanges import ApiCall, Download, Exchange, Slices, Upload
from .trust import BlobHosts, http_url, origin_of, ssl_context_for, tls_problem

_CONNECT_SECONDS: Final = 5.0
_SMALL_SECONDS: Final = 10.0
# Ten of which it may wait on the server for those of others, and ten until the server says that it takes too long.
_SEARCH_SECONDS: Final = 25.0
# Bytes a second of the slowest link: what was sent is still on its way when the system has taken all of it.
_SLOWEST: Final = 50_000
_TRANSFER_SECONDS: Final = 30.0
_FAILURES: Final = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, HTTPException, OSError)
_AGENT: Final = (b"User-Agent", b"agent-memory")
# Azure takes no upload without it; other stores do not know it.
_BLOCK_BLOB: Final = (b"x-ms-blob-type", b"BlockBlob")


class HttpTransport:
    """Carries messages of one application to a server.

    Thread-safe. One pool of connections serves all threads, and one each event loop; downloads of both share another.

    Args:
        base_url: the server's address, ``http`` or ``https``, without the scope's path.
        token: sent to the API's own routes and nowhere else.
        blob_hosts: ``host`` or ``host:port`` of object stores that chunks may be fetched from and sent to, over https;
            a loopback host may be reached over http.
        request_id: gives the id that the server's log shows; one that no header can hold as it is, is not sent.

    Certificates are checked with the authorities that ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` name, else with those that
    come with ``certifi``.
    """

    loses_replies: bool = True

    def __init__(
        self,
        base_url: str,
        namespace: str,
        application: str,
        token: str | None = None,
        blob_hosts: Sequence[str] = (),
        request_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        base = http_url(base_url)
        if base is None or base.query or base.fragment:
            raise InvalidRequestError(
                "a server's address is http:// or https:// with a host, and without a password or a query"
            )
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise InvalidRequestError("a token is printable ASCII without spaces")
        self._scope = Scope(check_scope_name(namespace, "a namespace"), check_scope_name(application, "an application"))
        self._origin = origin_of(base)
        self._root = f"{str(base).rstrip('/')}/v1/namespaces/{namespace}/applications/{application}"
        self._request_id = request_id
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
        self._blob_hosts = BlobHosts(blob_hosts)
        self._ssl = ssl_context_for(https=base.scheme == "https" or bool(blob_hosts))
        limits = httpx.Limits(
            max_connections=CONNECTIONS, max_keepalive_connections=KEPT, keepalive_expiry=KEPT_SECONDS
        )
        self._pool = BoundedTransport(self._ssl, limits)
        self._downloads = Downloads(self._ssl)
        self._async_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPool] = WeakKeyDictionary()
        self._closed = False

    def send(self, message: Message, deadline: float) -> Any:
        """Answer a message from this thread, in one attempt."""
        request, exchange = self._start(message, deadline)
        try:
            if isinstance(exchange, Download):
                self._downloads.fetch(request, exchange, deadline)
            else:
                self._exchange(request, exchange, deadline)
            failure = None
        except _FAILURES as error:
            failure = self._failure(error, message, deadline)
        if failure is not None:
            # Outside the handler, so that the error does not carry httpx's as its context.
            raise failure
        return exchange.end()

    def _exchange(self, request: httpx.Request, exchange: Exchange, deadline: float) -> None:
        with until(deadline):
            response = self._pool.handle_request(request)
            try:
                exchange.begin(response.status_code, response.headers)
                for part in cast(Iterable[bytes], response.stream):
                    exchange.feed(part)
            finally:
                response.close()

    async def asend(self, message: Message, deadline: float) -> Any:
        """Answer a message from the event loop, in one attempt."""
        request, exchange = self._start(message, deadline)
        try:
            if isinstance(exchange, Download):
                await self._downloads.afetch(request, exchange, deadline)
            else:
                pool = await self._async_pool()
                await pool.exchange(request, exchange, deadline)
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
        headers = [*self._headers, (b"Content-Length", str(len(body)).encode())]
        request_id = self._request_id()
        if request_id is not None and LOGGED_ID.fullmatch(request_id):
            headers.append((b"X-Request-Id", request_id.encode()))
        seconds = min(remaining, _answer_seconds(message) + len(body) / _SLOWEST)
        return _request("POST", url, headers, httpx.ByteStream(body), seconds), ApiCall(message, self._token)

    def _upload(self, message: PutChunk, remaining: float) -> tuple[httpx.Request, Exchange]:
        url = self._accepted(message.chunk.uri)
        headers = [(b"Host", url.netloc), _AGENT, (b"Content-Length", str(len(message.data)).encode())]
        if origin_of(url) != self._origin:
            headers.append(_BLOCK_BLOB)
        seconds = min(remaining, _TRANSFER_SECONDS)
        return _request("PUT", url, headers, Slices(message.data), seconds), Upload()

    def _download(self, message: GetRange, remaining: float) -> tuple[httpx.Request, Exchange]:
        url = self._accepted(message.chunk.uri)
        exchange = Download(message.chunk.size, message.offset, message.into, message.progress)
        headers = [(b"Host", url.netloc), _AGENT, (b"Accept-Encoding", b"identity")]
        if not exchange.whole:
            last = message.offset + len(message.into) - 1
            headers.append((b"Range", f"bytes={message.offset}-{last}".encode()))
        seconds = min(remaining, _TRANSFER_SECONDS)
        return _request("GET", url, headers, httpx.ByteStream(b""), seconds), exchange

    def _accepted(self, uri: str) -> httpx.URL:
        """Return a chunk's URL if it leads to the API's own origin or to a configured blob host."""
        url = http_url(uri)
        if url is not None and ((origin := origin_of(url)) == self._origin or origin in self._blob_hosts):
            return url
        raise ProtocolError("the server named a place for a chunk that this client does not trust: see blob_hosts")

    async def _async_pool(self) -> AsyncPool:
        loop = asyncio.get_running_loop()
        pool = self._async_pools.get(loop)
        if pool is None:
            for other in self._loops():
                if other.is_closed():
                    self._async_pools.pop(other, None)
            pool = self._async_pools[loop] = AsyncPool(self._ssl)
            await pool.close_with_the_loop(lambda: self._async_pools.pop(loop, None))
        return pool

    def _loops(self) -> list[asyncio.AbstractEventLoop]:
        """List the event loops that have a pool: in one step, for one that ends on its own thread takes its out."""
        return [loop for reference in self._async_pools.keyrefs() if (loop := reference()) is not None]

    def _failure(self, error: Exception, message: Message, deadline: float) -> AgentMemoryError:
        is_transfer = isinstance(message, PutChunk | GetRange)
        # Of a chunk's URL, which is signed, nothing is told.
        who = "the blob store" if is_transfer else f"the server at {self._origin.host}:{self._origin.port}"
        if time.monotonic() >= deadline:
            return TimedOutError(f"{who} did not answer in the call's time")
        reason = tls_problem(error)
        if reason is not None:
            return UnavailableError(f"no TLS connection to {who} is possible: {reason}", code="tls_failed")
        if _out_of_files(error):
            return UnavailableError(f"no connection to {who} can be opened: too many open files", code="overloaded")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return UnavailableError(f"{who} cannot be reached", code="no_answer")
        return UnavailableError(f"the connection to {who} broke before the answer was whole", code="no_answer")

    def close(self) -> None:
        """Close the connections; those of an event loop that runs elsewhere are closed there, within seconds."""
        self._closed = True
        self._pool.close()
        self._downloads.close()
        for loop in self._loops():
            # One that is left to its loop is forgotten with it.
            pool = self._async_pools.pop(loop, None) if loop.is_closed() else self._async_pools.get(loop)
            if pool is not None:
                close_from_outside(loop, pool)

    async def aclose(self) -> None:
        """Close the connections, those of this event loop among them."""
        self._closed = True
        pool = self._async_pools.pop(asyncio.get_running_loop(), None)
        try:
            if pool is not None:
                await to_the_end(asyncio.ensure_future(pool.aclose()))
        finally:
            # Another event loop may be busy, or wait for this one.
            await close_on_thread(self.close)


def _out_of_files(error: Exception) -> bool:
    """Say whether this process, or the system, lets no further connection be opened."""
    # As in ``tls_problem``; what anyio raises was raised from the socket's.
    failure = error.__cause__ and error.__cause__.__context__
    known = (error, error.__cause__, failure, failure and failure.__cause__)
    return any(isinstance(one, OSError) and one.errno in OUT_OF_FILES for one in known)


def _answer_seconds(message: Message) -> float:
    """Return how long the server may take for its answer once the message is there."""
    if isinstance(message, CommitWrite) and message.data is None:
        # An uploaded blob is read to its end before it is committed.
        return 2 * _TRANSFER_SECONDS
    return _SEARCH_SECONDS if searches(message) else _SMALL_SECONDS


def _request(
    method: str,
    url: httpx.URL,
    headers: list[tuple[bytes, bytes]],
    stream: httpx.ByteStream | Slices,
    seconds: float,
) -> httpx.Request:
    """Return a request of which no step takes longer than so many seconds."""
    timeout = {"connect": min(seconds, _CONNECT_SECONDS), "read": seconds, "write": seconds, "pool": seconds}
    return httpx.Request(method, url, headers=headers, stream=stream, extensions={"timeout": timeout})
