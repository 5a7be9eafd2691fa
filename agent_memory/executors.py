"""Executors that carry work out to the end of the interpreter.

Python's own take none once the main thread is over. Threads that outlive it, and what ``atexit`` calls, still read and
write.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Executor(ThreadPoolExecutor):
    """Threads that carry functions out; where they take none any more, whoever brings a function carries it out."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError as error:
            # Where no thread can be started, the function stands in the queue all the same: it would be called twice.
            if not str(error).startswith("cannot schedule new futures"):
                raise
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future
