"""Several server processes behind one socket: the kernel shares out the connections, no process holds any state."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final, NamedTuple

from .log import RequestLog

_PAUSE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 10.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_workers(count: int, work: Callable[[bool], None]) -> None:
    """Run ``work`` in so many forked processes until SIGTERM or SIGINT, and start again the ones that die.

    ``work`` is told whether it is the first to run at all, the one that says where it listens. Must be called before
    this process has threads or open databases. Ends with exit code 2 if the first process does: it could not start, and
    said why; what keeps others from starting may pass.

    Where there is a worker for every core, each stays on one.
    """
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for worker in list(workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)

    def start(core: int | None, *, announce: bool = False) -> int | None:
        # A signal waits until the new worker is among those that it is passed on to.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if stopping:
                return None
            worker = _start(work, core, before, announce=announce)
            workers[worker] = _Worker(core, time.monotonic())
            return worker
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    workers: dict[int, _Worker] = {}
    handlers = {one: signal.signal(one, stop) for one in _SIGNALS}
    try:
        cores = _cores(count)
        first = start(cores[0], announce=True)
        for core in cores[1:]:
            start(core)
        while workers:
            try:
                worker, status = os.wait()
            except ChildProcessError:
                break
            ended = workers.pop(worker, None)
            if ended is None or stopping:
                continue
            if worker == first and os.waitstatus_to_exitcode(status) == 2:
                stop(signal.SIGTERM, None)
                _wait_for(workers)
                sys.exit(2)
            # One that ends as soon as it has started is not started in a tight loop.
            time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - ended.started)))
            start(ended.core)
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


class _Worker(NamedTuple):
    core: int | None
    started: float


def _cores(count: int) -> list[int | None]:
    """Return the core that each worker stays on, None if it may move.

    The threads of a worker take turns, one running at a time: on several cores they only pull its data to and fro.
    With fewer workers than cores another program's could be the same ones, so there they move.
    """
    if sys.platform != "linux":
        return [None] * count
    cores = sorted(os.sched_getaffinity(0))
    return [cores[worker % len(cores)] if count >= len(cores) else None for worker in range(count)]


def _start(work: Callable[[bool], None], core: int | None, mask: Iterable[int], *, announce: bool) -> int:
    """Fork a worker; with this mask it lets signals in again, when they would end it."""
    worker = os.fork()
    if worker:
        return worker
    code = 1
    try:
        if sys.platform == "linux" and core is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {core})
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work(announce)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception as error:
        # Its text may hold a value: the type must do, and the place.
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = f"{frame.f_code.co_filename}:{line}"
        RequestLog(sys.stderr).event({"event": "worker", "error": type(error).__name__, "at": place})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait_for(workers: dict[int, _Worker]) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while workers and time.monotonic() < deadline:
        try:
            worker, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        workers.pop(worker, None)
        time.sleep(0.02)
