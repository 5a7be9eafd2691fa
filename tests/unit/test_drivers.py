"""The two drivers run the same flow to the same end."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal

from agent_memory import drivers
from agent_memory.drivers import Compute, Flow, Gather, Join, Sleep, Wait, run, run_async
from agent_memory.errors import InvalidRequestError, TimedOutError, UnavailableError
from agent_memory.flows import call
from agent_memory.messages import Check, Sweep


class Echo:
    """Answers a Sweep with itself and raises on a Check; counts what it is sent at once."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.sent: list[Any] = []
        self.active = self.most = 0
        self._lock = threading.Lock()

    def send(self, message: Any, deadline: float) -> Any:
        self._enter(message)
        time.sleep(self.pause)
        return self._leave(message)

    async def asend(self, message: Any, deadline: float) -> Any:
        self._enter(message)
        await anyio.sleep(self.pause)
        return self._leave(message)

    def _enter(self, message: Any) -> None:
        with self._lock:
            self.sent.append(message)
            self.active += 1
            self.most = max(self.most, self.active)

    def _leave(self, message: Any) -> Any:
        with self._lock:
            self.active -= 1
        if isinstance(message, Check):
            raise UnavailableError("refused")
        return message

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


Driver = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def drive(request: pytest.FixtureRequest, portal: BlockingPortal) -> Driver:
    """Run a flow with one of the drivers and return its result."""

    def drive(flow: Flow[Any], transport: Any, seconds: float = 10.0) -> Any:
        deadline = time.monotonic() + seconds
        if request.param == "sync":
            return run(flow, transport, deadline)
        return portal.call(run_async, flow, transport, deadline)

    return drive


def test_a_flow_gets_its_replies_and_gives_its_result(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        first = yield Sweep()
        second = yield Sweep()
        return first, second

    assert drive(flow(), Echo()) == (Sweep(), Sweep())


def test_a_failure_is_thrown_into_the_flow(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        try:
            yield Check()
        except UnavailableError:
            return (yield Sweep())

    assert drive(flow(), Echo()) == Sweep()


def test_a_failure_that_the_flow_does_not_handle_reaches_the_caller(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        yield Check()

    with pytest.raises(UnavailableError):
        drive(flow(), Echo())


def test_after_the_failure_of_a_gathered_flow_no_other_begins(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        yield Gather([one(Check()), *(one(Sweep()) for _ in range(30))], 2)

    transport = Echo(pause=0.01)
    with pytest.raises(UnavailableError):
        drive(flow(), transport)
    assert len(transport.sent) < 20


def test_no_flows_are_gathered_to_nothing(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        return (yield Gather([], 2))

    assert drive(flow(), Echo()) == []


def test_a_flow_that_fails_is_closed(drive: Driver) -> None:
    closed: list[bool] = []

    def flow() -> Flow[Any]:
        try:
            yield Check()
        finally:
            closed.append(True)

    with pytest.raises(UnavailableError):
        drive(flow(), Echo())
    assert closed == [True]


def test_a_flow_that_is_interrupted_is_closed_before_the_interruption_is_handled() -> None:
    closed: list[bool] = []

    class Interrupted(BaseException): ...

    class Interrupting(Echo):
        def _enter(self, message: Any) -> None:
            raise Interrupted

    def flow() -> Flow[Any]:
        try:
            yield Sweep()
        finally:
            closed.append(True)

    try:
        run(flow(), Interrupting(), time.monotonic() + 10)
    except Interrupted:
        assert closed == [True]
    else:
        pytest.fail("it was not interrupted")


@pytest.mark.parametrize(("seconds", "within"), [(0.01, True), (60.0, True), (60.0, False)])
def test_what_others_do_is_awaited_for_so_long_and_no_longer_than_the_call(
    drive: Driver, seconds: float, within: bool
) -> None:
    other: Future[None] = Future()

    def flow() -> Flow[Any]:
        return (yield Join(other, seconds)), other.done()

    before = time.monotonic()
    timer = threading.Timer(0.1, other.set_result, [None])
    timer.start()
    try:
        in_time, done = drive(flow(), Echo(), 10.0 if within else 0.02)
    finally:
        timer.join()
    assert in_time
    assert done == (within and seconds == 60.0)
    assert time.monotonic() - before < 5

    def late() -> Flow[Any]:
        return (yield Join(Future(), 60.0))

    assert drive(late(), Echo(), 0.0) is False


def test_a_sleep_within_the_deadline_is_slept(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        return (yield Sleep(0.01))

    before = time.monotonic()
    assert drive(flow(), Echo()) is True
    assert time.monotonic() - before >= 0.01


def test_a_sleep_beyond_the_deadline_is_refused_at_once(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        return (yield Sleep(60))

    before = time.monotonic()
    assert drive(flow(), Echo(), 0.5) is False
    assert time.monotonic() - before < 5


def one(message: Any) -> Flow[Any]:
    return (yield message)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_gathered_flows_give_their_results_in_order(drive: Driver, count: int) -> None:
    def numbered(number: int) -> Flow[Any]:
        yield Sweep()
        return number

    def flow() -> Flow[Any]:
        return (yield Gather([numbered(n) for n in range(count)], 3))

    assert drive(flow(), Echo()) == list(range(count))


def test_no_more_flows_than_the_limit_run_at_once(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        return (yield Gather([one(Sweep()) for _ in range(8)], 2))

    transport = Echo(pause=0.01)
    drive(flow(), transport)
    assert (transport.most, len(transport.sent)) == (2, 8)


def test_the_failure_of_a_gathered_flow_is_the_failure_of_all(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        yield Gather([one(Sweep()), one(Check()), one(Sweep())], 2)

    with pytest.raises(UnavailableError):
        drive(flow(), Echo())


def test_of_gathered_flows_that_fail_one_after_the_other_the_first_failure_is_told(
    drive: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_seen = threading.Event()
    wait = drivers.wait

    def seeing(*arguments: Any, **options: Any) -> Any:
        try:
            return wait(*arguments, **options)
        finally:
            is_seen.set()

    class Late(Echo):
        """Fails a Check at once, and a Sweep when that was seen."""

        def send(self, message: Any, deadline: float) -> Any:
            if isinstance(message, Sweep):
                is_seen.wait(5)
                raise UnavailableError("second")
            raise UnavailableError("first")

        async def asend(self, message: Any, deadline: float) -> Any:
            if isinstance(message, Sweep):
                await failed.wait()
                raise UnavailableError("second")
            failed.set()
            raise UnavailableError("first")

    def flow() -> Flow[Any]:
        yield Gather([one(Sweep()), one(Check())], 2)

    failed = anyio.Event()
    monkeypatch.setattr(drivers, "wait", seeing)
    with pytest.raises(UnavailableError, match="first"):
        drive(flow(), Late())


def test_what_takes_long_is_computed_beside_an_event_loop_alone(drive: Driver, request: pytest.FixtureRequest) -> None:
    def flow() -> Flow[Any]:
        return threading.get_ident(), (yield Compute(threading.get_ident))

    flows, computes = drive(flow(), Echo())
    assert (flows != computes) == ("async" in request.node.callspec.id)


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_what_takes_long_is_computed_on_the_event_loop_where_no_thread_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flow() -> Flow[Any]:
        return (yield Compute(threading.get_ident))

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    # An event loop of its own has no idle thread from before.
    assert asyncio.run(run_async(flow(), Echo(), time.monotonic() + 5)) == threading.get_ident()


def test_flows_are_run_one_after_the_other_where_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(number: int) -> Flow[Any]:
        yield Compute(lambda: None)
        return number, threading.get_ident()

    def flow() -> Flow[Any]:
        return (yield Gather([one(1), one(2)], 2))

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    here = threading.get_ident()
    assert run(flow(), Echo(), time.monotonic() + 5) == [(1, here), (2, here)]


def test_a_computation_that_fails_throws_its_error_into_the_flow(drive: Driver) -> None:
    def flow() -> Flow[Any]:
        try:
            yield Compute(lambda: 1 // 0)
        except ZeroDivisionError:
            return "caught"

    assert drive(flow(), Echo()) == "caught"


def test_an_awaitable_is_awaited_in_async_code_alone(drive: Driver, request: pytest.FixtureRequest) -> None:
    async def answer() -> int:
        return 42

    def flow() -> Flow[Any]:
        return (yield Wait(answer()))

    if "async" in request.node.callspec.id:
        assert drive(flow(), Echo()) == 42
    else:
        with pytest.raises(InvalidRequestError):
            drive(flow(), Echo())


def test_what_the_callers_function_awaits_ends_with_the_calls_deadline(portal: BlockingPortal) -> None:
    ended = threading.Event()

    async def hang() -> None:
        try:
            await anyio.sleep(30)
        finally:
            ended.set()

    def flow() -> Flow[Any]:
        yield Wait(hang())

    with pytest.raises(TimedOutError, match="timeout="):
        portal.call(run_async, flow(), Echo(), time.monotonic() + 0.1)
    assert ended.is_set()


def test_a_time_limit_of_the_callers_own_is_the_callers(portal: BlockingPortal) -> None:
    async def give_up() -> None:
        raise TimeoutError("mine")

    def flow() -> Flow[Any]:
        yield Wait(give_up())

    with pytest.raises(TimeoutError, match="mine"):
        portal.call(run_async, flow(), Echo(), time.monotonic() + 10)


def test_a_cancelled_flow_is_closed_at_once(portal: BlockingPortal) -> None:
    closed: list[bool] = []

    def flow() -> Flow[Any]:
        try:
            yield Sleep(60)
        finally:
            closed.append(True)

    async def cancel() -> None:
        with anyio.move_on_after(0.01):
            await run_async(flow(), Echo(), time.monotonic() + 100)
        assert closed == [True]

    portal.call(cancel)


class Failing(Echo):
    def __init__(self, code: str | None, retry_after: float | None = None) -> None:
        super().__init__()
        self._code = code
        self._retry_after = retry_after

    def _leave(self, message: Any) -> Any:
        super()._leave(message)
        raise UnavailableError("no", code=self._code, retry_after=self._retry_after)


def test_a_call_is_repeated_until_its_time_is_over(drive: Driver) -> None:
    transport = Failing(None)
    with pytest.raises(UnavailableError):
        drive(call(Sweep()), transport, 0.2)

    assert len(transport.sent) > 1


def test_a_call_is_not_repeated_before_the_other_side_wants_it(drive: Driver) -> None:
    transport = Failing(None, retry_after=30)
    with pytest.raises(UnavailableError):
        drive(call(Sweep()), transport, 5)

    assert len(transport.sent) == 1


def test_those_who_are_to_come_again_at_one_moment_come_one_after_the_other() -> None:
    pauses: list[float] = []
    for _ in range(20):
        calling = call(Sweep())
        next(calling)
        effect = calling.throw(UnavailableError("no", retry_after=2))
        assert isinstance(effect, Sleep)
        pauses.append(effect.seconds)

    assert min(pauses) >= 2
    assert max(pauses) - min(pauses) > 0.2


def test_a_call_that_fails_again_and_again_comes_ever_later_and_not_with_others() -> None:
    pauses: list[list[float]] = []
    for _ in range(20):
        calling = call(Sweep())
        pauses.append([])
        next(calling)
        for _ in range(9):
            pauses[-1].append(calling.throw(UnavailableError("no")).seconds)
            calling.send(True)
    first, last = [one[0] for one in pauses], [one[-1] for one in pauses]
    assert max(first) <= 0.02 < 10 * max(first) < min(last) <= max(last) <= 2
    assert max(last) - min(last) > 0.2


def test_a_call_that_fails_for_long_tells_why_and_tells_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = itertools.count(1)
    monkeypatch.setattr("agent_memory.flows.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    calling = call(Sweep())
    next(calling)
    for number in range(5):
        calling.throw(UnavailableError(f"failure {number}"))
        calling.send(True)

    assert caplog.messages == ["failure 1; trying again until the call's time is over"]


@pytest.mark.parametrize(
    "code",
    [
        "closed", "disk_full", "disk_failed", "database_failed", "newer_schema", "schema_missing", "timeout",
        "search_timeout", "url_expired", "blobs_refused", "forked", "tls_failed",
    ],
)  # fmt: skip
def test_what_a_repetition_cannot_mend_is_not_repeated(drive: Driver, code: str) -> None:
    transport = Failing(code)
    with pytest.raises(UnavailableError):
        drive(call(Sweep()), transport)

    assert len(transport.sent) == 1


def test_an_interrupt_begins_no_further_parts() -> None:
    begun: list[int] = []

    def part(number: int) -> Flow[None]:
        begun.append(number)
        yield Sleep(0.3)

    def flow() -> Flow[None]:
        yield Gather([part(number) for number in range(20)], 2)

    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        run(flow(), Echo(), time.monotonic() + 60)
    assert len(begun) <= 4
