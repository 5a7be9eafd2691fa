"""Processes that a test starts, watches and kills, and values that show whether they are whole.

A child is forked: it starts in milliseconds, so that a hundred of them can be killed in a test. Tests open no store in
the parent while they fork, except where that is what they test.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

MiB: Final = 1024 * 1024
_HEAD: Final = 48


def value(counter: int, size: int) -> bytes:
    """Return ``size`` bytes that name their counter and their size, and hold a hash of all of it."""
    if size == 0:
        return b""
    body = bytes([counter % 251]) * (size - _HEAD)
    head = counter.to_bytes(8, "big") + size.to_bytes(8, "big")
    return head + hashlib.sha256(head + body).digest() + body


def counter_of(data: bytes) -> int:
    """Return the counter of a value that is whole; fail if it is torn, cut, padded or mixed."""
    head, body = data[:16], data[_HEAD:]
    counter = int.from_bytes(head[:8], "big")
    assert int.from_bytes(head[8:], "big") == len(data), f"{len(data)} bytes of a value of another size"
    assert body.count(bytes([counter % 251])) == len(body), f"the bytes of value {counter} are mixed with others"
    assert hashlib.sha256(head + body).digest() == data[16:_HEAD], f"the hash of value {counter} is another's"
    return counter


class Report:
    """A child's way to tell its parent what it did: what was written here outlives a ``kill -9``."""

    def __init__(self, descriptor: int, orders: int) -> None:
        self._descriptor = descriptor
        self._orders = orders

    def __call__(self, *items: Any) -> None:
        data = pickle.dumps(items)
        view = memoryview(len(data).to_bytes(4, "big") + data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def wait(self) -> None:
        """Wait for the parent's ``go()``."""
        os.read(self._orders, 1)


class Child:
    """A forked process that runs ``function(report, *args)``."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self._pipe, theirs = os.pipe()
        orders, self._orders = os.pipe()
        self._rest = b""
        self._reaped: int | None = None
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking where threads run; the children of these tests know.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            os.close(self._orders)
            _run(Report(theirs, orders), function, args)
        os.close(theirs)
        os.close(orders)
        self._open = [self._pipe, self._orders]

    def go(self) -> None:
        """Let it go on from its next ``report.wait()``."""
        os.write(self._orders, b".")

    def reports(self, timeout: float = 60) -> Iterator[tuple[Any, ...]]:
        """Iterate over what the child reports, until it is gone; fail if it failed."""
        deadline = time.monotonic() + timeout
        while True:
            while (report := self._take()) is not None:
                if report and report[0] == "failed":
                    raise AssertionError(f"the child process failed:\n{report[1]}")
                yield report
            if not self._fill(deadline):
                return

    def report(self, timeout: float = 60) -> tuple[Any, ...]:
        """Return the next report."""
        for report in self.reports(timeout):
            return report
        raise AssertionError("the child process ended without a report")

    def reported(self) -> list[tuple[Any, ...]]:
        """Return what it has reported by now, without waiting."""
        while select.select([self._pipe], [], [], 0)[0] and self._fill(time.monotonic() + 1):
            pass
        return list(iter(self._take, None))

    def ended(self) -> bool:
        """Say whether it has ended; fail if it failed."""
        if self._reaped is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._reaped = os.waitstatus_to_exitcode(status)
        assert self._reaped in (None, 0), f"the child process failed: {self.reported()}"
        return self._reaped is not None

    def _take(self) -> tuple[Any, ...] | None:
        size = int.from_bytes(self._rest[:4], "big")
        if len(self._rest) < 4 or len(self._rest) < 4 + size:
            return None
        report, self._rest = pickle.loads(self._rest[4 : 4 + size]), self._rest[4 + size :]
        return report

    def _fill(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
            raise AssertionError("the child process did not report in time")
        data = os.read(self._pipe, MiB)
        self._rest += data
        return bool(data)

    def kill(self) -> list[tuple[Any, ...]]:
        """End it at once, as ``kill -9`` does, and return the reports that it still had made."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._reap()
        reports = list(self.reports())
        self._close_pipes()
        return reports

    def join(self, timeout: float = 60) -> list[tuple[Any, ...]]:
        """Wait for its end and return the rest of its reports; fail if it failed."""
        reports = list(self.reports(timeout))
        assert self._reap() == 0, "the child process was ended by something else"
        self._close_pipes()
        return reports

    def close(self) -> None:
        """Leave nothing of it behind."""
        if self._reaped is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()
        self._close_pipes()

    def _close_pipes(self) -> None:
        """Let go of the pipes: a test may start a thousand children, and ``select`` takes no higher descriptor."""
        while self._open:
            os.close(self._open.pop())

    def _reap(self) -> int:
        if self._reaped is None:
            self._reaped = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._reaped


def _run(report: Report, function: Callable[..., object], args: tuple[Any, ...]) -> None:
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        function(report, *args)
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            report("failed", traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: the test run's own clean-up is not the child's.
        os._exit(code)
