"""Sync connections on which nothing outlasts a call: httpcore's own limits begin anew with each address and each piece.

A call in async code is a task that ends with its deadline; one on a thread ends only where its socket does.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpcore
import httpx


class _Call(threading.local):
    deadline = math.inf


_call: Final = _Call()


@contextmanager
def until(deadline: float) -> Generator[None]:
    """Bound what this thread does on bounded connections; on ``time.monotonic``'s clock."""
    _call.deadline = deadline
    try:
        yield
    finally:
        _call.deadline = math.inf


def within(timeout: float | None, late: type[Exception]) -> float:
    """Return how many seconds a step of this thread's call may take; raise the error if its time is over."""
    left = _call.deadline - time.monotonic()
    if left <= 0:
        raise late
    return left if timeout is None else min(timeout, left)


class BoundedTransport(httpx.HTTPTransport):
    """httpx's transport over connections that know the deadline of the call."""

    def __init__(self, ssl_context: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify=ssl_context, trust_env=False, limits=limits)
        # httpx has no argument for it. Were its pool called otherwise one day, only the limits would be the old ones.
        self._pool = httpcore.ConnectionPool(
            ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        def connect(address: str) -> httpcore.NetworkStream:
            seconds = within(timeout, httpcore.ConnectTimeout)
            return _Stream(self._plain.connect_tcp(address, port, seconds, local_address, socket_options))

        *others, last = _addresses(host, port)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return connect(address)
        return connect(last)


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = [one[4] for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        return [socket.getnameinfo(one, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0] for one in found]
    except (OSError, UnicodeError):
        raise httpcore.ConnectError from None


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, within(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, within(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = within(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
