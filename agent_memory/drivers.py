"""Run a flow: carry each message it yields to where it is answered, and throw failures back in.

A flow is a generator. It yields messages for the transport and the effects below, which need a waiting that
differs between threads and an event loop. Nothing else in the package knows which of the two it runs in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import anyio

from .errors import InvalidRequestError, TimedOutError, UnavailableError
from .executors import Executor, on_thread
from .messages import Message

T = TypeVar("T")
Flow: TypeAlias = Generator[Any, Any, T]


class Sleep(NamedTuple):
    """Wait so many seconds -> True; or False, at once, if the call's deadline would pass first."""

    seconds: float


class Gather(NamedTuple):
    """Run flows side by side, at most ``limit`` at once -> their results in order; the first failure is raised."""

    flows: Sequence[Flow[Any]]
    limit: int


class Compute(NamedTuple):
    """Call a function that takes long -> its result; in async code on a thread, so that the event loop goes on."""

    function: Callable[[], Any]


class Join(NamedTuple):
    """Wait for what another thread or task does, at most so many seconds -> False if the call's deadline has passed."""

    future: Future[Any]
    seconds: float


class Wait(NamedTuple):
    """Wait for something that the caller's function returned -> its result; only in async code.

    At the call's deadline it is cancelled.
    """

    awaitable: Awaitable[Any]


class Transport(Protocol):
    """Answers messages. Deadlines are on ``time.monotonic``'s clock; errors are AgentMemoryErrors only."""

    @property
    def loses_replies(self) -> bool:
        """Whether what failed may have been carried out all the same: then a write has to have an id to be repeated."""
        ...

    def send(self, message: Message, deadline: float) -> Any: ...

    async def asend(self, message: Message, deadline: float) -> Any: ...

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


def run(flow: Flow[T], transport: Transport, deadline: float) -> T:
    """Run a flow to its end on this thread."""
    step: Any = flow.send
    value: Any = None
    try:
        while True:
            try:
                request: Message = step(value)
            except StopIteration as end:
                return end.value
            try:
                effect = _EFFECTS.get(type(request))
                value = transport.send(request, deadline) if effect is None else effect(request, transport, deadline)
                step = flow.send
            except Exception as error:
                step, value = flow.throw, error
    except BaseException:
        # Ctrl-C: what the flow holds is given back now, not when the traceback is forgotten.
        flow.close()
        raise


async def run_async(flow: Flow[T], transport: Transport, deadline: float) -> T:
    """Run a flow to its end on the event loop."""
    step: Any = flow.send
    value: Any = None
    try:
        while True:
            try:
                request: Message = step(value)
            except StopIteration as end:
                return end.value
            try:
                effect = _ASYNC_EFFECTS.get(type(request))
                if effect is None:
                    value = await transport.asend(request, deadline)
                else:
                    value = await effect(request, transport, deadline)
                step = flow.send
            except Exception as error:
                step, value = flow.throw, error
    finally:
        # A cancelled flow ends here, not when it is collected.
        flow.close()


def _sleep(effect: Sleep, transport: Transport, deadline: float) -> bool:
    if time.monotonic() + effect.seconds >= deadline:
        return False
    time.sleep(effect.seconds)
    return True


async def _sleep_async(effect: Sleep, transport: Transport, deadline: float) -> bool:
    if time.monotonic() + effect.seconds >= deadline:
        return False
    await asyncio.sleep(effect.seconds)
    return True


def _gather(effect: Gather, transport: Transport, deadline: float) -> list[Any]:
    if len(effect.flows) == 1:
        return [run(effect.flows[0], transport, deadline)]
    with Executor(effect.limit, "agent-memory-transfer") as pool:
        try:
            futures = [_begun(pool, flow, transport, deadline) for flow in effect.flows]
            done, waiting = wait(futures, return_when="FIRST_EXCEPTION")
        except BaseException:
            # Ctrl-C: what has not begun does not begin any more.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in waiting:
            future.cancel()
        for future in done:
            future.result()
        return [future.result() for future in futures]


def _begun(pool: Executor, flow: Flow[Any], transport: Transport, deadline: float) -> Future[Any]:
    try:
        return pool.submit(run, flow, transport, deadline)
    except UnavailableError:
        # Not one thread can be started: this one does it.
        future: Future[Any] = Future()
        future.set_result(run(flow, transport, deadline))
        return future


async def _gather_async(effect: Gather, transport: Transport, deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(effect.flows)
    failures: list[Exception] = []
    limiter = anyio.CapacityLimiter(effect.limit)

    async def one(index: int, flow: Flow[Any]) -> None:
        async with limiter:
            try:
                results[index] = await run_async(flow, transport, deadline)
            except Exception as error:
                failures.append(error)
                group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, flow in enumerate(effect.flows):
            group.start_soon(one, index, flow)
    if failures:
        raise failures[0]
    return results


def _compute(effect: Compute, transport: Transport, deadline: float) -> Any:
    return effect.function()


async def _compute_async(effect: Compute, transport: Transport, deadline: float) -> Any:
    try:
        return await on_thread(effect.function)
    except UnavailableError:
        # There is none: other tasks have to wait.
        return effect.function()


def _join(effect: Join, transport: Transport, deadline: float) -> bool:
    left = deadline - time.monotonic()
    wait([effect.future], min(effect.seconds, left))
    return left > 0


async def _join_async(effect: Join, transport: Transport, deadline: float) -> bool:
    left = deadline - time.monotonic()
    await asyncio.wait([asyncio.wrap_future(effect.future)], timeout=min(effect.seconds, left))
    return left > 0


def _wait(effect: Wait, transport: Transport, deadline: float) -> Any:
    close = getattr(effect.awaitable, "close", None)
    if close is not None:
        close()
    raise InvalidRequestError("an async function needs the async API: use AsyncAgentMemory, or memory.aio")


async def _wait_async(effect: Wait, transport: Transport, deadline: float) -> Any:
    limit = asyncio.timeout(deadline - time.monotonic())
    try:
        async with limit:
            return await effect.awaitable
    except TimeoutError:
        if not limit.expired():
            # The function's own.
            raise
    raise TimedOutError("the function given to update took longer than the call's time: give the memory more timeout=")


_EFFECTS: dict[type, Callable[[Any, Transport, float], Any]] = {
    Sleep: _sleep,
    Gather: _gather,
    Compute: _compute,
    Join: _join,
    Wait: _wait,
}
_ASYNC_EFFECTS: dict[type, Callable[[Any, Transport, float], Awaitable[Any]]] = {
    Sleep: _sleep_async,
    Gather: _gather_async,
    Compute: _compute_async,
    Join: _join_async,
    Wait: _wait_async,
}
