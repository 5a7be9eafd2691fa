"""Several server processes behind one socket: the kernel shares out the connections, no process holds any state."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final, NamedTuple

from .log import RequestLog

_PAUSE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 15.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Role(enum.Enum):
    """Which worker one is: the first of all, another of the same start, or the successor of one that died."""

    FIRST = enum.auto()
    OTHER = enum.auto()
    SUCCESSOR = enum.auto()


def run_workers(count: int, work: Callable[[Role], None]) -> None:
    """Run ``work`` in so many forked processes until SIGTERM or SIGINT, and start again the ones that die.

    ``work`` is told its role: the first speaks for those that start with it. Must be called before this process has
    threads or open databases. Ends with exit code 2 if the first process does: it could not start, and
    said why; what keeps others from starting may pass.

    Where there is a worker for every core, each stays on one. Workers end with this process, however it ends, and one
    that does not end when it is told to is killed.
    """
    stopping = refused = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            # No worker is started from here on, so this process may have a thread.
            last = threading.Timer(_STOP_SECONDS, pass_on, [signal.SIGKILL])
            last.daemon = True
            # Where no thread is to be had, they are told all the same.
            with contextlib.suppress(RuntimeError):
                last.start()
        stopping = True
        pass_on(signal.SIGTERM)

    def pass_on(what: signal.Signals) -> None:
        for worker in list(workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, what)

    def start(core: int | None, role: Role) -> int | None:
        while not stopping:
            # A signal waits until the new worker is among those that it is passed on to.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                worker = _start(work, core, before, role)
                workers[worker] = _Worker(core, time.monotonic())
                return worker
            except OSError as error:
                # As many processes run as may, or there is no memory for another: both may pass.
                RequestLog(sys.stderr).event({"event": "worker", "message": f"not started: {error.strerror}"})
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            time.sleep(_PAUSE_SECONDS)
        return None

    workers: dict[int, _Worker] = {}
    handlers = {one: signal.signal(one, stop) for one in _SIGNALS}
    try:
        cores = _cores(count)
        first = start(cores[0], Role.FIRST)
        for core in cores[1:]:
            start(core, Role.OTHER)
        while workers:
            try:
                worker, status = os.wait()
            except ChildProcessError:
                break
            ended = workers.pop(worker, None)
            if ended is None or stopping:
                continue
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                # Whatever ended it so left it no time for a word of its own.
                RequestLog(sys.stderr).event({"event": "worker", "message": f"ended by signal {-code}"})
            if worker == first and code == 2:
                stop(signal.SIGTERM, None)
                refused = True
                continue
            # One that ends as soon as it has started is not started in a tight loop.
            time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - ended.started)))
            start(ended.core, Role.SUCCESSOR)
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    if refused:
        sys.exit(2)


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


def _start(work: Callable[[Role], None], core: int | None, mask: Iterable[int], role: Role) -> int:
    """Fork a worker; with this mask it lets signals in again, when they would end it."""
    parent = os.getpid()
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
        threading.Thread(target=_end_with, args=(parent,), name="agent-memory-parent", daemon=True).start()
        work(role)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception as error:
        # Its text may hold a value: the type must do, and the place.
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        place = f"{frame.f_code.co_filename}:{line}"
        RequestLog(sys.stderr).event({"event": "worker", "error": type(error).__name__, "at": place})
    finally:
        # Nobody may read them any more. Without its exit the worker would go on as its parent.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    """End this process, as by a signal, once its parent is gone: nobody could stop it any more."""
    while os.getppid() == parent:
        time.sleep(_PAUSE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os._exit(1)
