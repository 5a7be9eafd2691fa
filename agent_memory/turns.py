"""Turns: updates that meet on a key in one process go one after the other.

A courtesy, for speed and fairness; what keeps updates from being lost is the condition that each is written on. But of
fifty that try at once one is written, and the others have tried for nothing. So who has lost waits for its turn, and so
does who comes while others wait. A turn that takes long is over for those who wait, not for who has it: then two try.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

from .drivers import Flow, Join

_LONGEST: Final = 0.25
"""Seconds after which a turn is the next one's."""


class _Queue:
    def __init__(self, holder: Future[None]) -> None:
        self.holder = holder
        self.until = time.monotonic() + _LONGEST
        self.waiting: deque[Future[None]] = deque()


class Turns:
    """Who has the turn at which place, and who waits for it; shared by threads and event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, _Queue] = {}

    def is_taken(self, place: Hashable) -> bool:
        """Say whether somebody has the turn."""
        return place in self._queues

    def has(self, place: Hashable, turn: Future[None]) -> bool:
        """Say whether this turn is the present one."""
        queue = self._queues.get(place)
        return queue is not None and queue.holder is turn

    def join(self, place: Hashable) -> Future[None]:
        """Return what is done when the turn has come: at once, if nobody else has it."""
        turn: Future[None] = Future()
        with self._lock:
            queue = self._queues.get(place)
            if queue is not None:
                queue.waiting.append(turn)
                return turn
            self._queues[place] = _Queue(turn)
        turn.set_result(None)
        return turn

    def left(self, place: Hashable) -> float:
        """Return how many seconds the present turn has left."""
        queue = self._queues.get(place)
        return 0.0 if queue is None else queue.until - time.monotonic()

    def leave(self, place: Hashable, turn: Future[None]) -> None:
        """Give up a turn, which is the next one's then, or the place in the queue."""
        coming = None
        # Python may collect an abandoned flow, which then leaves, on a thread that has the lock. Time ends its turn.
        if not self._lock.acquire(timeout=_LONGEST):
            return
        try:
            queue = self._queues.get(place)
            if queue is not None and queue.holder is turn:
                coming = self._next(place, queue)
            elif queue is not None:
                with suppress(ValueError):
                    queue.waiting.remove(turn)
        finally:
            self._lock.release()
        if coming is not None:
            coming.set_result(None)

    def pass_over(self, place: Hashable) -> None:
        """End the present turn if it took too long."""
        coming = None
        with self._lock:
            queue = self._queues.get(place)
            if queue is not None and time.monotonic() >= queue.until:
                coming = self._next(place, queue)
        if coming is not None:
            coming.set_result(None)

    def _next(self, place: Hashable, queue: _Queue) -> Future[None] | None:
        if not queue.waiting:
            del self._queues[place]
            return None
        queue.holder = queue.waiting.popleft()
        queue.until = time.monotonic() + _LONGEST
        return queue.holder


class Turn:
    """The turns of one update; ``end`` it, whatever happens."""

    def __init__(self, turns: Turns, place: Hashable) -> None:
        self._turns, self._place = turns, place
        self._mine: Future[None] | None = None
        self._ended = False

    def is_contended(self) -> bool:
        """Say whether others who met at this place take turns."""
        return self._turns.is_taken(self._place)

    def wait(self) -> Flow[bool]:
        """Wait for the turn, unless this one has it -> whether others had theirs meanwhile."""
        if self._ended or (self._mine is not None and self._turns.has(self._place, self._mine)):
            return False
        self._mine = self._turns.join(self._place)
        waited = False
        while not self._mine.done():
            waited = True
            if not (yield Join(self._mine, self._turns.left(self._place))):
                break
            self._turns.pass_over(self._place)
        return waited

    def end(self) -> None:
        """Let the next one have its turn; this one takes no other."""
        self._ended = True
        if self._mine is not None:
            self._turns.leave(self._place, self._mine)
