"""Waiting for what must not be abandoned when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import anyio

from ..errors import UnavailableError
from ..executors import Executor

T = TypeVar("T")


async def end_of(call: asyncio.Future[Any]) -> None:
    """Wait until a call is over, however often the waiting task is cancelled; its error is nobody's any more."""
    # anyio would go on cancelling without its own shield, which does not hold off asyncio's Task.cancel().
    with anyio.CancelScope(shield=True):
        while not call.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([call])
    _ = call.cancelled() or call.exception()


async def to_the_end(call: asyncio.Future[T]) -> T:
    """Return what a call returns; a task that is cancelled meanwhile, or was before, waits for its end first."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await end_of(call)
        raise


async def close_on_thread(close: Callable[[], object]) -> None:
    """Carry out, on a thread of its own and to the end, what nobody could do later."""
    thread = Executor(1, "agent-memory-close")
    try:
        work = thread.submit(close)
    except UnavailableError:
        # There is none to be had.
        close()
        return
    thread.shutdown(wait=False)
    await to_the_end(asyncio.wrap_future(work))
