"""The way to a store in this process: messages go straight to the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from ..errors import TimedOutError, UnavailableError
from ..executors import Executor
from ..messages import Message, PrepareRead
from ..service import StateService
from .cancellation import close_on_thread, end_of

_THREADS: Final = 40


class _Threads:
    """The threads of one event loop: many, and one for what takes turns anyway.

    Of many that wait for one lock, those that have it already get it again, and the others are left waiting.
    """

    def __init__(self) -> None:
        self.many = Executor(_THREADS, "agent-memory")
        self.one = Executor(1, "agent-memory-write")


class LocalTransport:
    """Carries messages to a service; in async code writes and files go to a thread and are not abandoned there."""

    def __init__(self, service: StateService, *, on_close: Callable[[], object] | None = None) -> None:
        self.service = service
        # A commit to a file has failed or has not; a connection may break behind one.
        self.loses_replies = not service.catalog.is_file
        self._on_close = on_close
        # An event loop's threads end with it, and are none of a forked child's.
        self._threads: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()

    def send(self, message: Message, deadline: float) -> Any:
        return self.service.handle(message)

    async def asend(self, message: Message, deadline: float) -> Any:
        if type(message) is PrepareRead:
            # A point read takes microseconds, a hop to a thread a hundred of them.
            answered, found = self.service.read_at_once(message)
            if answered:
                return found
        return await self._on_a_thread(self.service.takes_turns(message), self._handle, message, deadline)

    def _handle(self, message: Message, deadline: float) -> Any:
        if time.monotonic() > deadline:
            raise TimedOutError("the time for this call ran out while others were carried out")
        return self.service.handle(message)

    def close(self) -> None:
        self.service.close()
        if self._on_close is not None:
            self._on_close()

    async def aclose(self) -> None:
        await close_on_thread(self.close)

    async def _on_a_thread(self, in_turn: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on a thread and wait for its end even if the task is cancelled meanwhile.

        An abandoned write would land behind its caller's back, over a later one perhaps.
        """
        # The hop is half of a read's CPU time: anyio's, which has to be a task to survive a cancellation, takes twice
        # as much as an executor's.
        loop = asyncio.get_running_loop()
        threads = self._threads.get(loop)
        if threads is None:
            threads = self._threads[loop] = _Threads()
        work = (threads.one if in_turn else threads.many).submit(function, *arguments)
        call = asyncio.wrap_future(work)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if work.cancel():
                # It had not begun.
                raise
            await end_of(call)
            raise


class ClosedTransport:
    """What is left of a client after it was closed."""

    loses_replies: bool = False

    def send(self, message: Message, deadline: float) -> Any:
        raise UnavailableError("this memory is closed", code="closed")

    async def asend(self, message: Message, deadline: float) -> Any:
        raise UnavailableError("this memory is closed", code="closed")

    def close(self) -> None:
        """Closing twice is no error."""

    async def aclose(self) -> None:
        """Closing twice is no error."""
