"""What the sync and the async face of a memory share: where it leads, how it is opened, and who writes.

A client survives ``fork`` and pickling: it holds a small frozen configuration and opens what that names, anew in each
process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from types import NoneType
from typing import Any, Final, NamedTuple, TypeVar

from .checks import check_type
from .drivers import Flow, Transport, run, run_async
from .errors import SerializationError
from .flows import Transfer
from .ids import uuid7
from .messages import Scope
from .signing import Keyring
from .transports.local import ClosedTransport
from .turns import Turns

T = TypeVar("T")


class OpenRequest:
    """A request that is being served: what every write in it carries, and the request that it was opened in."""

    def __init__(self, client: Client, request_id: str, bound: Mapping[str, str], outer: OpenRequest | None) -> None:
        self.client = client
        self.request_id = request_id
        self.bound = bound
        self.outer = outer


current_request: ContextVar[OpenRequest | None] = ContextVar("agent_memory_request", default=None)

_abandoned: Final[list[Transport]] = []
"""Connections that a forked child inherited. They are the parent's: closing or collecting them here would harm it."""

# One that its thread may take again: a signal handler that comes here too does not wait for itself.
_reopening = threading.RLock()


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    global _reopening
    _reopening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Opened(NamedTuple):
    """What an address leads to."""

    transport: Transport
    keyring: Keyring


class Config(NamedTuple):
    """Everything that it takes to open a memory again in another process."""

    url: str
    application: str
    namespace: str
    token: str | None
    signing_keys: tuple[bytes, ...]
    timeout: float
    transfer: Transfer
    blob_hosts: tuple[str, ...]
    open: Callable[[Config], Opened]
    blobs: str | None = None
    volatile_owner: int | None = None
    """The process that made a volatile store and removes it."""

    def __repr__(self) -> str:
        # The address may hold a password, and the token and the keys are secrets.
        return f"Config(application={self.application!r}, namespace={self.namespace!r})"


class Client:
    """Runs flows against the store that a configuration names."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scope = Scope(config.namespace, config.application)
        self._process = os.getpid()
        self._closed = False
        self.turns = Turns()
        self._transport, self.keyring = config.open(config)

    def run(self, flow: Flow[T]) -> T:
        """Run a flow on this thread, within the configured time."""
        return run(flow, self.transport(), time.monotonic() + self.config.timeout)

    async def arun(self, flow: Flow[T]) -> T:
        """Run a flow on the event loop, within the configured time."""
        return await run_async(flow, self.transport(), time.monotonic() + self.config.timeout)

    def iterate(self, page: Callable[[str | None], Flow[tuple[list[T], str | None]]]) -> Iterator[T]:
        """Iterate over what a paged flow finds; each page is fetched when the one before it is used up."""
        cursor: str | None = None
        while True:
            found, cursor = self.run(page(cursor))
            yield from found
            if cursor is None:
                return

    async def aiterate(self, page: Callable[[str | None], Flow[tuple[list[T], str | None]]]) -> AsyncIterator[T]:
        """The async twin of ``iterate``."""
        cursor: str | None = None
        while True:
            found, cursor = await self.arun(page(cursor))
            for one in found:
                yield one
            if cursor is None:
                return

    def write_id(self) -> str | None:
        """Return a new name for a change that may have to be sent twice; None where no reply gets lost."""
        return uuid7() if self.transport().loses_replies else None

    def transport(self) -> Transport:
        if self._process != os.getpid():
            self._reopen()
        return self._transport

    def _reopen(self) -> None:
        with _reopening:
            if self._process == os.getpid():
                # Another thread was faster.
                return
            _abandoned.append(self._transport)
            self.turns = Turns()
            if not self._closed:
                self._transport, self.keyring = self.config.open(self.config)
            self._process = os.getpid()

    def close(self) -> None:
        """Close the connections of this process; calls afterwards raise UnavailableError."""
        transport, self._transport, self._closed = self.transport(), ClosedTransport(), True
        transport.close()

    async def aclose(self) -> None:
        """Close the connections of this process; calls afterwards raise UnavailableError."""
        transport, self._transport, self._closed = self.transport(), ClosedTransport(), True
        await transport.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.config.volatile_owner is not None:
            raise SerializationError("a memory:// store lives in this process alone and cannot be pickled; use a file")
        return (Client, (self.config,))


def current_request_id() -> str | None:
    """Return the id of the request that is open here."""
    request = current_request.get()
    return None if request is None else request.request_id


def provenance(bound: Mapping[str, str] | None, reason: str | None) -> Mapping[str, str] | None:
    """Return who writes and why: what the open request says, what the context is bound to, and the given reason."""
    check_type(reason, (str, NoneType), "reason is a str")
    request = current_request.get()
    if request is None and bound is None and reason is None:
        return None
    return {
        **({} if request is None else request.bound),
        **(bound or {}),
        **({} if reason is None else {"reason": reason}),
    }
