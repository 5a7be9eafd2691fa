"""Waiting for another process that writes to a SQLite file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

import apsw

from ...errors import UnavailableError

T = TypeVar("T")

BUSY_SECONDS: Final = 1.0
"""How long one attempt waits for another write, at most; the flow tries again until the call's deadline."""

_OPENING_SECONDS: Final = 10.0


def waiting(seconds: float) -> Callable[[int], bool]:
    """Return a busy handler: while another process writes, look again within a millisecond, for so many seconds.

    SQLite's own pauses grow to 100 ms, and a process that writes all the time has the lock whenever such a pause is
    over: of eight that updated one key for three seconds, one made a single update.
    """
    end = 0.0

    def wait(attempt: int) -> bool:
        nonlocal end
        now = time.monotonic()
        if attempt == 0:
            end = now + seconds
        time.sleep(random.uniform(0.0002, 0.001))
        return now < end

    return wait


def retry_busy(function: Callable[[], T]) -> T:
    """Return what a function gives, called again while the file is busy, for ten seconds at most.

    For opening: where another process switches the file to WAL or recovers it, SQLite does not call the busy handler.
    """
    deadline = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            return function()
        except (apsw.BusyError, apsw.LockedError, UnavailableError) as error:
            final = isinstance(error, UnavailableError) and error.code != UnavailableError.code
            if final or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
