"""The way to a store in this process: messages go straight to the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio

from ..errors import UnavailableError
from ..messages import Message, PrepareRead
from ..service import StateService


class LocalTransport:
    """Carries messages to a service; in async code writes and files go to a thread and are not abandoned there."""

    def __init__(self, service: StateService, *, on_close: Callable[[], object] | None = None) -> None:
        self.service = service
        self._on_close = on_close

    def send(self, message: Message, deadline: float) -> Any:
        return self.service.handle(message)

    async def asend(self, message: Message, deadline: float) -> Any:
        if type(message) is PrepareRead:
            # A point read takes microseconds, a hop to a thread a hundred of them.
            answered, found = self.service.read_at_once(message)
            if answered:
                return found
        return await _on_a_thread(self.service.handle, message)

    def close(self) -> None:
        self.service.close()
        if self._on_close is not None:
            self._on_close()

    async def aclose(self) -> None:
        await _on_a_thread(self.close)


async def _on_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a thread and wait for its end even if the task is cancelled meanwhile.

    anyio's shield does not hold off asyncio's own ``Task.cancel()``: the write would land behind its caller's back,
    over a later one perhaps.
    """
    call = asyncio.ensure_future(anyio.to_thread.run_sync(function, *arguments))
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        # Its error, if it has one, is nobody's any more.
        _ = call.cancelled() or call.exception()
        raise cancelled
    return call.result()


class ClosedTransport:
    """What is left of a client after it was closed."""

    def send(self, message: Message, deadline: float) -> Any:
        raise UnavailableError("this memory is closed", code="closed")

    async def asend(self, message: Message, deadline: float) -> Any:
        raise UnavailableError("this memory is closed", code="closed")

    def close(self) -> None:
        """Closing twice is no error."""

    async def aclose(self) -> None:
        """Closing twice is no error."""
