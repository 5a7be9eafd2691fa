"""Several server processes behind one socket: the kernel shares out the connections, no process holds any state."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

_PAUSE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 10.0


def run_workers(count: int, work: Callable[[bool], None]) -> None:
    """Run ``work`` in so many forked processes until SIGTERM or SIGINT, and start again the ones that die.

    ``work`` is told whether it is the first to run at all, the one that says where it listens. Must be called before
    this process has threads or open databases. Ends with exit code 2 if the first process does: it could not start, and
    said why; what keeps others from starting may pass.
    """
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for worker in list(workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)

    workers: dict[int, float] = {}
    handlers = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        first = _start(work, announce=True)
        workers[first] = time.monotonic()
        for _ in range(count - 1):
            workers[_start(work, announce=False)] = time.monotonic()
        while workers:
            try:
                worker, status = os.wait()
            except ChildProcessError:
                break
            started = workers.pop(worker, None)
            if started is None or stopping:
                continue
            if worker == first and os.waitstatus_to_exitcode(status) == 2:
                stop(signal.SIGTERM, None)
                _wait_for(workers)
                sys.exit(2)
            time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - started)))
            if not stopping:
                workers[_start(work, announce=False)] = time.monotonic()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


def _start(work: Callable[[bool], None], *, announce: bool) -> int:
    worker = os.fork()
    if worker:
        return worker
    code = 1
    try:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)
        work(announce)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait_for(workers: dict[int, float]) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while workers and time.monotonic() < deadline:
        try:
            worker, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        workers.pop(worker, None)
        time.sleep(0.02)
