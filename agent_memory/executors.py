"""Threads to carry work out, to the end of the interpreter, and what it means that none can be started.

Python's own executors take none once the main thread is over. Threads that outlive it, and what ``atexit`` calls, still
read and write.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from .errors import UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class Executor(ThreadPoolExecutor):
    """Threads that carry functions out; where they take none any more, whoever brings a function carries it out.

    Where none can be started, the others do what they can; if there are none, ``submit`` raises an UnavailableError.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith("cannot schedule new futures"):
                raise
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _adjust_thread_count(self) -> None:
        """Start a thread for what ``submit`` has just put into the queue, under its lock, unless one is idle."""
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                # The only one there: left, it would be carried out when its caller has long been told that it was not.
                self._work_queue.get_nowait()
                raise translate(error) from None


async def on_thread(
    function: Callable[[], T], limiter: anyio.CapacityLimiter | None = None, *, abandon_on_cancel: bool = False
) -> T:
    """Carry a function out on one of anyio's threads; raise an UnavailableError, and do nothing, if there is none."""
    try:
        return await anyio.to_thread.run_sync(function, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        raise translate(error) from None


def translate(error: RuntimeError) -> Exception:
    """Name what a RuntimeError means if it says that the system starts no thread; else return it as it is."""
    if "start new thread" not in str(error):
        return error
    return UnavailableError("the system starts no further thread", code="overloaded")
