"""Async connections, one pool of them for each event loop: cancelling a call leaves none of them taken for ever."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ssl
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, cast

import httpx

from .cancellation import end_of
from .exchanges import Exchange

CONNECTIONS: Final = 100
KEPT: Final = 32
KEPT_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 2.0
# Steps of httpcore's trace extension: between these and those, a cancelled connection is neither used nor closed.
_CONNECTED: Final = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})
_ON_ITS_WAY: Final = frozenset({"connection.start_tls.started", "http11.send_request_headers.started"})


class AsyncPool:
    """The connections of one event loop.

    Waiting for one is done here: one that httpcore has just made for a waiting request is never used, nor made room
    for, if that request is cancelled then.
    """

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        limits = httpx.Limits(max_keepalive_connections=KEPT, keepalive_expiry=KEPT_SECONDS)
        self.transport = httpx.AsyncHTTPTransport(verify=ssl_context, trust_env=False, limits=limits)
        self.places = asyncio.Semaphore(CONNECTIONS)
        self.thread = threading.current_thread()
        self._ending: AsyncGenerator[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._calls = 0
        self._closed = False

    async def close_with_the_loop(self, forget: Callable[[], object]) -> None:
        """Close the connections, and forget the pool, when the event loop ends.

        An event loop that ends closes its asynchronous generators and tells nobody else; open connections hold on to
        it, so that neither would ever be collected.
        """

        async def ending() -> AsyncGenerator[None]:
            try:
                yield
            finally:
                self._ending = None
                forget()
                await self._close_connections()

        self._ending = ending()
        await anext(self._ending)

    async def aclose(self) -> None:
        """Close the connections, once the calls that are on their way have ended; on their own event loop."""
        self._closed = True
        await self._close_unused()

    async def exchange(self, request: httpx.Request, exchange: Exchange, deadline: float) -> None:
        """Send a request and feed its answer to the exchange; raise TimeoutError if that takes longer."""
        self._calls += 1
        try:
            await _Call(self, request, exchange).end(deadline)
        finally:
            self._calls -= 1
            if self._closed:
                await self._close_unused()

    async def _close_unused(self) -> None:
        # Closed under its calls, httpcore's pool would forget the connections that they go on to use or open.
        if self._calls:
            return
        await self._close_connections()
        ending, self._ending = self._ending, None
        if ending is not None:
            await ending.aclose()

    async def _close_connections(self) -> None:
        """Close them once: an event loop that ends meanwhile waits for it, too."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self.transport.aclose())
        await asyncio.shield(self._closing)


class _Call:
    """A request in a task of its own, which is cancelled at most once, and only where httpcore takes it well.

    A connection that is cancelled when it was just made, or while it is given back, counts as taken for ever: anyio's
    shield, which guards the latter, does not hold off asyncio's ``Task.cancel()``.
    """

    def __init__(self, pool: AsyncPool, request: httpx.Request, exchange: Exchange) -> None:
        self._fragile = self._abandoned = False
        request.extensions["trace"] = self._follow
        self._task = asyncio.ensure_future(self._run(pool, request, exchange))

    async def _run(self, pool: AsyncPool, request: httpx.Request, exchange: Exchange) -> None:
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


def close_from_outside(loop: asyncio.AbstractEventLoop, pool: AsyncPool) -> None:
    """Close the connections of an event loop from elsewhere, within seconds if it runs on another thread."""
    closing: Coroutine[Any, Any, None] = pool.aclose()
    if loop.is_closed():
        # Its sockets went with it; nothing can run there any more.
        closing.close()
    elif loop is _running_loop():
        _begin(loop, closing)
    elif loop.is_running():
        try:
            # A loop that is busy for longer closes them when it comes to it, one that is ending when it ends.
            with suppress(TimeoutError, concurrent.futures.CancelledError):
                asyncio.run_coroutine_threadsafe(closing, loop).result(_CLOSE_SECONDS)
        except RuntimeError:
            closing.close()
    elif _running_loop() is None and (pool.thread is threading.current_thread() or not pool.thread.is_alive()):
        loop.run_until_complete(closing)
    else:
        # It stands still, for a moment while it ends or until it is run again, and no other thread may run it.
        closing.close()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: _begin(loop, pool.aclose()))


def _begin(loop: asyncio.AbstractEventLoop, closing: Coroutine[Any, Any, None]) -> None:
    _tasks.add(task := loop.create_task(closing))
    task.add_done_callback(_tasks.discard)


# An event loop keeps only weak references to its tasks.
_tasks: Final[set[asyncio.Task[None]]] = set()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
