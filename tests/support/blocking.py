"""A blocking face for the async API, so that the contract is written once, as sync tests.

Whatever has to be awaited is awaited on the event loop of a blocking portal, in the caller's context variables.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import wraps
from typing import Any

from anyio.from_thread import BlockingPortal

from agent_memory import (
    AsyncAgentMemory,
    AsyncCollection,
    AsyncDocument,
    AsyncEntity,
    AsyncRequestContext,
    AsyncState,
)

_FACES = (AsyncAgentMemory, AsyncCollection, AsyncDocument, AsyncEntity, AsyncRequestContext, AsyncState)


class Blocking:
    """Stands for an object of the async API and has the methods of its sync twin."""

    def __init__(self, target: Any, portal: BlockingPortal) -> None:
        self._target = target
        self._portal = portal

    def __getattr__(self, name: str) -> Any:
        return _faced(getattr(self._target, name), self._portal)

    def __repr__(self) -> str:
        return repr(self._target)

    def __reduce__(self) -> Any:
        raise TypeError("pickle unwrap(…) of it: a portal stays in its process")

    def __enter__(self) -> Blocking:
        self._portal.call(self._target.__aenter__)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._portal.call(self._target.__aexit__, *failure)


def unwrap(value: Any) -> Any:
    """Return the object of the API that a test holds, async or sync."""
    return value._target if isinstance(value, Blocking) else value


def wait_for(portal: BlockingPortal, awaitable: Awaitable[Any]) -> Any:
    """Return the result of an awaitable, awaited on the portal's event loop."""

    async def await_it() -> Any:
        return await awaitable

    return portal.call(await_it)


def _faced(value: Any, portal: BlockingPortal) -> Any:
    if isinstance(value, _FACES):
        return Blocking(value, portal)
    return _method(value, portal) if callable(value) else value


def _method(method: Callable[..., Any], portal: BlockingPortal) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if isinstance(result, Awaitable):
            return _faced(wait_for(portal, result), portal)
        if isinstance(result, AsyncIterator):
            return _iterated(result, portal)
        if isinstance(result, AbstractAsyncContextManager) and not isinstance(result, _FACES):
            return portal.wrap_async_context_manager(result)
        if isinstance(result, AbstractContextManager) and not isinstance(result, _FACES):
            return _entered(result, portal)
        return _faced(result, portal)

    return call


def _iterated(iterator: AsyncIterator[Any], portal: BlockingPortal) -> Iterator[Any]:
    try:
        while True:
            try:
                yield portal.call(iterator.__anext__)
            except StopAsyncIteration:
                return
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            portal.call(close)


@contextmanager
def _entered(manager: AbstractContextManager[Any], portal: BlockingPortal) -> Generator[Any]:
    with manager as value:
        yield _faced(value, portal)
